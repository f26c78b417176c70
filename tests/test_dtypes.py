"""Rounding to half precision, held against torch's own conversions and against every bit pattern there is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from evoengine.dtypes import BITS, ROUNDING, from_bits, rounded, to_bits

TORCH = {"fp16": torch.float16, "bf16": torch.bfloat16}
HALVES = sorted(TORCH)
EVERY_WORD = np.arange(2**16, dtype=np.uint16)


def torch_bits(values: NDArray[np.float32], dtype: str) -> NDArray[np.unsignedinteger]:
    return torch.from_numpy(values).to(TORCH[dtype]).view(torch.uint16).numpy()


def spread(count: int) -> NDArray[np.float32]:
    """float32 of every exponent and sign, subnormals and overflows included; no NaN."""
    words = np.random.default_rng(0).integers(0, 2**32, count, np.uint32)
    values = words.view(np.float32)
    return values[~np.isnan(values)]


@pytest.mark.parametrize("dtype", HALVES)
def test_every_word_survives_the_round_trip(dtype: str) -> None:
    values = from_bits(EVERY_WORD, dtype)
    numbers = ~np.isnan(values)
    back = to_bits(values, dtype)

    assert BITS[dtype] == back.dtype
    np.testing.assert_array_equal(EVERY_WORD[numbers], back[numbers])
    assert np.isnan(from_bits(back[~numbers], dtype)).all()


@pytest.mark.parametrize("dtype", HALVES)
def test_words_mean_what_torch_says(dtype: str) -> None:
    expected = torch.from_numpy(EVERY_WORD).view(TORCH[dtype]).to(torch.float32).numpy()

    np.testing.assert_array_equal(expected, from_bits(EVERY_WORD, dtype))


@pytest.mark.parametrize("dtype", HALVES)
def test_any_float_rounds_as_in_torch(dtype: str) -> None:
    values = spread(200_000)

    np.testing.assert_array_equal(torch_bits(values, dtype), to_bits(values, dtype))


@pytest.mark.parametrize("dtype", HALVES)
def test_halfway_between_two_words_goes_to_the_even_one(dtype: str) -> None:
    low = np.arange(0x3C00, 0x3C40, dtype=np.uint16) if dtype == "fp16" else np.arange(0x3F80, 0x3FC0, dtype=np.uint16)
    halfway = ((from_bits(low, dtype) + from_bits(low + np.uint16(1), dtype)) / np.float32(2)).astype(np.float32)
    even = np.where(low % 2 == 0, low, low + 1)

    np.testing.assert_array_equal(even, to_bits(halfway, dtype))
    np.testing.assert_array_equal(even | 0x8000, to_bits(-halfway, dtype))


@pytest.mark.parametrize(
    ("dtype", "value", "word"),
    [
        ("fp16", np.inf, 0x7C00),
        ("fp16", -np.inf, 0xFC00),
        ("fp16", 65504.0, 0x7BFF),  # the largest
        ("fp16", 65519.996, 0x7BFF),
        ("fp16", 65520.0, 0x7C00),  # halfway to 65536, which fp16 does not have
        ("fp16", 2.0**-24, 0x0001),  # the smallest subnormal
        ("fp16", 2.0**-25, 0x0000),
        ("fp16", -0.0, 0x8000),
        ("bf16", np.inf, 0x7F80),
        ("bf16", -np.inf, 0xFF80),
        ("bf16", 3.3895314e38, 0x7F7F),
        ("bf16", 3.4028235e38, 0x7F80),  # the largest float32
        ("bf16", 2.0**-133, 0x0001),
        ("bf16", 2.0**-134, 0x0000),
        ("bf16", -0.0, 0x8000),
    ],
)
def test_the_edges_of_the_range(dtype: str, value: float, word: int) -> None:
    assert word == int(to_bits(np.array([value], np.float32), dtype)[0])


@pytest.mark.parametrize("dtype", [*HALVES, "fp32"])
@pytest.mark.parametrize("word", [0x7FC00000, 0xFFC00000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF])
def test_nan_stays_nan_whatever_its_payload(dtype: str, word: int) -> None:
    nan = np.array([word], np.uint32).view(np.float32)  # 0x7F800001 has its payload where bf16 cuts it off

    assert np.isnan(from_bits(to_bits(nan, dtype), dtype)).all()


def test_fp32_passes_through_bit_for_bit() -> None:
    values = spread(1000)

    np.testing.assert_array_equal(values.view(np.uint32), to_bits(values, "fp32"))
    np.testing.assert_array_equal(values, rounded(values, "fp32"))


@pytest.mark.parametrize("dtype", HALVES)
def test_rounding_error_reaches_but_never_exceeds_its_bound(dtype: str) -> None:
    values = np.random.default_rng(1).uniform(1.0, 2.0, 100_000).astype(np.float32)
    error = np.abs(rounded(values, dtype).astype(np.float64) - values) / values

    assert 0.95 * ROUNDING[dtype] < float(error.max()) <= ROUNDING[dtype]


@pytest.mark.parametrize("dtype", HALVES)
def test_a_strided_view_rounds_like_its_copy(dtype: str) -> None:
    values = np.random.default_rng(2).standard_normal((8, 6)).astype(np.float32)

    np.testing.assert_array_equal(to_bits(values.T.copy(), dtype), to_bits(values.T, dtype))
