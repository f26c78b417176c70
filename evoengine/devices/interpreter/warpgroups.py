"""What the four warps of a warpgroup must do alike: wgmma and setmaxnreg, the same ones with the same operands.

The warps do not meet here, as that would order accesses to shared memory which a GPU leaves unordered: what each has
executed is compared at the end of the launch. Semantics: PTX ISA 9.0, "Asynchronous warpgroup level matrix
instructions" and "setmaxnreg".
"""

from __future__ import annotations

import numpy as np

from evoengine.devices.interpreter.collectives import whole_warps
from evoengine.devices.interpreter.faults import Fault
from evoengine.devices.interpreter.layout import STATE, WARP, Array, Frame, Layout, Mask
from evoengine.devices.interpreter.memory import LaneState, align
from evoengine.devices.interpreter.parser import Instruction

WARPGROUP = 4
"""Warps of a warpgroup; the first one's number is a multiple of it."""
_MIX = np.uint64(0x9E3779B97F4A7C15)


def executed(warps: int, groups: int) -> Array:
    """For each warp, of whole warpgroups, in each CTA of each mode: a digest of what it did with its warpgroup."""
    return np.zeros((align(warps, WARPGROUP), groups), np.uint64)


def unlike_warps(digests: Array) -> tuple[str, int] | None:
    """What is wrong where warps of a warpgroup have not executed the same, and the first group that it is wrong in."""
    warpgroups = digests.reshape(-1, WARPGROUP, digests.shape[1])
    unlike = np.argwhere((warpgroups != warpgroups[:, :1]).any(axis=1))
    if not len(unlike):
        return None
    number, group = unlike[0].tolist()
    first, last = WARPGROUP * number, WARPGROUP * number + WARPGROUP - 1
    return f"warps {first} to {last} do not all execute the same wgmma and setmaxnreg with the same operands", group


class Aligned:
    """What wgmma and setmaxnreg have in common: whole warps execute them, and the same in a warpgroup."""

    def __init__(self, instruction: Instruction, layout: Layout) -> None:
        self.name = ".".join(instruction.opcode)  # a fault's text would drown in 128 registers
        self._hash = np.uint64(hash(instruction.text) & 0xFFFFFFFF)
        self._number = layout.source("%warpid", "u32", (-1, WARP))

    def warps(self, frame: Frame, mask: Mask) -> Array:
        """The executing warps of the slot."""
        whole_warps(mask, self.name)
        state: LaneState = frame[STATE]
        warps = state.active(mask)[::WARP] // WARP
        self.note(frame, warps, self._hash)
        return warps

    def numbers(self, frame: Frame, warps: Array) -> Array:
        """Which warp of the CTA each of these is."""
        return np.asarray(frame[self._number][warps, 0])

    def note(self, frame: Frame, warps: Array, value: Array | np.uint64) -> None:
        """`value` has to be the same in the whole warpgroup."""
        digests = frame[STATE].products.executed
        place = self.numbers(frame, warps), warps
        digests[place] = (digests[place] ^ value) * _MIX

    def uniform(self, frame: Frame, warps: Array, operand: int) -> Array:
        """An operand's value in each warp.

        Raises:
            Fault: lanes of a warp have different ones.
        """
        values = frame[operand][warps]
        if (values != values[:, :1]).any():
            raise Fault(f"{self.name}: lanes of a warp give different descriptors or predicates")
        self.note(frame, warps, values[:, 0].astype(np.uint64))
        return np.asarray(values[:, 0])
