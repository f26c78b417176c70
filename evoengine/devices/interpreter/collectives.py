"""Warp collectives whose lanes must all execute the same instruction: ldmatrix and mma.sync; activemask and fences.

Fragment layouts are those of the PTX ISA 9.0, section "Warp-level matrix instructions". They are simple in one
picture: a .b32 register over the 32 lanes of a warp *is* an 8x8 matrix of 16-bit elements in row-major order, since
lane 4r + c holds elements 2c and 2c + 1 of row r.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from evoengine.devices.interpreter.addressing import Address, locate
from evoengine.devices.interpreter.alu import Builder
from evoengine.devices.interpreter.faults import Fault, Unsupported
from evoengine.devices.interpreter.layout import STATE, WARP, Array, Frame, Layout, Mask, Step
from evoengine.devices.interpreter.meetings import ballot
from evoengine.devices.interpreter.memory import LaneState
from evoengine.devices.interpreter.parser import Instruction, split_operands

_MATRIX = (-1, 8, 8)


def whole_warps(mask: Mask, text: str) -> None:
    """Refuse a mask that splits a warp.

    Raises:
        Fault: some lanes of a warp execute the collective and others do not.
    """
    if mask is True:
        return
    warps = mask.reshape(-1, WARP)
    split = warps.any(axis=1) & ~warps.all(axis=1)
    if split.any():
        count = int(warps[split.argmax()].sum())
        raise Fault(f"{text}: divergent, only {count} of the warp's 32 lanes execute it")


def _ldmatrix(instruction: Instruction, layout: Layout) -> Step:
    """Lane 8m + r gives the address of row r of matrix m; each matrix fills one register."""
    text, modifiers = instruction.text, set(instruction.opcode[1:])
    targets = [layout.target(r, "u32", (-1, WARP)) for r in split_operands(instruction.operands[0][1:-1])]
    known = {"sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared::cta", "b16"}
    if not modifiers <= known or f"x{len(targets)}" not in modifiers or "m8n8" not in modifiers:
        raise Unsupported(text)
    address, count, transposed = Address(instruction.operands[1], layout), len(targets), "trans" in modifiers
    space = "shared" if {"shared", "shared::cta"} & modifiers else "generic"

    def run(frame: Frame, mask: Mask) -> None:
        whole_warps(mask, text)
        state: LaneState = frame[STATE]
        lanes = state.active(mask)
        given = lanes.reshape(-1, WARP)[:, : 8 * count].reshape(-1)
        addresses = address.of(frame, lanes, mask).reshape(-1, WARP)[:, : 8 * count].reshape(-1)
        where, rows = locate(state, space, addresses, given, 16, text)
        matrices = state.spaces[where].words[16][rows].view(np.uint16).reshape(-1, count, 8, 8)
        if transposed:
            matrices = np.ascontiguousarray(matrices.transpose(0, 1, 3, 2))
        registers = matrices.reshape(-1, count, 64).view(np.uint32)
        if mask is True:
            for i, target in enumerate(targets):
                frame[target][...] = registers[:, i]
        else:
            warps = lanes[::WARP] // WARP
            for i, target in enumerate(targets):
                frame[target][warps] = registers[:, i]

    return run


def widen(register: Array, dtype: str) -> Array:
    """Half-precision 8x8 matrices as float32 values; bf16 is the upper half of a float32."""
    if dtype == "f16":
        return register
    return np.left_shift(register, np.uint32(16), dtype=np.uint32).view(np.float32)


def halves(layout: Layout, registers: Sequence[str], dtype: str) -> list[int]:
    """Registers of two 16-bit elements each, as 8x8 matrices."""
    return [layout.source(register, "f16x2" if dtype == "f16" else "u16x2", _MATRIX) for register in registers]


def fill_left(left: Array, registers: Iterable[Array], dtype: str) -> None:
    """A's fragment in (warps, 16, depth): registers 0 and 1 hold rows 0-7 and 8-15 of the first 8 columns, 2 and 3 of
    the next 8.
    """
    for i, register in enumerate(registers):
        row, column = 8 * (i % 2), 8 * (i // 2)
        left[:, row : row + 8, column : column + 8] = widen(register, dtype)


def _mma(instruction: Instruction, layout: Layout) -> Step:
    """mma.sync.m16n8k16 (and k8): D = A B + C, products and sums in float32.

    Hardware adds the products of one instruction in an order of its own and truncates alignment shifts; here numpy's
    float32 matmul decides. The difference is below one unit in the last place of the largest term per instruction.
    """
    text, opcode = instruction.text, instruction.opcode
    a_type, b_type, d_type, c_type = opcode[-3], opcode[-2], opcode[-4], opcode[-1]
    shape = opcode[3]
    if (
        opcode[:3] != ("mma", "sync", "aligned")
        or opcode[4:6] != ("row", "col")
        or shape not in ("m16n8k16", "m16n8k8")
    ):
        raise Unsupported(text)
    if a_type != b_type or a_type not in ("f16", "bf16") or c_type != d_type or c_type not in ("f32", "f16"):
        raise Unsupported(text)
    blocks = 2 if shape == "m16n8k16" else 1
    d, a, b, c = (split_operands(operand[1:-1]) for operand in instruction.operands)
    if (len(a), len(b)) != (2 * blocks, blocks) or len(c) != len(d) or len(d) != (4 if d_type == "f32" else 2):
        raise Unsupported(text)
    a_in, b_in = halves(layout, a, a_type), halves(layout, b, a_type)
    part = ("f32", (-1, 8, 4)) if d_type == "f32" else ("f16x2", _MATRIX)
    c_in = [layout.source(register, *part) for register in c]
    d_out = [layout.target(register, *part) for register in d]
    columns = [slice(0, None, 2), slice(1, None, 2)] if d_type == "f32" else [slice(None)]
    places = [(slice(row, row + 8), column) for row in (0, 8) for column in columns]

    def run(frame: Frame, mask: Mask) -> None:
        whole_warps(mask, text)
        warps = len(frame[c_in[0]])
        left, right = _operands(warps, 8 * blocks)
        fill_left(left, (frame[register] for register in a_in), a_type)
        for i, register in enumerate(b_in):  # B is .col: lane 4n + k/2 holds column n, so the register is B transposed
            right[:, :, 8 * i : 8 * i + 8] = widen(frame[register], a_type)
        product = left @ right.transpose(0, 2, 1)
        keep: Mask = mask if mask is True else mask.reshape(-1, WARP)[:, :1, None]
        for source, target, (rows, column) in zip(c_in, d_out, places, strict=True):
            total = product[:, rows, column] + frame[source]
            np.copyto(frame[target], total, casting="unsafe", where=keep)

    return run


@lru_cache(maxsize=8)
def _operands(warps: int, depth: int) -> tuple[Array, Array]:
    """Scratch for A (16 rows) and B transposed (8 columns), overwritten by every mma."""
    return np.empty((warps, 16, depth), np.float32), np.empty((warps, 8, depth), np.float32)


def _activemask(instruction: Instruction, layout: Layout) -> Step:
    target = layout.target(instruction.operands[0], "b32")

    def run(frame: Frame, mask: Mask) -> None:
        executing = np.ones(len(frame[target]), bool) if mask is True else mask
        np.copyto(frame[target], ballot(executing), where=mask)

    return run


def _fence(instruction: Instruction, layout: Layout) -> Step:
    """Fences order nothing here, a warp's accesses take effect in program order, but that of the async proxy counts."""
    if "proxy" not in instruction.opcode:
        return lambda frame, mask: None
    if instruction.opcode not in (("fence", "proxy", "async"), ("fence", "proxy", "async", "shared::cta")):
        raise Unsupported(instruction.text)

    def run(frame: Frame, mask: Mask) -> None:
        state: LaneState = frame[STATE]
        state.copies.shared.fence(np.unique(state.active(mask) // WARP))

    return run


BUILDERS: dict[str, Builder] = {
    "ldmatrix": _ldmatrix,
    "mma": _mma,
    "activemask": _activemask,
    "membar": _fence,
    "fence": _fence,
    "nanosleep": lambda instruction, layout: lambda frame, mask: None,
}
