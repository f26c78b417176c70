"""Loads, stores and cp.async: operands decoded once, addresses checked at every execution."""

from __future__ import annotations

import numpy as np

from evoengine.devices.interpreter.addressing import HINTS, Address, locate, space_of, without_policy
from evoengine.devices.interpreter.alu import Builder
from evoengine.devices.interpreter.faults import Fault, Unsupported
from evoengine.devices.interpreter.layout import STATE, TYPES, Array, Frame, Layout, Mask, Step
from evoengine.devices.interpreter.mbarriers import cp_async_arrive
from evoengine.devices.interpreter.memory import LaneState
from evoengine.devices.interpreter.moves import copy, full_width
from evoengine.devices.interpreter.parser import Instruction, split_operands

_VECTOR = {"v2": 2, "v4": 4}


def _parts(instruction: Instruction) -> tuple[str, int, str]:
    """State space, vector length and element type of a load or store."""
    modifiers = list(instruction.opcode[1:-1])
    space, count = "generic", 1
    for modifier in modifiers:
        named = space_of(modifier)
        if named:
            space = named
        elif modifier in _VECTOR:
            count = _VECTOR[modifier]
        elif modifier not in HINTS:
            raise Unsupported(instruction.text)
    if space == "const" or instruction.opcode[-1] not in TYPES:
        raise Unsupported(instruction.text)
    return space, count, instruction.opcode[-1]


def _elements(operand: str) -> tuple[str, ...]:
    return split_operands(operand[1:-1]) if operand[0] == "{" else (operand,)


def _ld(instruction: Instruction, layout: Layout) -> Step:
    space, count, type_ = _parts(instruction)
    operands, text = without_policy(instruction), instruction.text
    address, names = Address(operands[1], layout), _elements(operands[0])
    if len(names) != count or len(operands) != 2:
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
    operands, text = without_policy(instruction), instruction.text
    address, dtype = Address(operands[0], layout), TYPES[f"u{TYPES[type_].itemsize * 8}"]
    sources = [layout.source(name, f"u{dtype.itemsize * 8}") for name in _elements(operands[1])]
    width = dtype.itemsize * count
    if len(sources) != count or len(operands) != 2:
        raise Unsupported(text)

    def run(frame: Frame, mask: Mask) -> None:
        state: LaneState = frame[STATE]
        lanes = state.active(mask)
        where, rows = locate(state, space, address.of(frame, lanes, mask), lanes, width, text)
        data = np.empty((len(lanes), count), dtype)
        for i, source in enumerate(sources):
            data[:, i] = frame[source] if mask is True else frame[source][lanes]
        words = state.spaces[where].words[width]
        state.spaces[where].wrote(rows, width)
        words[rows] = data.view(words.dtype).reshape(-1, 2) if width == 16 else data.view(words.dtype)[:, 0]

    return run


def _cp(instruction: Instruction, layout: Layout) -> Step:
    """cp.async and its groups. The source is read when the copy is issued; nothing here writes inputs."""
    opcode = instruction.opcode
    if opcode[1] != "async":
        raise Unsupported(instruction.text)
    if opcode[2:4] == ("mbarrier", "arrive"):
        return cp_async_arrive(instruction, layout)
    if opcode[2] == "commit_group":
        return lambda frame, mask: frame[STATE].copies.commit(mask)
    if opcode[2] == "wait_all":
        return lambda frame, mask: frame[STATE].copies.wait_all(mask)
    if opcode[2] == "wait_group":
        allowed = int(instruction.operands[0], 0)
        return lambda frame, mask: frame[STATE].copies.wait(mask, allowed)
    return _cp_async(instruction, layout)


def _cp_async(instruction: Instruction, layout: Layout) -> Step:
    kind, text, operands = instruction.opcode[2], instruction.text, without_policy(instruction)
    spaces = [space_of(modifier) for modifier in instruction.opcode[3:] if modifier not in HINTS]
    if kind not in ("ca", "cg") or spaces != ["shared", "global"] or not 3 <= len(operands) <= 4:
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


def _prefetch(instruction: Instruction, layout: Layout) -> Step:
    """Nothing, and nothing is checked: a prefetch outside every buffer is harmless."""
    return lambda frame, mask: None


def _createpolicy(instruction: Instruction, layout: Layout) -> Step:
    """A cache policy is a word that nobody reads here."""
    target = layout.target(instruction.operands[0], "b64")
    return lambda frame, mask: np.copyto(frame[target], 0, where=mask)


BUILDERS: dict[str, Builder] = {
    "ld": _ld,
    "st": _st,
    "cp": _cp,
    "prefetch": _prefetch,
    "createpolicy": _createpolicy,
}
