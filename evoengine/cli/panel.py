"""How far a search is, as numbers and as a panel of a few lines."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table
from rich.text import Text

from evoengine.cli.tables import Label, Pieces
from evoengine.progress import Budget
from evoengine.verdict import Gate

BARS = "▁▂▃▄▅▆▇█"
SPARK, BAR = 24, 24
"""Characters: with label and figures they leave room in 80 columns."""
RATE_SECONDS = 20.0
"""Rates are of the last so many seconds: a whole batch and the pause behind it on a slow machine."""


class Rate:
    """Events a second, lately."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()
        self._first: float | None = None

    def add(self, now: float) -> None:
        self._first = now if self._first is None else self._first
        self._times.append(now)

    def per_second(self, now: float) -> float:
        """Over a second at least: the first events may be microseconds apart."""
        while self._times and now - self._times[0] > RATE_SECONDS:
            self._times.popleft()
        if self._first is None:
            return 0.0
        return len(self._times) / min(RATE_SECONDS, max(1.0, now - self._first))


@dataclass(frozen=True, slots=True)
class Workers:
    """What all are at: compiles that have not ended, `jobs` of which run; trials in the hands of each judge."""

    compiles: int = 0
    jobs: int = 0
    hands: Sequence[Sequence[int]] = ()


@dataclass(slots=True)
class Best:
    """The fastest candidate so far; `noise` is 0 for an estimate."""

    number: int
    us: float
    noise: float
    label: str


@dataclass(slots=True)
class State:
    """All that is shown of a running search. Times are seconds of a monotonic clock."""

    budget: Budget
    measures: bool
    started: float
    phase: str = "starting"
    stopping: str = ""
    """Said in place of the phase, once the user wants to stop."""
    spent: int = 0
    """Candidates of the whole study, as all that follows; `spent_before` this run began."""
    spent_before: int = 0
    workers: Workers = Workers()
    gates: Counter[str] = field(default_factory=Counter)
    best: Best | None = None
    trail: list[float] = field(default_factory=list)
    """Best so far, in microseconds, after each candidate that has a time."""
    sdpa_us: float | None = None
    clocks: Mapping[str, Any] = field(default_factory=dict)
    built: Rate = field(default_factory=Rate)
    judged: Rate = field(default_factory=Rate)


def sparkline(values: Sequence[float], width: int) -> str:
    """The course of `values` in at most `width` characters, by their logarithms: a halving is a step wherever it is."""
    if not values:
        return ""
    count = min(width, len(values))
    picked = [math.log(values[(i + 1) * len(values) // count - 1]) for i in range(count)]
    low, high = min(picked), max(picked)
    step = (high - low) / (len(BARS) - 1) or 1.0
    return "".join(BARS[round((value - low) / step)] for value in picked)


def panel(state: State, now: float) -> Table:
    """The live display: a line each for progress, the best, its course, the verdicts, and what is going on."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim", no_wrap=True, min_width=10)
    rows.add_column(overflow="fold")
    filled = round(BAR * min(state.spent / state.budget.candidates, 1.0))
    bar = Text.assemble(("█" * filled, "green"), ("░" * (BAR - filled), "dim"))
    rows.add_row("candidates", bar.append(f" {progress(state, now)}", "default"))
    rows.add_row("best" if state.measures else "estimate", best(state))
    if state.best is not None:
        course = f"  {state.trail[0]:.2f} → {state.trail[-1]:.2f} us"
        rows.add_row("so far", Text.assemble((sparkline(state.trail, SPARK), "cyan"), course))
        rows.add_row("config", Label(state.best.label, "dim"))
    rows.add_row("verdicts", Pieces(verdicts(state)))
    if at_work := workers(state):
        rows.add_row("workers", at_work)
    rows.add_row("now", activity(state, now))
    return rows


def plain(state: State, now: float) -> str:
    """The same as one line, for logs."""
    parts = [
        progress(state, now),
        "".join(one.plain for one in verdicts(state)).rstrip(),
        best(state).plain,
        workers(state),
        activity(state, now),
    ]
    return " | ".join(part for part in parts if part)


def progress(state: State, now: float) -> str:
    """Candidates, how long this run has taken, and how long it may still take."""
    elapsed, budget = now - state.started, state.budget
    here, left = state.spent - state.spent_before, math.inf
    if here >= 8:  # the first batch says little of the rate
        left = max(budget.candidates - state.spent, 0) * elapsed / here
    head = f"{state.spent}/{budget.candidates}  {_duration(elapsed)}"
    over = math.inf if budget.seconds is None else max(budget.seconds - elapsed, 0.0)
    if min(left, over) == math.inf:
        return head
    how = "at most" if budget.until_converged or left == math.inf else "about"
    return f"{head}, {how} {_duration(min(left, over))} left"


def _duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def best(state: State) -> Text:
    found = state.best
    if found is None:
        return Text("none yet", "dim")
    if not state.measures:
        return Text.assemble((f"{found.us:.2f} us", "magenta"), f" estimated, nothing measured  #{found.number}")
    ratio = f"  {state.sdpa_us / found.us:.2f}x SDPA" if state.sdpa_us else ""
    return Text.assemble((f"{found.us:.3f} us", "bold green"), f" ±{found.noise:.1%}{ratio}  #{found.number}")


def verdicts(state: State) -> list[Text]:
    """The funnel: what passed every gate, then the rest by the gate that refused it, in the order of the gates."""
    styles = {"measured": "green", "estimated": "magenta", **dict.fromkeys(map(str, Gate), "red")}
    counts = ((state.gates[key], key, style) for key, style in styles.items())
    return [Text.assemble((f"{count} ", style), f"{key}  ") for count, key, style in counts if count]


def workers(state: State) -> str:
    """How many compilers are busy, and which trials are being judged; empty where neither is."""
    compiles, jobs, hands = state.workers.compiles, state.workers.jobs, state.workers.hands
    parts = []
    if compiles:
        waiting = f", {compiles - jobs} wait" if compiles > jobs else ""
        parts.append(f"{min(compiles, jobs)} of {jobs} compilers busy{waiting}")
    if any(hands):
        name = ("card" if state.measures else "interpreter") + ("s" if len(hands) > 1 else "")
        parts.append(f"{name} on {' '.join('+'.join(f'#{trial}' for trial in hand) or '-' for hand in hands)}")
    return "; ".join(parts)


def activity(state: State, now: float) -> str:
    parts = [state.stopping or state.phase]
    rates = [(rate.per_second(now), name) for rate, name in ((state.built, "built"), (state.judged, "judged"))]
    if any(rate for rate, _ in rates) and not state.stopping:
        parts += [f"{rate:.1f}/s {name}" for rate, name in rates]
    return ", ".join([*parts, *_clocks(state.clocks)])


def _clocks(clocks: Mapping[str, Any]) -> list[str]:
    units = (("sm_clock_mhz", "MHz"), ("temperature_c", "°C"), ("power_w", "W"))
    shown = " ".join(f"{clocks[key]:.0f} {unit}" for key, unit in units if clocks.get(key) is not None)
    slowed = [f"slowed by {', '.join(clocks['slowed_by'])}"] if clocks.get("slowed_by") else []
    return [shown, *slowed] if shown else slowed
