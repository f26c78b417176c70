"""The control beside every candidate, and the watch over it: drift, throttled clocks, its own noise."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from evoengine.devices.cuda import timer
from evoengine.devices.cuda.doubt import NOISY
from evoengine.devices.cuda.prove import Proof
from evoengine.devices.cuda.timer import EventRow, Pairs, Window

WINDOWS = 2 * timer.MAX_PAIRS
"""Of the control alone, at set-up: from these come its level and its noise."""
SETTLE_TRIES = 3
"""Sets of windows that the control may take to come under NOISY: the first seconds after an idle time are the worst."""
WATCH_EVERY, WATCH_WINDOWS = 10, timer.MIN_PAIRS
"""The control alone is timed again after so many candidates, in so many windows (7 ms)."""
DRIFT = 0.02
"""The control may move this much from where it was last seen alone before a measurement is flagged."""
CONTENDER = 1.1
"""Within this factor of the best a candidate may become a finalist: where the control moved, it is timed again."""
THROTTLED = 0.9
"""Share of the control's SM clock below which windows are taken again (nvbench has 0.75 of the nominal clock)."""
THROTTLE_TRIES, RECOVERY_SECONDS = 3, 0.05
"""How often they are, and the pause before each (nvbench's throttle recovery delay)."""


class Clocked(Protocol):
    """What the control needs of a card."""

    @property
    def events(self) -> EventRow: ...

    def clocks(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Timed:
    """Windows of a candidate beside the control's, the clocks after them, and what a reader must know of them.

    `evidence` has `half_width` (of the 95 % interval of the mean log-ratio, the stopping rule's), `control_moved` (from
    the level at which the control was last seen alone, as a share) and, where windows were taken again, the median
    ratios of the earlier tries.
    """

    pairs: Pairs
    clocks: Mapping[str, Any]
    flags: tuple[str, ...]
    evidence: Mapping[str, Any]


class Control:
    """The default config, proven, with its window ready to be replayed beside every candidate.

    `reference_us` is what ratios are multiplied with: the level at the search's first set-up, or this one's where None
    is given. `noise` is the relative standard deviation of the windows of the control alone.
    """

    def __init__(self, proof: Proof, window: Window, card: Clocked, reference_us: float | None) -> None:
        self.proof = proof
        self.window = window
        self._card = card
        for _ in range(SETTLE_TRIES):
            times = timer.time_windows([window] * WINDOWS, card.events)
            self.noise = statistics.stdev(times) / statistics.mean(times)
            if self.noise <= NOISY:
                break
        self._see(times)
        self.reference_us = reference_us or self._level_us
        self._unwatched = 0

    def time(self, subject: Window, estimated_us: float, best_us: float) -> Timed:
        """Time a candidate beside the control; a few windows only where it is far slower than the best.

        Windows under throttled clocks are taken again, up to THROTTLE_TRIES times, then kept and flagged `throttled`.
        Every WATCH_EVERY candidates the control is timed alone. Until then its level is the one to which its windows
        beside each candidate are compared: `control_drifted` flags every candidate of an interval in which it moved,
        and one that may become a finalist is timed again at the new level.
        """
        beaten = estimated_us > timer.BEATEN * best_us
        tried: list[float] = []
        pairs, clocks, throttled = self._steady(subject, beaten, tried)
        moved = self._moved(pairs)
        drifted = abs(moved) > DRIFT
        flags = ["throttled"] * throttled + ["control_drifted"] * drifted
        contends = not beaten and _ratio(pairs) * self.reference_us <= CONTENDER * best_us
        again = drifted and contends and not throttled
        self._unwatched += 1
        if again or throttled or self._unwatched >= WATCH_EVERY:
            self._watch()
        if again:
            tried.append(_ratio(pairs))
            pairs, clocks, throttled = self._steady(subject, beaten, tried)
            flags += ["throttled"] * throttled
        evidence: dict[str, Any] = {"control_moved": moved}
        if len(pairs.windows_us) > 1:
            evidence["half_width"] = timer.half_width(pairs.windows_us, pairs.control_us)
        if tried:
            evidence["earlier_ratios"] = tried
        return Timed(pairs, clocks, tuple(flags), evidence)

    def _steady(self, subject: Window, beaten: bool, tried: list[float]) -> tuple[Pairs, dict[str, Any], bool]:
        """Windows, the clocks right after them, and whether these were still low after the last try."""
        pairs, clocks, throttled = self._once(subject, beaten)
        for _ in range(THROTTLE_TRIES):
            if not throttled:
                break
            tried.append(_ratio(pairs))
            time.sleep(RECOVERY_SECONDS)
            pairs, clocks, throttled = self._once(subject, beaten)
        return pairs, clocks, throttled

    def _once(self, subject: Window, beaten: bool) -> tuple[Pairs, dict[str, Any], bool]:
        pairs = timer.compare(subject, self.window, self._card.events, beaten=beaten)
        clocks = self._card.clocks()
        now, usual = clocks.get("sm_clock_mhz"), self._sm_clock_mhz
        return pairs, clocks, now is not None and usual is not None and now < THROTTLED * usual

    def _moved(self, pairs: Pairs) -> float:
        return statistics.median(pairs.control_us) / self._level_us - 1

    def _watch(self) -> None:
        """The control alone: a card that has changed its state for good is no reason to flag all that follows."""
        self._see(timer.time_windows([self.window] * WATCH_WINDOWS, self._card.events))
        self._unwatched = 0

    def _see(self, times: list[float]) -> None:
        self._level_us = statistics.median(times)
        self._sm_clock_mhz = self._card.clocks().get("sm_clock_mhz")


def _ratio(pairs: Pairs) -> float:
    return statistics.median(w / c for w, c in zip(pairs.windows_us, pairs.control_us, strict=True))
