"""Warps that wait for a phase of an mbarrier: mbarrier.test_wait, who goes on when, and the name of a deadlock.

A test that fails holds its lanes back until the phase ends, since all a kernel does then is test again. Where nobody
else of the CTA can go on, late copies arrive at the mbarriers waited for; where that helps nobody, the tests fail after
all, once, in case the kernel does something else then; and where nothing has happened since, it is a deadlock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evoengine.devices.interpreter.barriers import ranges
from evoengine.devices.interpreter.faults import Fault, Unsupported
from evoengine.devices.interpreter.layout import WARP, Array, Frame, Layout, Mask
from evoengine.devices.interpreter.mbarriers import Mbarriers, Place, state_parity
from evoengine.devices.interpreter.memory import LaneState
from evoengine.devices.interpreter.parser import Instruction


@dataclass(frozen=True, slots=True)
class PhaseTest:
    """A decoded mbarrier.test_wait. `asked` is a frame index: a parity, or a state that mbarrier.arrive gave."""

    text: str
    target: int
    place: Place
    asked: int
    by_parity: bool

    def read(self, frame: Frame, mask: Mask) -> tuple[Array, Array, Array]:
        """The executing lanes, the mbarrier that each asks about, and the parity of the phase."""
        lanes, rows = self.place.of(frame, mask)
        asked = frame[self.asked][lanes]
        if not self.by_parity:
            return lanes, rows, state_parity(asked)
        if int(asked.max()) > 1:
            raise Fault(f"{self.text}: a parity of {int(asked.max())}, a phase has 0 or 1")
        return lanes, rows, asked.astype(np.uint64)


def phase_test(instruction: Instruction, layout: Layout) -> PhaseTest:
    """Raises Unsupported for forms that sm_80 does not have."""
    if instruction.guard or len(instruction.operands) != 3:
        raise Unsupported(instruction.text)
    by_parity = "parity" in instruction.opcode
    return PhaseTest(
        instruction.text,
        layout.target(instruction.operands[0], "pred"),
        Place(instruction, instruction.operands[1], layout),
        layout.source(instruction.operands[2], "u32" if by_parity else "b64"),
        by_parity,
    )


class Phases:
    """Waiting lanes of all slots. `blocked` is the scheduler's table of warps, slots by groups, which is kept here."""

    def __init__(self, mbarriers: Mbarriers, states: Sequence[LaneState], blocked: Array) -> None:
        self._mbarriers, self._states, self._blocked = mbarriers, states, blocked
        shape = len(states), blocked.shape[1] * WARP
        self.waiting, self._refused = np.zeros(shape, bool), np.zeros(shape, bool)
        self._rows, self._parity = np.zeros(shape, np.int64), np.zeros(shape, np.uint64)
        self._events_at_refusal = np.full(blocked.shape[1], -1)

    def ask(self, slot: int, test: PhaseTest, frame: Frame, mask: Mask) -> Mask:
        """Execute a test. The lanes that go on; `mask` itself if none is held back."""
        lanes, rows, parity = test.read(frame, mask)
        done = self._mbarriers.done(rows, parity, test.text)
        frame[test.target][lanes] = done
        refused = self._refused[slot, lanes]
        self._refused[slot, lanes] = False
        held = ~(done | refused)
        if not held.any():
            return mask
        stay = lanes[held]
        self.waiting[slot, stay] = True
        self._rows[slot, stay], self._parity[slot, stay] = rows[held], parity[held]
        passed = np.zeros(self.waiting.shape[1], bool)
        passed[lanes[~held]] = True
        return passed

    def block(self, slot: int, idle: Array) -> None:
        """Block the warps of which every lane is idle and one waits for a phase."""
        self._blocked[slot] |= (idle | self.waiting[slot]).reshape(-1, WARP).all(axis=1) & _warps(self.waiting[slot])

    def wake(self) -> None:
        """Let lanes test again whose phase has ended."""
        self._mbarriers.completed = False
        for slot in np.flatnonzero(self.waiting.any(axis=1)).tolist():
            lanes = np.flatnonzero(self.waiting[slot])
            done = self._mbarriers.done(self._rows[slot, lanes], self._parity[slot, lanes], "mbarrier.test_wait")
            self._release(slot, lanes[done])

    def unstick(self, stuck: Array) -> Array:
        """Help groups of which no warp can go on. Returns those that are deadlocked."""
        lanes_of = np.asarray(np.repeat(stuck, WARP) & self.waiting)
        if not lanes_of.any():
            return stuck
        before = self._blocked.copy()
        for state in self._states:
            for lanes, rows, text in state.copies.keep_promises(np.unique(self._rows[lanes_of])):
                self._mbarriers.arrive(lanes, rows, text)
        if self._mbarriers.completed:
            self.wake()
        still = np.asarray(stuck & (self._blocked == before).all(axis=0))
        events = self._mbarriers.events
        refused = still & _warps(np.asarray(lanes_of.any(axis=0))) & (events != self._events_at_refusal)
        self._events_at_refusal[refused] = events[refused]
        for slot in range(len(self._states)):
            lanes = np.flatnonzero(self.waiting[slot] & np.repeat(refused, WARP))
            self._refused[slot, lanes] = True
            self._release(slot, lanes)
        return np.asarray(still & ~refused)

    def describe(self, group: int, warps: Sequence[int]) -> tuple[str, list[dict[str, Any]]]:
        """The mbarriers that warps of a group wait for: in words, and as evidence. `warps[slot]` is a slot's warp."""
        lanes = slice(group * WARP, (group + 1) * WARP)
        waiting, asked = self.waiting[:, lanes], self._rows[:, lanes]
        found, words = [], []
        for row in np.unique(asked[waiting]):
            slots = np.flatnonzero((waiting & (asked == row)).any(axis=1)).tolist()
            one = {"warps": ranges(warps[slot] for slot in slots), **self._mbarriers.describe(int(row))}
            found.append(one)
            words.append(
                f"warps {one['warps']} wait for the mbarrier at shared address {one['shared_address']}, whose phase of "
                f"parity {one['phase_parity']} lacks {one['pending_arrivals']} of {one['expected_arrivals']} arrivals"
            )
        return "; ".join(words), found

    def _release(self, slot: int, lanes: Array) -> None:
        self.waiting[slot, lanes] = False
        self._blocked[slot, np.unique(lanes // WARP)] = False


def _warps(lanes: Array) -> Array:
    """Groups of which any lane is set."""
    return np.asarray(lanes.reshape(-1, WARP).any(axis=1))
