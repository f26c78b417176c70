"""Loads, stores and cp.async: operands decoded once, addresses checked at every execution."""

from __future__ import annotations

import re

import numpy as np

from evoengine.devices.interpreter.alu import Builder
from evoengine.devices.interpreter.faults import Fault, Unsupported
from evoengine.devices.interpreter.layout import STATE, TYPES, Array, Frame, Layout, Mask, Step
from evoengine.devices.interpreter.memory import LaneState
from evoengine.devices.interpreter.moves import LOCAL_WINDOW, SHARED_WINDOW, copy, full_width
from evoengine.devices.interpreter.parser import Instruction, split_operands

_ADDRESS = re.compile(r"\[([^\]+]+)(?:\+(-?\w+))?\]$")
_ORDERING = ("volatile", "weak", "relaxed", "acquire", "release", "cta", "gpu", "sys")
_CACHING = ("nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "L2::64B", "L2::128B", "L2::256B", "L1::no_allocate")
_EVICTION = ("L1::evict_last", "L1::evict_normal", "L1::evict_first", "L1::evict_unchanged")
_HINTS = frozenset((*_ORDERING, *_CACHING, *_EVICTION))
"""Modifiers that change nothing here."""
_VECTOR = {"v2": 2, "v4": 4}


class Address:
    """`[register]`, `[register+offset]` or `[symbol+offset]` as a frame index and a constant."""

    def __init__(self, operand: str, layout: Layout) -> None:
        match = _ADDRESS.match(operand)
        if match is None:
            raise Unsupported(f"address {operand}")
        self.base, self.offset = match[1], int(match[2] or "0", 0)
        wide = self.base not in layout.entry.registers or layout.width(self.base) == 8
        self.index = layout.source(self.base, "s64" if wide else "u32")

    def of(self, frame: Frame, lanes: Array, mask: Mask) -> Array:
        """Addresses of the executing lanes, int64."""
        values = frame[self.index] if mask is True else frame[self.index][lanes]
        return np.asarray(values.astype(np.int64) + self.offset)


def locate(state: LaneState, space: str, addresses: Array, lanes: Array, width: int, text: str) -> tuple[str, Array]:
    """The space that addresses lie in (for generic ones: all lanes in the same) and their word indices there."""
    if space == "generic":
        window = (addresses[0] & (SHARED_WINDOW | LOCAL_WINDOW)) if len(addresses) else np.int64(0)
        space = {SHARED_WINDOW: "shared", LOCAL_WINDOW: "local"}.get(int(window), "global")
        addresses = addresses - window
    return space, state.spaces[space].locate(addresses, lanes, width, text)


def _parts(instruction: Instruction) -> tuple[str, int, str]:
    """State space, vector length and element type of a load or store."""
    modifiers = list(instruction.opcode[1:-1])
    space, count = "generic", 1
    for modifier in modifiers:
        if modifier.split("::")[0] in ("param", "global", "shared", "local", "const"):
            space = modifier.split("::")[0]
        elif modifier in _VECTOR:
            count = _VECTOR[modifier]
        elif modifier not in _HINTS:
            raise Unsupported(instruction.text)
    if space == "const" or instruction.opcode[-1] not in TYPES:
        raise Unsupported(instruction.text)
    return space, count, instruction.opcode[-1]


def _elements(operand: str) -> tuple[str, ...]:
    return split_operands(operand[1:-1]) if operand[0] == "{" else (operand,)


def _ld(instruction: Instruction, layout: Layout) -> Step:
    space, count, type_ = _parts(instruction)
    address, text = Address(instruction.operands[1], layout), instruction.text
    names = _elements(instruction.operands[0])
    if len(names) != count or len(instruction.operands) != 2:
        raise Unsupported(text)
    if space == "param":
        if address.offset or address.base not in layout.entry.parameters or count > 1:
            raise Unsupported(text)
        return copy(layout.target(names[0], type_), layout.source(address.base, type_))
    targets = [None if name == "_" else full_width(layout, name, type_[0]) for name in names]
    dtype = TYPES[type_ if type_[0] == "s" else f"u{TYPES[type_].itemsize * 8}"]
    width = dtype.itemsize * count

    def run(frame: Frame, mask: Mask) -> None:
        state: LaneState = frame[STATE]
        lanes = state.active(mask)
        where, rows = locate(state, space, address.of(frame, lanes, mask), lanes, width, text)
        data = state.spaces[where].words[width][rows].view(dtype).reshape(-1, count)
        for i, target in enumerate(targets):
            if target is None:
                continue
            if mask is True:
                frame[target][...] = data[:, i]
            else:
                frame[target][lanes] = data[:, i]

    return run


def _st(instruction: Instruction, layout: Layout) -> Step:
    space, count, type_ = _parts(instruction)
    address, text = Address(instruction.operands[0], layout), instruction.text
    dtype = TYPES[f"u{TYPES[type_].itemsize * 8}"]
    sources = [layout.source(name, f"u{dtype.itemsize * 8}") for name in _elements(instruction.operands[1])]
    width = dtype.itemsize * count
    if len(sources) != count or len(instruction.operands) != 2:
        raise Unsupported(text)

    def run(frame: Frame, mask: Mask) -> None:
        state: LaneState = frame[STATE]
        lanes = state.active(mask)
        where, rows = locate(state, space, address.of(frame, lanes, mask), lanes, width, text)
        data = np.empty((len(lanes), count), dtype)
        for i, source in enumerate(sources):
            data[:, i] = frame[source] if mask is True else frame[source][lanes]
        words = state.spaces[where].words[width]
        words[rows] = data.view(words.dtype).reshape(-1, 2) if width == 16 else data.view(words.dtype)[:, 0]

    return run


def _cp(instruction: Instruction, layout: Layout) -> Step:
    """cp.async and its groups. The source is read when the copy is issued; nothing here writes inputs."""
    opcode = instruction.opcode
    if opcode[1] != "async":
        raise Unsupported(instruction.text)
    if opcode[2] == "commit_group":
        return lambda frame, mask: frame[STATE].copies.commit(mask)
    if opcode[2] == "wait_all":
        return lambda frame, mask: frame[STATE].copies.wait_all(mask)
    if opcode[2] == "wait_group":
        allowed = int(instruction.operands[0], 0)
        return lambda frame, mask: frame[STATE].copies.wait(mask, allowed)
    return _cp_async(instruction, layout)


def _cp_async(instruction: Instruction, layout: Layout) -> Step:
    kind, text, operands = instruction.opcode[2], instruction.text, instruction.operands
    spaces = [modifier.split("::")[0] for modifier in instruction.opcode[3:] if not modifier.startswith("L2::")]
    hints = {modifier for modifier in instruction.opcode[3:] if modifier.startswith("L2::")}
    if kind not in ("ca", "cg") or spaces != ["shared", "global"] or not hints <= _HINTS or not 3 <= len(operands) <= 4:
        raise Unsupported(text)
    width = int(operands[2], 0)
    if width not in ((4, 8, 16) if kind == "ca" else (16,)):
        raise Unsupported(text)
    to, from_ = Address(operands[0], layout), Address(operands[1], layout)
    size = layout.source(operands[3], "u32") if len(operands) == 4 else None

    def run(frame: Frame, mask: Mask) -> None:
        state: LaneState = frame[STATE]
        lanes = state.active(mask)
        rows = state.spaces["shared"].locate(to.of(frame, lanes, mask), lanes, width, text)
        source = from_.of(frame, lanes, mask)
        if size is None:
            data = _fetch(state, source, lanes, width, text)
        else:
            data = _filled(state, source, lanes, width, text, frame[size] if mask is True else frame[size][lanes])
        state.copies.issue(lanes, rows, data, width)

    return run


def _fetch(state: LaneState, addresses: Array, lanes: Array, width: int, text: str) -> Array:
    space = state.spaces["global"]
    return space.words[width][space.locate(addresses, lanes, width, text)]


def _filled(state: LaneState, addresses: Array, lanes: Array, width: int, text: str, sizes: Array) -> Array:
    """What a copy with a source size brings: that many bytes, then zeros. A size of 0 touches no global memory."""
    if int(sizes.max()) > width:
        raise Fault(f"{text}: source size {int(sizes.max())} is over {width} B")
    if int(sizes.min()) == width:
        return _fetch(state, addresses, lanes, width, text)
    words = state.spaces["global"].words[width]
    data = np.zeros((len(lanes), *words.shape[1:]), words.dtype)
    whole = sizes == width
    if whole.any():
        data[whole] = _fetch(state, addresses[whole], lanes[whole], width, text)
    for i in np.flatnonzero(~whole & (sizes > 0)):
        if addresses[i] % width:
            raise Fault(f"{text}: misaligned, global address {int(addresses[i])} for {width} B")
        count = int(sizes[i])
        each = addresses[i] + np.arange(count)
        data[i : i + 1].view(np.uint8).reshape(-1)[:count] = _fetch(state, each, np.repeat(lanes[i], count), 1, text)
    return data


BUILDERS: dict[str, Builder] = {"ld": _ld, "st": _st, "cp": _cp}
