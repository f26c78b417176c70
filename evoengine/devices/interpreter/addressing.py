"""Where a memory instruction points: its address operand, its space, and the modifiers that change nothing here."""

from __future__ import annotations

import re

import numpy as np

from evoengine.devices.interpreter.faults import Unsupported
from evoengine.devices.interpreter.layout import Array, Frame, Layout, Mask
from evoengine.devices.interpreter.memory import LaneState
from evoengine.devices.interpreter.moves import LOCAL_WINDOW, SHARED_WINDOW
from evoengine.devices.interpreter.parser import Instruction

_ADDRESS = re.compile(r"\[([^\]+]+)(?:\+(-?\w+))?\]$")
_ORDERING = ("volatile", "weak", "relaxed", "acquire", "release", "acq_rel", "cta", "gpu", "sys")
_CACHING = ("nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "L2::64B", "L2::128B", "L2::256B", "L1::no_allocate")
_EVICTION = ("L1::evict_last", "L1::evict_normal", "L1::evict_first", "L1::evict_unchanged")
_POLICY = "L2::cache_hint"
HINTS = frozenset((*_ORDERING, *_CACHING, *_EVICTION, _POLICY))
"""Modifiers that change nothing here."""
SPACES = frozenset({"param", "global", "shared", "local", "const"})


def space_of(modifier: str) -> str | None:
    """The state space that a modifier names, with or without `::cta`."""
    space, _, sub = modifier.partition("::")
    return space if space in SPACES and sub in ("", "cta") else None


def without_policy(instruction: Instruction) -> tuple[str, ...]:
    """The operands but the cache policy that `.L2::cache_hint` brings, always the last one."""
    return instruction.operands[:-1] if _POLICY in instruction.opcode else instruction.operands


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
