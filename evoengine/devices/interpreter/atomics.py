"""atom and red: lanes that meet at one address go one after the other.

CTAs of a mode go in its order, ascending or descending; `tickets` says what else the modes make of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from evoengine.devices.interpreter.addressing import HINTS, Address, locate, space_of
from evoengine.devices.interpreter.alu import Builder
from evoengine.devices.interpreter.faults import Unsupported
from evoengine.devices.interpreter.layout import STATE, TYPES, Frame, Layout, Mask, Step
from evoengine.devices.interpreter.memory import LaneState
from evoengine.devices.interpreter.parser import Instruction

_OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": lambda old, value: old + value,
    "inc": lambda old, limit: 0 if old >= limit else old + 1,
    "dec": lambda old, limit: limit if old == 0 or old > limit else old - 1,
    "min": min,
    "max": max,
    "and": lambda old, value: old & value,
    "or": lambda old, value: old | value,
    "xor": lambda old, value: old ^ value,
    "exch": lambda old, value: value,
    "cas": lambda old, expected, value: value if old == expected else old,
}


def _atomic(instruction: Instruction, layout: Layout) -> Step:
    text, operands, type_ = instruction.text, instruction.operands, instruction.opcode[-1]
    spaces = [part for part in map(space_of, instruction.opcode[1:-1]) if part]
    names = [part for part in instruction.opcode[1:-1] if part not in HINTS and not space_of(part)]
    gives = instruction.opcode[0] == "atom"
    if len(names) != 1 or names[0] not in _OPERATIONS or type_ not in TYPES or TYPES[type_].itemsize < 4:
        raise Unsupported(text)
    if (type_[0] == "f" and names[0] not in ("add", "exch")) or len(operands) != 2 + gives + (names[0] == "cas"):
        raise Unsupported(text)
    operation, space, dtype = _OPERATIONS[names[0]], (spaces or ["generic"])[0], TYPES[type_]
    target = layout.sink(operands[0], type_) if gives else None
    address = Address(operands[gives], layout)
    sources = [layout.source(operand, type_) for operand in operands[gives + 1 :]]
    wrap = None if dtype.kind == "f" else 2 ** (8 * dtype.itemsize)

    def run(frame: Frame, mask: Mask) -> None:
        state: LaneState = frame[STATE]
        lanes = state.active(mask)
        where, rows = locate(state, space, address.of(frame, lanes, mask), lanes, dtype.itemsize, text)
        words = state.spaces[where].words[dtype.itemsize].view(dtype)
        state.spaces[where].wrote(rows, dtype.itemsize)
        values = [frame[source][lanes] for source in sources]
        before = np.empty(len(lanes), dtype)
        for i in np.argsort(state.turns[lanes], kind="stable").tolist():
            old = before[i] = words[rows[i]]
            if wrap is None:
                words[rows[i]] = operation(old, *(value[i] for value in values))
            else:
                result = operation(int(old), *(int(value[i]) for value in values)) % wrap
                words[rows[i]] = np.array(result, f"u{dtype.itemsize}").view(dtype)
        if target is not None:
            frame[target][lanes] = before

    return run


BUILDERS: dict[str, Builder] = {"atom": _atomic, "red": _atomic}
