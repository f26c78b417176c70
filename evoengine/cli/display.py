"""What a running search shows: a live panel on a terminal, plain lines elsewhere, nothing with --quiet."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.constrain import Constrain
from rich.live import Live

from evoengine.archive.records import Record
from evoengine.cli.panel import Best, State, Workers, panel, plain
from evoengine.cli.tables import say
from evoengine.devices.cuda.results import Setup
from evoengine.progress import Budget
from evoengine.space import Config
from evoengine.verdict import Artifact, Candidate, Estimate, Measurement, Rejection, Verdict, is_paid

PANEL_SECONDS = 0.1
"""Between two looks at the workers: a file system is asked what has been compiled."""
PLAIN_SECONDS = 10.0
"""Between two lines where there is no terminal: a 200-candidate run without a GPU stays under 40 lines."""


class Display:
    """Follows the engine (`progress.Listener`) and writes to standard error, so that results can be piped."""

    def __init__(self, console: Console, budget: Budget, *, measures: bool, quiet: bool, verbose: bool) -> None:
        self._console = console
        self._quiet = quiet
        self._verbose = verbose
        self._state = State(budget, measures, time.monotonic())
        self._workers: Callable[[], Workers] | None = None
        self._live: Live | None = None
        if console.is_terminal and not quiet:
            # Drawn by rich's own thread, so that the time goes on where nothing else does.
            self._live = Live(console=console, refresh_per_second=4, transient=True, get_renderable=self._panel)
        self._last_look = 0.0
        self.verdicts = 0
        """Reached in this run."""

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def continues(self, records: Iterable[Record]) -> None:
        """A study that was begun before is shown whole: what it has spent and found until now."""
        for record in records:
            verdict = record.verdict
            if verdict is None:
                continue
            self._state.spent += is_paid(verdict, record.twin_of)
            if not (isinstance(verdict, Estimate) and self._state.measures):  # else its turn is still to come
                self._count(record.number, record.config, verdict)
        self._state.spent_before = self._state.spent

    def watch(self, workers: Callable[[], Workers]) -> None:
        """Whom to ask what all are at."""
        self._workers = workers

    def note(self, text: str) -> None:
        """A line that stays."""
        if not self._quiet:
            say(self._console, text)

    def note_from_signal(self, text: str) -> None:
        """The same from a signal handler, on a panel until the end: rich may be in the middle of a line and would print
        it twice, and what is written past it the next frame overwrites."""
        if self._live is not None:
            self._state.stopping = text
        elif not self._quiet:
            os.write(sys.stderr.fileno(), f"{text}\n".encode())

    def phase(self, text: str) -> None:
        self._state.phase = text
        self._refresh()

    def set_up(self, setup: Setup) -> None:
        self.note(f"default config: {setup.control_us:.2f} us a launch (noise {setup.control.noise:.1%})")
        for baseline in setup.baselines:
            self.note(f"{baseline.name}: {baseline.median_us:.2f} us (noise {baseline.noise:.1%})")
            if baseline.name == "sdpa":
                self._state.sdpa_us = baseline.median_us
        for uuid, card in setup.environment.get("cards", {}).items():
            self.note(f"card {uuid}: default config {card['control_us']:.2f} us a launch (noise {card['noise']:.1%})")
        for warning in setup.warnings:
            self.note(f"warning: {warning}")

    def building(self, done: int, of: int) -> None:
        self._state.built.add(time.monotonic())
        self._refresh()

    def judged(self, candidate: Candidate, verdict: Verdict, artifact: Artifact | None, spent: int) -> None:
        self.verdicts += 1
        self._state.spent = spent
        self._state.judged.add(time.monotonic())
        self._count(candidate.number, candidate.config, verdict)
        if isinstance(verdict, Measurement):
            self._state.clocks = verdict.clocks.get("after", {})
        if self._verbose:
            self.note(f"#{candidate.number} {candidate.config.label} [{candidate.operator}] {_figures(verdict)}")
        self._refresh()

    def _count(self, number: int, config: Config, verdict: Verdict) -> None:
        if isinstance(verdict, Rejection):
            self._state.gates[str(verdict.gate)] += 1
        elif isinstance(verdict, Measurement):
            self._state.gates["measured"] += 1
            if verdict.stopped != "beaten":
                self._improve(number, config, verdict.median_us, verdict.noise)
        else:
            self._state.gates["estimated"] += 1
            self._improve(number, config, verdict.estimated_us, 0.0)

    def _improve(self, number: int, config: Config, us: float, noise: float) -> None:
        state = self._state
        if state.best is None or us < state.best.us:
            state.best = Best(number, us, noise, config.label)
        state.trail.append(state.best.us)

    def _panel(self) -> RenderableType:
        """With room for the ^C that a terminal puts behind it: on a line of its own it would leave one of ours."""
        return Constrain(panel(self._state, time.monotonic()), self._console.width - len("^C"))

    def _refresh(self) -> None:
        """Ask what all are at, in the engine's thread: only there it stands still."""
        now = time.monotonic()
        due = not self._quiet and now - self._last_look >= (PANEL_SECONDS if self._live else PLAIN_SECONDS)
        if not due:
            return
        self._last_look = now
        if self._workers is not None:
            self._state.workers = self._workers()
        if self._live is None:
            self._console.print(plain(self._state, now), soft_wrap=True)


def _figures(verdict: Verdict) -> str:
    if isinstance(verdict, Rejection):
        return f"{verdict.gate}: {verdict.reason}"
    if isinstance(verdict, Measurement):
        return f"{verdict.median_us:.3f} us, noise {verdict.noise:.1%}, {_known(verdict)}"
    return f"estimated {verdict.estimated_us:.2f} us, not measured"


def _known(verdict: Measurement) -> str:
    """How well a time is known, why no more windows were taken, and what is to be held against it."""
    width = verdict.evidence.get("half_width")
    known = verdict.stopped if width is None else f"{verdict.stopped} at ±{width:.2%}"
    on = [f"on {verdict.evidence['card']}"] if "card" in verdict.evidence else []
    return ", ".join([known, *verdict.flags, *on])
