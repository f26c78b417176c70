"""Half-precision numbers as numpy sees them: rounding, and the bits a kernel stores."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[np.float32]]
"""Tensors by name; values that the tensors' own dtypes hold exactly."""
References = dict[str, NDArray[np.float64]]

BITS: dict[str, np.dtype[Any]] = {
    "fp16": np.dtype(np.uint16),
    "bf16": np.dtype(np.uint16),
    "fp32": np.dtype(np.uint32),
    "int32": np.dtype(np.uint32),
}
"""Words of each dtype; int32 is for counters in scratch, which no conversion here concerns."""
ROUNDING = {"fp16": 2.0**-11, "bf16": 2.0**-8, "fp32": 2.0**-24}
"""Largest relative error of rounding a normal number to the dtype."""


def to_bits(values: NDArray[np.float32], dtype: str) -> NDArray[np.unsignedinteger]:
    """float32 values rounded to nearest even in `dtype`, as unsigned words of its width (NaN stays NaN)."""
    values = np.ascontiguousarray(values, np.float32)
    if dtype == "fp32":
        return values.view(np.uint32)
    if dtype == "fp16":
        with np.errstate(over="ignore"):  # beyond 65504 is infinity, as on the device
            return values.astype(np.float16).view(np.uint16)
    words = values.view(np.uint32)
    rounded = (words + np.uint32(0x7FFF) + ((words >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)


def from_bits(words: NDArray[np.unsignedinteger], dtype: str) -> NDArray[np.float32]:
    """The inverse of `to_bits`, exact."""
    if dtype == "fp32":
        return np.ascontiguousarray(words, np.uint32).view(np.float32)
    if dtype == "fp16":
        return np.ascontiguousarray(words, np.uint16).view(np.float16).astype(np.float32)
    return (np.ascontiguousarray(words, np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


def rounded(values: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """The nearest values that `dtype` holds, still as float32."""
    return from_bits(to_bits(values, dtype), dtype)
