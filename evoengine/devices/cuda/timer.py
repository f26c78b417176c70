"""Windows of many launches, candidate and control in pairs, until the ratio is known well enough.

Times are microseconds a launch. A window is one CUDA graph between two events. Single launches are never timed: where
event times are multiples of 1.024 us, as on an L4, medians of single launches rank a 2 % gap right in 54 % of trials
only, windows of 10 launches in all of them (simulated).
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

WINDOW_QUANTA = 100
"""A window is at least this many steps of the event clock: rounding then costs at most 1 %, and averages out."""
WINDOW_US = 1000.0
"""...and at least 1 ms, so that a graph's start (a few us) stays below 0.5 %."""
MIN_LAUNCHES, MAX_LAUNCHES = 5, 500
"""At least 5, so that one odd launch does not rule; at most 500, so that a graph is made in milliseconds. Below 2 us a
launch a window is then shorter than 1 ms."""
MIN_PAIRS, MAX_PAIRS, MORE_PAIRS = 8, 24, 4
"""Pairs of windows: 8 before any judgement of noise, 24 (about 50 ms) at most, four more at a time. All even, so that
as many begin with the subject as with the control."""
HALF_WIDTH = 0.005
"""Enough when the 95 % interval of the mean log-ratio is +-0.5 %, nvbench's relative-noise target. The median, which
ranks, scatters 1.25 times as much where noise is normal."""
BEATEN = 2.0
"""Slower than this times the best is not worth more windows (TileLang, OpenTuner)."""
BEATEN_PAIRS = 3
"""Windows of a beaten candidate: its time steers the sampler, but at this distance 3 are plenty."""
SHORT_US, ESTIMATE_LAUNCHES = 1000.0, 20
"""A launch below 1 ms is estimated again from a graph of 20, where the graph's own start weighs 1/20."""

ESTIMATE_TRIES = 3
"""...of which the shortest counts. A host that is late between an event and its window makes a launch of 4 us look like
one of 1 ms, and its windows then are of 5 launches, of which the graph's start takes a tenth. While every core
compiled, one judgement of 24 on an H200 was 12 % too slow."""


class Window(Protocol):
    """`launches` launches that one call starts."""

    launches: int

    def replay(self) -> None: ...

    def destroy(self) -> None: ...


class EventRow(Protocol):
    """Events on the stream that the windows run on."""

    def record(self, index: int) -> None: ...

    def intervals_us(self, count: int) -> list[float]: ...


@dataclass(frozen=True, slots=True)
class Pairs:
    """Windows of a subject, each with its neighbour of the control: before it in pairs 0, 2, ..., else behind it."""

    windows_us: list[float]
    control_us: list[float]
    stopped: Literal["converged", "limit", "beaten"]


def time_windows(windows: Sequence[Window], events: EventRow) -> list[float]:
    """Time windows in the given order, queued without a pause.

    The last one runs once untimed in front: it keeps the card busy while the host queues the rest, so that no timed
    window waits for the host, and every timed window follows the one that it would follow in an endless sequence.
    """
    windows[-1].replay()
    events.record(0)
    for index, window in enumerate(windows):
        window.replay()
        events.record(index + 1)
    intervals = events.intervals_us(len(windows))
    return [interval / window.launches for interval, window in zip(intervals, windows, strict=True)]


def estimate_us(make_window: Callable[[int], Window], events: EventRow) -> float:
    """One launch's time to a few per cent, cheaply for kernels from microseconds to seconds."""
    for launches in (1, ESTIMATE_LAUNCHES):
        window = make_window(launches)
        estimate = min(time_windows([window] * ESTIMATE_TRIES, events))
        window.destroy()
        if estimate >= SHORT_US:
            break
    return estimate


def launches_per_window(estimated_us: float, quantum_us: float) -> int:
    """How many launches a window takes to be long against the event clock's step."""
    wanted = math.ceil(max(WINDOW_QUANTA * quantum_us, WINDOW_US) / estimated_us)
    return min(max(wanted, MIN_LAUNCHES), MAX_LAUNCHES)


def compare(subject: Window, control: Window, events: EventRow, *, beaten: bool) -> Pairs:
    """C X X C, C X X C ... until the stopping rule holds; a few pairs only for a beaten subject.

    What the place in a pair does to a window (a clock that still rises, a cache that is still filling) so falls on both
    alike: in C X C X ... it would be taken for a difference between them.

    The rule looks at the interval up to five times, which costs little: of 2,000 simulated candidates at each of six
    noises from 0.3 to 3 % the intervals of 94 to 95 % held the true ratio.
    """
    pairs = Pairs([], [], "beaten" if beaten else "limit")
    wanted = BEATEN_PAIRS if beaten else MIN_PAIRS
    while True:
        turns = range(len(pairs.windows_us), wanted)
        queue = [one for turn in turns for one in ((subject, control) if turn % 2 else (control, subject))]
        times = time_windows(queue, events)
        for turn, first, second in zip(turns, times[0::2], times[1::2], strict=True):
            control_us, window_us = (second, first) if turn % 2 else (first, second)
            pairs.control_us.append(control_us)
            pairs.windows_us.append(window_us)
        if beaten:
            return pairs
        if half_width(pairs.windows_us, pairs.control_us) < HALF_WIDTH:
            return Pairs(pairs.windows_us, pairs.control_us, "converged")
        if wanted >= MAX_PAIRS:
            return pairs
        wanted = min(wanted + MORE_PAIRS, MAX_PAIRS)


def rounds(
    windows: Mapping[str, Window],
    events: EventRow,
    count: int,
    random_order: random.Random,
    progress: Callable[[], None],
) -> dict[str, list[float]]:
    """`count` windows of each subject, every round in a new random order."""
    times: dict[str, list[float]] = {name: [] for name in windows}
    for _ in range(count):
        order = random_order.sample(list(windows), len(windows))
        for name, window_us in zip(order, time_windows([windows[name] for name in order], events), strict=True):
            times[name].append(window_us)
        progress()
    return times


def half_width(windows_us: Sequence[float], control_us: Sequence[float]) -> float:
    """Half the 95 % confidence interval of the mean log-ratio."""
    logs = [math.log(w / c) for w, c in zip(windows_us, control_us, strict=True)]
    return student_975(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))


def student_975(freedom: int) -> float:
    """The 97.5 % quantile of Student's t: Abramowitz & Stegun 26.7.5, two terms; 0.3 % low at 7 degrees."""
    z = statistics.NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def quantum_of(intervals_us: Sequence[float]) -> float:
    """The event clock's step: the smallest gap between two different intervals, in microseconds.

    Gaps under 2 ns are the rounding of a float32 in milliseconds.
    """
    distinct = sorted(set(intervals_us))
    gaps = [b - a for a, b in itertools.pairwise(distinct) if b - a >= 0.002]
    return min(gaps, default=0.0)
