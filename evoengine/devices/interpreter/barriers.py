"""CTA barriers: bar.sync, bar.arrive and barrier.sync with ids and thread counts, and the name of a deadlock.

A warp arrives with 32 threads whatever its live lanes, as the PTX ISA says. A barrier without a count waits for every
warp of the CTA that has not exited.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from evoengine.devices.interpreter.faults import Fault

IDS = 16
THREADS_PER_WARP = 32


@dataclass(slots=True)
class _Phase:
    """Arrivals since the barrier last opened; `expected` threads open it, None means all that live."""

    expected: int | None
    arrived: int = 0
    waiting: list[int] = field(default_factory=list)


class CtaBarriers:
    """The 16 barriers of one CTA. Warps are named by slot; `live` counts those that have not exited."""

    def __init__(self, warps: int) -> None:
        self.live = warps
        self._phases: dict[int, _Phase] = {}

    def arrive(self, slot: int, barrier: int, count: int | None, waits: bool, text: str) -> list[int]:
        """One warp arrives. Returns the slots that go on because of it (its own among them if it opened it).

        Raises:
            Fault: an impossible id or count, or a count other than the others'.
        """
        if not 0 <= barrier < IDS:
            raise Fault(f"{text}: barrier {barrier}, there are {IDS}")
        if count is not None and (count <= 0 or count % THREADS_PER_WARP):
            raise Fault(f"{text}: {count} threads, a barrier counts whole warps")
        phase = self._phases.setdefault(barrier, _Phase(count))
        if phase.expected != count:
            raise Fault(f"{text}: barrier {barrier} is given {count} threads here, {phase.expected} elsewhere")
        if slot in phase.waiting:
            raise AssertionError(f"slot {slot} waits at barrier {barrier} and arrives again")
        phase.arrived += THREADS_PER_WARP
        if waits:
            phase.waiting.append(slot)
        return self._open_if_full(barrier)

    def exit(self) -> list[int]:
        """One warp exits: barriers without a count no longer wait for it. Returns the slots that go on."""
        self.live -= 1
        return [slot for barrier in list(self._phases) for slot in self._open_if_full(barrier)]

    def _open_if_full(self, barrier: int) -> list[int]:
        phase = self._phases[barrier]
        expected = self.live * THREADS_PER_WARP if phase.expected is None else phase.expected
        if phase.arrived < expected:
            return []
        del self._phases[barrier]
        return phase.waiting

    def describe(self, warps: Sequence[int]) -> str:
        """Who waits where, for the message of a deadlock; `warps[slot]` is a slot's warp."""
        parts = []
        for barrier, phase in sorted(self._phases.items()):
            if phase.waiting:
                expected = self.live * THREADS_PER_WARP if phase.expected is None else phase.expected
                names = ranges(warps[slot] for slot in phase.waiting)
                parts.append(f"warps {names} wait at barrier {barrier} ({phase.arrived} of {expected} threads arrived)")
        return "; ".join(parts)


def ranges(numbers: Iterable[int]) -> str:
    """`0-3,7` for 0, 1, 2, 3, 7."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
