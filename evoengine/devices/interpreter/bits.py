"""Bit fields: funnel shifts, insertion and extraction, logic by table, counts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from evoengine.devices.interpreter.alu import Builder, computed
from evoengine.devices.interpreter.faults import Unsupported
from evoengine.devices.interpreter.layout import TYPES, Array, Layout, Step
from evoengine.devices.interpreter.parser import Instruction


def _funnel(instruction: Instruction, layout: Layout) -> Step:
    """shf.{l,r}.{wrap,clamp}.b32: 32 bits out of the pair b:a, shifted."""
    _, side, mode, type_ = instruction.opcode
    target = layout.target(instruction.operands[0], type_)
    sources = [layout.source(operand, "u32") for operand in instruction.operands[1:]]

    def shift(a: Array, b: Array, c: Array) -> Array:
        amount = (c & np.uint32(31) if mode == "wrap" else np.minimum(c, np.uint32(32))).astype(np.uint64)
        pair = b.astype(np.uint64) << np.uint64(32) | a
        return (pair << amount) >> np.uint64(32) if side == "l" else pair >> amount

    return computed(shift, target, *sources)


def _field(extract: bool) -> Builder:
    """bfe and bfi: a field of `length` bits at `position`; both count modulo 256 and clamp at the width."""

    def build(instruction: Instruction, layout: Layout) -> Step:
        type_ = instruction.opcode[-1]
        bits = TYPES[type_].itemsize * 8
        target = layout.target(instruction.operands[0], type_)
        values = [layout.source(o, f"u{bits}") for o in instruction.operands[1 : 2 if extract else 3]]
        counts = [layout.source(o, "u32") for o in instruction.operands[-2:]]
        one = np.uint64(1)

        def ones(count: Array) -> Array:
            return np.asarray((one << count) - one)  # 1 << 64 is 0 for numpy, so 64 ones come out right

        def bfe(a: Array, position: Array, length: Array) -> Array:
            at, n = (position & np.uint32(255)).astype(np.uint64), (length & np.uint32(255)).astype(np.uint64)
            found = (a.astype(np.uint64) >> at) & ones(n)
            if type_[0] == "s":
                top = np.minimum(at + n - one, np.uint64(bits - 1))
                negative = ((a.astype(np.uint64) >> top) & one).astype(bool) & (n > 0)
                found |= np.where(
                    negative, ~ones(np.minimum(n, np.where(at < bits, bits - at, 0).astype(np.uint64))), 0
                )
            return found

        def bfi(a: Array, b: Array, position: Array, length: Array) -> Array:
            at, n = (position & np.uint32(255)).astype(np.uint64), (length & np.uint32(255)).astype(np.uint64)
            hole = ones(n) << at
            return np.asarray((b.astype(np.uint64) & ~hole) | ((a.astype(np.uint64) << at) & hole))

        return computed(bfe if extract else bfi, target, *values, *counts)

    return build


def _lop3(instruction: Instruction, layout: Layout) -> Step:
    table = int(instruction.operands[4], 0)

    def logic(a: Array, b: Array, c: Array) -> Array:
        result = np.zeros_like(a)
        for i in range(8):
            if table >> i & 1:
                result |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
        return result

    target = layout.target(instruction.operands[0], "b32")
    return computed(logic, target, *(layout.source(operand, "b32") for operand in instruction.operands[1:4]))


def _count_leading_zeros(values: Array) -> Array:
    """Through float64's exponent for 32 bits: exact, since every uint32 is a float64."""
    exponents: Array = np.frexp(values.astype(np.float64))[1]
    return np.where(values == 0, 32, 32 - exponents)


def _bits_of(function: Callable[[Array], Array]) -> Builder:
    """popc and clz: a count of a register's bits, in 32 bits whatever the source's width."""

    def build(instruction: Instruction, layout: Layout) -> Step:
        type_ = instruction.opcode[-1]
        if function is _count_leading_zeros and type_ != "b32":
            raise Unsupported(instruction.text)
        return computed(
            function, layout.target(instruction.operands[0], "u32"), layout.source(instruction.operands[1], type_)
        )

    return build


BUILDERS: dict[str, Builder] = {
    "shf": _funnel, "lop3": _lop3, "bfe": _field(True), "bfi": _field(False),
    "popc": _bits_of(lambda a: np.bitwise_count(a)), "clz": _bits_of(_count_leading_zeros),
}  # fmt: skip
