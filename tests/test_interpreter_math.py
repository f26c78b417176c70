"""Rounding toward an infinity or zero, against exact fractions, and the math functions that CUDA makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreted import Array, compile_source, lanewise, program

from evoengine.devices.interpreter import MODES, Program, Unsupported, execute
from evoengine.devices.interpreter.remedies import remedy
from evoengine.devices.interpreter.rounding import directed
from evoengine.template import Launch

F32 = np.float32
INF, NAN = math.inf, math.nan
LARGEST, LEAST = float(np.finfo(F32).max), 2.0**-149
ROUNDINGS = ("rm", "rp", "rz")
OPERATIONS: dict[str, Callable[..., Fraction]] = {
    "add": lambda a, b, c: a + b,
    "sub": lambda a, b, c: a - b,
    "mul": lambda a, b, c: a * b,
    "fma": lambda a, b, c: a * b + c,
}


def rounded(exact: Fraction, mode: str) -> float:
    """The float32 next to a number other than 0, in one direction: by division with remainder, without floats."""
    size, away = abs(exact), mode == ("rp" if exact > 0 else "rm")
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    unit = Fraction(2) ** max(exponent - 23, -149)
    count, rest = divmod(size, unit)
    result = (count + (away and rest > 0)) * unit
    return math.copysign(float(result) if result <= Fraction(LARGEST) else INF if away else LARGEST, exact)


def check(operation: str, mode: str, a: Array, b: Array, c: Array) -> None:
    """Bit for bit, except of exact zeros, whose sign `test_special_values` has."""
    with np.errstate(all="ignore"):
        actual = directed(operation, mode)(a, b, *([c] if operation == "fma" else []))
    assert actual.dtype == F32
    for *inputs, result in zip(a, b, c, actual, strict=True):
        exact = OPERATIONS[operation](*(Fraction(float(x)) for x in inputs))
        expected = F32(rounded(exact, mode)) if exact else F32(0)
        got = result if exact else abs(result)
        assert expected.tobytes() == got.tobytes(), (operation, mode, inputs, float(result), float(expected))


def hard_cases() -> tuple[Array, Array, Array]:
    """Products and sums that cancel, tie, just miss a float32 or a float64, underflow and overflow."""
    random = np.random.default_rng(7)
    a, b = (np.ldexp(random.uniform(-2, 2, 600), random.integers(-70, 64, 600)).astype(F32) for _ in range(2))
    with np.errstate(all="ignore"):
        product = a.astype(np.float64) * b
        near = product.astype(F32)
        steps = [near, -near, np.nextafter(-near, F32(INF)), -near / 2, near * F32(2.0**-24), near * F32(2.0**-60)]
    steps += [np.full(600, value, F32) for value in (LEAST, -LEAST, LARGEST, -LARGEST, 2.0**-126, 1.0)]
    c = np.stack(steps)[random.integers(0, len(steps), 600), np.arange(600)]
    c = np.where(np.isfinite(c), c, F32(1))
    coarse = random.random(600) < 0.3  # few bits, so that results are exact, or tie, far more often
    return (
        np.where(coarse, np.ldexp(random.integers(-9, 9, 600).astype(F32), random.integers(-149, 120, 600)), a),
        b,
        c,
    )


@pytest.mark.parametrize("mode", ROUNDINGS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_hard_cases_against_fractions(operation: str, mode: str) -> None:
    a, b, c = hard_cases()
    check(operation, mode, a, b, c)
    if operation in ("add", "sub"):
        check(operation, mode, a, c, b)
        check(operation, mode, b, c, a)


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=60)
@given(st.lists(st.tuples(FLOATS, FLOATS, FLOATS), min_size=8, max_size=8), st.sampled_from(ROUNDINGS))
def test_any_floats_against_fractions(inputs: list[tuple[float, float, float]], mode: str) -> None:
    a, b, c = np.array(inputs, F32).T
    for operation in OPERATIONS:
        check(operation, mode, a, b, c)


@pytest.mark.parametrize(
    ("instruction", "inputs", "expected"),
    [
        # exact zeros: -0 under .rm unless both are +0
        ("add.rm.f32 %out, %in0, %in1;", ([3, 0.0, -0.0, 0.0], [-3, 0.0, -0.0, -0.0]), [-0.0, 0.0, -0.0, -0.0]),
        ("add.rp.f32 %out, %in0, %in1;", ([3, 0.0, -0.0, 0.0], [-3, 0.0, -0.0, -0.0]), [0.0, 0.0, -0.0, 0.0]),
        ("add.rz.f32 %out, %in0, %in1;", ([3, 0.0, -0.0, 0.0], [-3, 0.0, -0.0, -0.0]), [0.0, 0.0, -0.0, 0.0]),
        ("sub.rm.f32 %out, %in0, %in1;", ([3, 0.0, -0.0, 0.0], [3, -0.0, 0.0, 0.0]), [-0.0, 0.0, -0.0, -0.0]),
        ("fma.rm.f32 %out, %in0, %in1, %in2;", ([2, 0.0, -1], [3, 1, 0.0], [-6, 0.0, 0.0]), [-0.0, 0.0, -0.0]),
        ("mul.rm.f32 %out, %in0, %in1;", ([0.0, -0.0], [3, 3]), [0.0, -0.0]),
        # infinities and NaN
        ("add.rm.f32 %out, %in0, %in1;", ([INF, -INF, INF, NAN], [1, 1, -INF, 1]), [INF, -INF, NAN, NAN]),
        ("fma.rz.f32 %out, %in0, %in1, %in2;", ([INF, INF, 1], [1, 0, 1], [1, 1, -INF]), [INF, NAN, -INF]),
        ("mul.rz.f32 %out, %in0, %in1;", ([INF, 0], [-2, INF]), [-INF, NAN]),
        # overflow and underflow
        ("mul.rm.f32 %out, %in0, %in1;", ([LARGEST, -LARGEST], [2, 2]), [LARGEST, -INF]),
        ("mul.rp.f32 %out, %in0, %in1;", ([LARGEST, -LARGEST], [2, 2]), [INF, -LARGEST]),
        ("mul.rz.f32 %out, %in0, %in1;", ([LARGEST, -LARGEST], [2, 2]), [LARGEST, -LARGEST]),
        ("add.rp.f32 %out, %in0, %in1;", ([LARGEST, -LARGEST], [LEAST, -LEAST]), [INF, -LARGEST]),
        ("mul.rm.f32 %out, %in0, %in1;", ([LEAST, -LEAST], [LEAST, LEAST]), [0.0, -LEAST]),
        ("mul.rp.f32 %out, %in0, %in1;", ([LEAST, -LEAST], [LEAST, LEAST]), [LEAST, -0.0]),
        ("mul.rp.ftz.f32 %out, %in0, %in1;", ([1e-30, LEAST], [1e-12, 1]), [0.0, 0.0]),
        ("add.rz.ftz.f32 %out, %in0, %in1;", ([LEAST, 1, -1], [1, 2.0**-24, -(2.0**-24)]), [1, 1, -1]),
        ("mad.rp.f32 %out, %in0, %in0, %in1;", ([1], [2.0**-60]), [1 + 2.0**-23]),
        # the sum that expf rounds down to cut its argument: 12582913 is 1.5 * 2^23 and expf's bias
        ("fma.rm.f32 %out, %in0, 0f3F800000, 0f4B400001;", ([1.9, -0.1],), [12582914, 12582912]),
    ],
)  # fmt: skip
def test_special_values(instruction: str, inputs: tuple[Any, ...], expected: list[float]) -> None:
    actual = lanewise(instruction, *(np.array(values, F32) for values in inputs), out=F32)

    assert np.array(expected, F32).tobytes() == np.where(np.isnan(actual), F32(NAN), actual).tobytes()


@pytest.mark.parametrize(
    "instruction", ["add.rz.f64 %d0, %d0, %d0;", "sqrt.rz.f32 %f0, %f0;", "div.rp.f32 %f0, %f0, %f1;"]
)
def test_directions_that_are_not_modelled_are_refused_with_a_hint(instruction: str) -> None:
    with pytest.raises(Unsupported, match=r"modifier \.r[zp]") as caught:
        program(instruction)

    assert "round to nearest" in remedy(str(caught.value))


def test_every_refusal_has_a_hint() -> None:
    texts = (
        "directive '.param .b64 param0'",
        "call.uni (retval0), vprintf",
        "operand 'table'",
        "ld.const.f32 %f1, [table]",
        "cp.async.bulk.tensor.2d x",
    )

    assert all(remedy(text).startswith("or ") for text in texts)
    assert remedy(texts[0]) == remedy(texts[1])
    assert "printf" in remedy(texts[0])


def mathematical(call: str, values: Array, *options: str) -> Array:
    """`y` after `y = call` for every `x`, as NVRTC compiles it; the same in every mode."""
    source = 'extern "C" __global__ void k(const float* in, float* out) { float x = in[threadIdx.x];'
    code = Program(compile_source(f"{source} out[threadIdx.x] = {call}; }}".encode(), options), "k")
    assert len(values) <= 1024
    buffers: dict[str, Array] = {"x": values.astype(F32), "y": np.zeros(len(values), F32)}
    done = execute(code, Launch((1, 1, 1), len(values), 0), ["x", "y"], buffers, modes=MODES, step_limit=100_000)
    results = [left["y"].view(F32) for left in done.buffers]
    assert len({result.tobytes() for result in results}) == 1
    return results[0]


RANDOM = np.random.default_rng(3)
NARROW = np.concatenate([RANDOM.uniform(-85, 85, 900), RANDOM.uniform(-1e-3, 1e-3, 100)]).astype(F32)
WIDE = (RANDOM.uniform(-1, 1, 1000) * 10.0 ** RANDOM.uniform(-5, 30, 1000)).astype(F32)


@pytest.mark.parametrize(
    ("call", "values", "exact", "ulps"),
    [
        ("expf(x)", NARROW, np.exp, 2),
        ("exp10f(x)", NARROW / 3, lambda x: 10.0**x, 2),
        ("log1pf(x)", abs(WIDE), np.log1p, 2),
        ("asinhf(x)", NARROW, np.arcsinh, 3),
        ("acoshf(x)", abs(NARROW) + F32(1), np.arccosh, 4),
        ("atanhf(x)", NARROW / 86, np.arctanh, 3),
        # away from zero at a half, unlike rintf
        ("roundf(x)", np.append(NARROW, F32([2.5, -2.5, 0.5, 3.5])), lambda x: np.trunc(x + np.copysign(0.5, x)), 0),
        ("fmodf(x, 0.7f)", NARROW, lambda x: np.fmod(x, float(F32(0.7))), 0),
        # beyond 105615 the compiler's table of 2 / pi is read
        ("sinf(x)", WIDE, np.sin, 2),
        ("cosf(x)", WIDE, np.cos, 2),
        ("tanf(x)", WIDE, np.tan, 4),
    ],
)
def test_math_functions_are_right_to_a_few_ulps(call: str, values: Array, exact: Any, ulps: int) -> None:
    """One wrong direction in an argument reduction is off by thousands."""
    truth = exact(values.astype(np.float64))

    off = np.abs(mathematical(call, values) - truth) / np.spacing(np.abs(truth).astype(F32))

    assert off.max() <= ulps


def test_expf_of_special_values() -> None:
    x = np.array([INF, -INF, NAN, 0, 100, -110], F32)

    np.testing.assert_array_equal(mathematical("expf(x)", x), F32([INF, 0, NAN, 1, INF, 0]))
    np.testing.assert_array_equal(mathematical("expf(x)", x, "-use_fast_math"), F32([INF, 0, NAN, 1, INF, 0]))
