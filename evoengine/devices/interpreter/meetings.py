"""shfl.sync, vote.sync and bar.warp.sync: the lanes that a member mask names wait for each other and exchange values.

Since sm_70 they need not meet at one instruction: NVVM copies a shuffle into both arms of a divergent branch, and the
arms wait for each other. So an instruction here only says what a lane brings and what it makes of what all brought;
`WarpMeetings` holds lanes back until every named one that has not exited is there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evoengine.devices.interpreter.faults import Fault, Unsupported
from evoengine.devices.interpreter.layout import WARP, Array, Frame, Layout, Mask
from evoengine.devices.interpreter.parser import Instruction

FULL = 0xFFFFFFFF
Finish = Callable[[Frame, Array, Mask, Mask], None]
"""Called with the frame, what every lane brought, the lanes that met, and those of them to serve."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """A decoded instruction. `brings` and `members` are frame indices of 32-bit values; only equal `kind`s meet."""

    kind: tuple[str, ...]
    text: str
    brings: int
    members: int
    finish: Finish

    def immediate(self, frame: Frame, mask: Mask) -> bool:
        """Exchange at once where the executing lanes are whole warps that name all their lanes; False if not."""
        if not (frame[self.members] == FULL).all():
            return False
        if mask is not True:
            warps = mask.reshape(-1, WARP)
            if (warps.any(axis=1) != warps.all(axis=1)).any():
                return False
        self.finish(frame, frame[self.brings], mask, mask)
        return True


class WarpMeetings:
    """Lanes of one slot that wait for others of their warp."""

    def __init__(self, lanes: int) -> None:
        self.waiting = np.zeros(lanes, bool)
        self._brought, self._named, self._kind = (np.zeros(lanes, np.uint32) for _ in range(3))
        self._lane = (np.arange(lanes) % WARP).astype(np.uint32)

    def wait(self, meeting: Meeting, frame: Frame, mask: Mask) -> None:
        members = frame[meeting.members]
        stranger = (members >> self._lane & np.uint32(1) == 0) & mask
        if stranger.any():
            raise Fault(f"{meeting.text}: a lane executes it that its member mask does not name")
        np.copyto(self._brought, frame[meeting.brings], where=mask)
        np.copyto(self._named, members, where=mask)
        np.copyto(self._kind, np.uint32(hash(meeting.kind) & FULL), where=mask)
        np.copyto(self.waiting, True, where=mask)

    def met(self, exited: Array) -> Array | None:
        """Lanes whose named lanes all wait too or have exited, None if there are none."""
        if not self.waiting.any():
            return None
        complete = self.waiting & (self._named & ~ballot(self.waiting | exited) == 0)
        return complete if complete.any() else None

    def finish(self, meeting: Meeting, frame: Frame, met: Array, serve: Array) -> None:
        """Give the lanes of `serve` their results; they wait no more.

        Raises:
            Fault: lanes of one warp met at instructions of different kinds.
        """
        kinds = np.where(met, self._kind, np.uint32(0)).reshape(-1, WARP).max(axis=1, keepdims=True)
        if ((np.repeat(kinds, WARP) != self._kind) & met).any():
            raise Fault(f"{meeting.text}: divergent, lanes of its warp wait at another kind of collective")
        meeting.finish(frame, self._brought, met, serve)
        self.waiting &= ~serve


def next_block(places: Array, aligned: Sequence[bool], nowhere: int) -> int:
    """The lowest block that lanes are at; `places` is `nowhere` for lanes that cannot go on.

    Lanes at one of `aligned` collectives stay behind, `nowhere` too, while others of their warp can go on: .sync waits.
    """
    number = int(places.min())
    while number != nowhere and aligned[number]:
        warps = places.reshape(-1, WARP)
        here = warps == number
        apart = here.any(axis=1) & (~here & (warps != nowhere)).any(axis=1)
        if not apart.any():
            break
        warps[here & apart[:, None]] = nowhere
        number = int(places.min())
    return number


def ballot(predicate: Array) -> Array:
    """One bit per lane, as every lane of the warp sees it."""
    words = np.packbits(predicate.reshape(-1, WARP), axis=1, bitorder="little").view(np.uint32)
    return np.repeat(words[:, 0], WARP)


def _sources(mode: str, b: Array, c: Array) -> tuple[Array, Array]:
    """shfl's source lane of every lane, and whether it lies inside the segment (PTX ISA, shfl.sync, semantics)."""
    lane = np.arange(len(b)) % WARP
    step, clamp, segment = (b & 31).astype(np.int64), (c & 31).astype(np.int64), (c >> 8 & 31).astype(np.int64)
    highest = (lane & segment) | (clamp & ~segment)
    source = {
        "up": lane - step,
        "down": lane + step,
        "bfly": lane ^ step,
        "idx": (lane & segment) | (step & ~segment),
    }[mode]
    inside = source >= highest if mode == "up" else source <= highest
    return np.arange(len(b)) - lane + np.where(inside, source, lane), inside


def _shfl(instruction: Instruction, layout: Layout) -> Meeting:
    opcode, text = instruction.opcode, instruction.text
    if len(opcode) != 4 or opcode[1] != "sync" or opcode[2] not in ("up", "down", "bfly", "idx"):
        raise Unsupported(text)
    names = [*instruction.operands[0].split("|"), "_"]
    target, valid = layout.sink(names[0], "b32"), layout.sink(names[1], "pred")
    value, b, c, members = (layout.source(operand, "u32") for operand in instruction.operands[1:])

    def finish(frame: Frame, brought: Array, met: Mask, serve: Mask) -> None:
        source, inside = _sources(opcode[2], frame[b], frame[c])
        if met is not True and not met[source][serve].all():
            raise Fault(f"{text}: reads from a lane that does not execute it")
        if target is not None:
            np.copyto(frame[target], brought[source], where=serve)
        if valid is not None:
            np.copyto(frame[valid], inside, where=serve)

    return Meeting(opcode, text, value, members, finish)


def _vote(instruction: Instruction, layout: Layout) -> Meeting:
    opcode, text = instruction.opcode, instruction.text
    if len(opcode) != 4 or opcode[1] != "sync" or opcode[2] not in ("all", "any", "uni", "ballot"):
        raise Unsupported(text)
    mode, negated = opcode[2], instruction.operands[1].startswith("!")
    target = layout.target(instruction.operands[0], "b32" if mode == "ballot" else "pred")
    predicate = layout.source(instruction.operands[1].lstrip("!"), "pred")
    members = layout.source(instruction.operands[2], "u32")
    decide: dict[str, Callable[[Array, Array], Array]] = {
        "ballot": lambda votes, voters: votes,
        "any": lambda votes, voters: votes != 0,
        "all": lambda votes, voters: votes == voters,
        "uni": lambda votes, voters: (votes == 0) | (votes == voters),
    }

    def finish(frame: Frame, brought: Array, met: Mask, serve: Mask) -> None:
        present = np.ones(len(brought), bool) if met is True else met
        voters = ballot(present) & frame[members]
        votes = ballot(((brought != 0) != negated) & present) & frame[members]
        np.copyto(frame[target], decide[mode](votes, voters), where=serve)

    return Meeting(opcode, text, predicate, members, finish)


def _warp_barrier(instruction: Instruction, layout: Layout) -> Meeting:
    members = layout.source(instruction.operands[0], "u32")
    return Meeting(instruction.opcode, instruction.text, members, members, lambda frame, brought, met, serve: None)


BUILDERS: dict[str, Callable[[Instruction, Layout], Meeting]] = {
    "shfl": _shfl,
    "vote": _vote,
    "bar": _warp_barrier,
}
