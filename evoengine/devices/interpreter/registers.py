"""setmaxnreg: warps that give registers up, and warps that wait until enough of them are free.

Semantics: PTX ISA 9.0, "setmaxnreg". A CTA has a pool of what its warps have given up; a warp that grows takes from it,
and waits while it is too small. Without launch bounds the instruction "may have no effect", and ptxas ignores it. Which
values a warp keeps in how many registers is ptxas's business: here they are never lost. A warp that exits gives nothing
back, as the ISA does not say that it does.

Not modelled: that a warpgroup has to meet between two of them, and that equal ones at two places are not the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evoengine.devices.interpreter.barriers import ranges
from evoengine.devices.interpreter.faults import Fault, Unsupported
from evoengine.devices.interpreter.layout import Array, Layout
from evoengine.devices.interpreter.memory import align
from evoengine.devices.interpreter.parser import Entry, Instruction
from evoengine.devices.interpreter.warpgroups import Aligned
from evoengine.hardware import launch_bound_registers

SM_REGISTERS = 65536
"""Of compute capability 9.0 (CUDA C++ Programming Guide 13.0, "Technical Specifications")."""


@dataclass(frozen=True, slots=True)
class Resize:
    """A decoded setmaxnreg: its warps have `registers` a thread from then on."""

    text: str
    aligned: Aligned
    registers: int
    grows: bool


def resize(instruction: Instruction, layout: Layout, at_launch: int | None) -> Resize:
    """Raises Unsupported for other forms, and in a kernel whose registers at the launch no bound tells."""
    opcode, text = instruction.opcode, instruction.text
    if instruction.guard or len(opcode) != 5 or opcode[1] not in ("inc", "dec") or len(instruction.operands) != 1:
        raise Unsupported(text)
    if opcode[2:] != ("sync", "aligned", "u32") or not instruction.operands[0].isdigit():
        raise Unsupported(text)
    registers = int(instruction.operands[0])
    if not 24 <= registers <= 256 or registers % 8:
        raise Unsupported(f"{text}: the ISA has multiples of 8 from 24 to 256")
    if at_launch is None:
        raise Unsupported(f"{text} in a kernel without both of .maxntid and .minnctapersm, or .maxnreg")
    return Resize(text, Aligned(instruction, layout), registers, _grows(instruction))


def launch_registers(entry: Entry) -> int | None:
    """Registers a thread at the launch of a kernel with setmaxnreg, None where no bound says so.

    What the bounds leave, but no more than the kernel ever asks for, as ptxas 13.0 has it.
    """
    bounds = entry.bounds
    if "maxnreg" in bounds:
        bound = align(bounds["maxnreg"], 8)
    elif "maxntid" in bounds and "minnctapersm" in bounds:
        bound = min(256, launch_bound_registers(SM_REGISTERS, bounds["maxntid"], bounds["minnctapersm"]))
    else:
        return None
    asked = [int(i.operands[0]) for i in entry.instructions if _grows(i) and i.operands[0].isdigit()]
    return min(bound, max(asked, default=bound))


def _grows(instruction: Instruction) -> bool:
    return instruction.opcode[:2] == ("setmaxnreg", "inc")


class RegisterPools:
    """Registers a thread of every warp, and how many each CTA's warps have given up. Warps are named by slot."""

    def __init__(self, slots: int, groups: int, registers: int) -> None:
        self._held = np.full((slots, groups), registers, np.int64)
        self._wanted: Array = np.zeros((slots, groups), np.int64)
        self._free = np.zeros(groups, np.int64)

    def resize(self, slot: int, group: int, resize: Resize) -> list[int]:
        """Give a warp's registers up, or have it wait for more. Returns the slots that go on because of it.

        Raises:
            Fault: it grows to fewer than it has, or shrinks to more.
        """
        held = int(self._held[slot, group])
        if resize.registers < held if resize.grows else resize.registers > held:
            raise Fault(f"{resize.text}: its warp has {held} a thread, inc takes as many at least and dec at most")
        if resize.grows and resize.registers > held:
            self._wanted[slot, group] = resize.registers - held
            return self._serve(group)
        self._held[slot, group] = resize.registers
        self._free[group] += held - resize.registers
        return [slot, *self._serve(group)]

    def _serve(self, group: int) -> list[int]:
        served = []
        for slot in np.flatnonzero(self._wanted[:, group]).tolist():
            wanted = int(self._wanted[slot, group])
            if wanted <= self._free[group]:
                self._free[group] -= wanted
                self._held[slot, group] += wanted
                self._wanted[slot, group] = 0
                served.append(slot)
        return served

    def describe(self, group: int, warps: Sequence[int]) -> str:
        """Who waits for registers, for the message of a deadlock; `warps[slot]` is a slot's warp."""
        wanted = self._wanted[:, group]
        return "; ".join(
            f"warps {ranges(warps[slot] for slot in np.flatnonzero(wanted == more).tolist())} wait for {more} more "
            f"registers a thread each, {self._free[group]} are free"
            for more in np.unique(wanted[wanted > 0]).tolist()
        )
