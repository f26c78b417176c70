"""Moves, packing, conversion between types, and byte permutation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from evoengine.devices.interpreter.alu import Builder, computed
from evoengine.devices.interpreter.faults import Unsupported
from evoengine.devices.interpreter.layout import TYPES, Array, Frame, Layout, Mask, Step
from evoengine.devices.interpreter.parser import Instruction, split_operands
from evoengine.dtypes import from_bits, to_bits

SHARED_WINDOW = 1 << 56
LOCAL_WINDOW = 1 << 57
"""Where shared and local memory lie in the generic address space; global addresses are generic ones, as on a GPU."""

_TO_INTEGER: dict[str, Callable[[Array], Array]] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def copy(target: int, source: int) -> Step:
    def run(frame: Frame, mask: Mask) -> None:
        np.copyto(frame[target], frame[source], where=mask)

    return run


def full_width(layout: Layout, register: str, kind: str) -> int:
    """A register written whole with the sign rule of `kind` (s or u): a narrower value is extended into it."""
    return layout.target(register, f"{'s' if kind == 's' else 'u'}{layout.width(register) * 8}")


def _mov(instruction: Instruction, layout: Layout) -> Step:
    type_, (target, source) = instruction.opcode[-1], instruction.operands
    if target[0] == "{":
        return _unpack(split_operands(target[1:-1]), source, type_, layout)
    if source[0] == "{":
        return _pack(target, split_operands(source[1:-1]), type_, layout)
    return copy(layout.target(target, type_), layout.source(source, type_))


def _pack(target: str, pieces: tuple[str, ...], type_: str, layout: Layout) -> Step:
    """mov.b64 d, {a, b}: the first element is the low one."""
    part = f"u{TYPES[type_].itemsize * 8 // len(pieces)}"
    out, sources = layout.target(target, type_), [layout.source(piece, part) for piece in pieces]
    dtype = TYPES[type_]

    def pack(*values: Array) -> Array:
        return np.stack(values, axis=1).view(dtype)[:, 0]

    return computed(pack, out, *sources)


def _unpack(targets: tuple[str, ...], source: str, type_: str, layout: Layout) -> Step:
    part = f"u{TYPES[type_].itemsize * 8 // len(targets)}"
    value = layout.source(source, f"u{TYPES[type_].itemsize * 8}")
    outs = [layout.sink(target, part) for target in targets]
    dtype = TYPES[part]

    def run(frame: Frame, mask: Mask) -> None:
        pieces = frame[value].copy().view(dtype).reshape(-1, len(outs))
        for i, out in enumerate(outs):
            if out is not None:
                np.copyto(frame[out], pieces[:, i], where=mask)

    return run


def _cvta(instruction: Instruction, layout: Layout) -> Step:
    """Between a space's own addresses and generic ones."""
    space, type_ = instruction.opcode[-2], instruction.opcode[-1]
    window = {"global": 0, "const": 0, "param": 0, "shared": SHARED_WINDOW, "local": LOCAL_WINDOW}.get(space)
    if window is None or type_ != "u64":
        raise Unsupported(instruction.text)
    step = np.uint64(window)
    function = np.subtract if "to" in instruction.opcode else np.add
    target, source = (layout.source(operand, "u64") for operand in instruction.operands)
    return computed(lambda a: function(a, step), target, source)


def _cvt(instruction: Instruction, layout: Layout) -> Step:
    *modifiers, to, from_ = instruction.opcode[1:]
    saturate = "sat" in modifiers
    unknown = set(modifiers) - {"rn", "ftz", "sat", *_TO_INTEGER, "rz", "pack"}
    if unknown or "pack" in modifiers or ("rz" in modifiers and to[0] == "f"):
        raise Unsupported(instruction.text)
    target = instruction.operands[0]
    if to in ("f16x2", "bf16x2"):
        half = to[:-2]
        high, low = (layout.source(operand, from_) for operand in instruction.operands[1:])
        if from_ != "f32" or saturate:
            raise Unsupported(instruction.text)
        return computed(lambda a, b: _halves(b, a, half), layout.target(target, "b32"), high, low)
    source = instruction.operands[1]
    floating = from_[0] in "fb"
    if from_ == "bf16":
        read, from_ = _from_bf16, "u16"
    else:
        read = _unchanged
    value = layout.source(source, from_)
    if to == "bf16":
        return computed(lambda a: to_bits(read(a).astype(np.float32), "bf16"), layout.target(target, "b16"), value)
    if to[0] == "f":
        round_ = next((_TO_INTEGER[m] for m in modifiers if m in _TO_INTEGER), None)

        def convert(values: Array) -> Array:
            result = read(values)
            if round_ is not None:
                result = round_(result)
            if saturate:
                result = np.where(np.isnan(result), 0, np.clip(result, 0, 1))
            return result

        return computed(convert, layout.target(target, to), value)
    out, dtype = full_width(layout, target, to[0]), TYPES[to]
    if not floating:
        return computed(_integer(TYPES[from_], dtype, saturate), out, value)
    rounding = next((_TO_INTEGER[m] for m in modifiers if m in _TO_INTEGER), None)
    if rounding is None:
        raise Unsupported(instruction.text)
    low_bound, high_bound = np.iinfo(dtype).min, np.iinfo(dtype).max

    def clamp(values: Array) -> Array:
        whole = rounding(read(values).astype(np.float64))
        inside = np.where((whole >= low_bound) & (whole < float(high_bound)), whole, 0).astype(dtype)
        inside = np.where(whole >= float(high_bound), dtype.type(high_bound), inside)
        return np.where(whole < low_bound, dtype.type(low_bound), inside)  # NaN becomes 0

    return computed(clamp, out, value)


def _unchanged(values: Array) -> Array:
    return values


def _from_bf16(values: Array) -> Array:
    return from_bits(values, "bf16")


def _integer(from_: np.dtype[Any], to: np.dtype[Any], saturate: bool) -> Callable[[Array], Array]:
    if not saturate:
        return lambda values: values.astype(to)
    low = max(np.iinfo(from_).min, np.iinfo(to).min)
    high = min(np.iinfo(from_).max, np.iinfo(to).max)
    return lambda values: np.clip(values, low, high).astype(to)


def _halves(low: Array, high: Array, dtype: str) -> Array:
    """Two float32 rounded to half precision and packed into 32 bits."""
    words = np.empty((len(low), 2), np.uint16)
    if dtype == "f16":
        words[:, 0] = low.astype(np.float16).view(np.uint16)
        words[:, 1] = high.astype(np.float16).view(np.uint16)
    else:
        words[:, 0], words[:, 1] = to_bits(low, "bf16"), to_bits(high, "bf16")
    return words.view(np.uint32)[:, 0]


def _prmt(instruction: Instruction, layout: Layout) -> Step:
    """prmt.b32 in its default mode: each result byte is one of the 8 of b:a, or that byte's sign repeated."""
    if instruction.opcode != ("prmt", "b32"):
        raise Unsupported(instruction.text)

    def permute(a: Array, b: Array, selector: Array) -> Array:
        candidates = np.stack((a, b), axis=1).view(np.uint8)
        nibbles = (selector[:, None] >> np.array([0, 4, 8, 12], np.uint32)) & np.uint32(15)
        picked = np.take_along_axis(candidates, (nibbles & np.uint32(7)).astype(np.intp), axis=1)
        signs = np.where(picked & 0x80, 0xFF, 0).astype(np.uint8)
        return np.where(nibbles & np.uint32(8), signs, picked).astype(np.uint8).view(np.uint32)[:, 0]

    target = layout.target(instruction.operands[0], "b32")
    return computed(permute, target, *(layout.source(operand, "u32") for operand in instruction.operands[1:]))


BUILDERS: dict[str, Builder] = {"mov": _mov, "cvta": _cvta, "cvt": _cvt, "prmt": _prmt}
