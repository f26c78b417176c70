"""add, sub, mul and fma of float32 that round toward an infinity or zero: .rm, .rp, .rz (PTX ISA 9.0, 9.7.3 and 6.5.2).

expf rounds a sum down to cut its argument into whole and fraction, log1pf and roundf truncate one: to round those to
nearest would give another function, not a less exact one.

A product of two float32 is exact in float64, and so is a sum of two float64 once split into its rounded value and its
error. From both follows on which side of the exact result float32's nearest neighbour lies, and that is stepped over
where the direction asks for the other one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from evoengine.devices.interpreter.layout import Array

MODES = frozenset({"rm", "rp", "rz"})


def directed(operation: str, mode: str) -> Callable[..., Array]:
    """`operation` (add, sub, mul, fma or mad, which is fma) of float32 arrays, rounded as `mode` says."""

    def add(a: Array, b: Array) -> Array:
        return _sum(a.astype(np.float64), b.astype(np.float64), mode)

    def sub(a: Array, b: Array) -> Array:
        return _sum(a.astype(np.float64), -b.astype(np.float64), mode)

    def mul(a: Array, b: Array) -> Array:
        return _rounded(np.multiply(a, b, dtype=np.float64), np.zeros(a.shape), mode)

    def fma(a: Array, b: Array, c: Array) -> Array:
        return _sum(np.multiply(a, b, dtype=np.float64), c.astype(np.float64), mode)

    functions: dict[str, Callable[..., Array]] = {"add": add, "sub": sub, "mul": mul, "fma": fma, "mad": fma}
    return functions[operation]


def _sum(a: Array, b: Array, mode: str) -> Array:
    """a + b, which no product of float32 makes overflow in float64. The error is Knuth's TwoSum."""
    total = a + b
    part = total - a
    error = (a - (total - part)) + (b - part)
    if mode == "rm":  # of zeros only +0 + +0 is +0, everything else that cancels is -0
        negative = np.signbit(a) | np.signbit(b)
        total = np.where(total == 0, np.where(negative, -0.0, 0.0), total)
    return _rounded(total, error, mode)


def _rounded(total: Array, error: Array, mode: str) -> Array:
    """total + error, exactly, as a float32. NaN compares false and stays, as do infinities, whose error is NaN.

    The step back from an infinity that only rounding made gives the largest finite number, as it must.
    """
    nearest = total.astype(np.float32)
    above = (nearest > total) | ((nearest == total) & (error < 0))
    below = (nearest < total) | ((nearest == total) & (error > 0))
    if mode == "rz":
        above, below = above & (total > 0), below & (total < 0)
    down = np.nextafter(nearest, np.float32(-np.inf))
    up = np.nextafter(nearest, np.float32(np.inf))
    if mode != "rp":
        nearest = np.where(above, down, nearest)
    return np.asarray(np.where(below, up, nearest) if mode != "rm" else nearest)
