"""What a running search shows: a live panel on a terminal, plain lines elsewhere, nothing with --quiet."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live

from evoengine.cli.panel import Best, State, panel, plain
from evoengine.devices.cuda.results import Setup
from evoengine.verdict import Artifact, Candidate, Measurement, Rejection, Verdict

PLAIN_SECONDS = 10.0
"""Between two lines where there is no terminal: a 200-candidate run without a GPU stays under 40 lines."""


class Display:
    """Follows the engine (`progress.Listener`) and writes to standard error, so that results can be piped."""

    def __init__(self, console: Console, budget: int, *, measures: bool, quiet: bool, verbose: bool) -> None:
        self._console = console
        self._quiet = quiet
        self._verbose = verbose
        self._state = State(budget, measures, time.monotonic())
        live = console.is_terminal and not quiet
        self._live = Live(console=console, refresh_per_second=4, transient=True) if live else None
        self._last_line = 0.0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def verdicts(self) -> int:
        """Reached so far."""
        return sum(self._state.gates.values())

    def note(self, text: str) -> None:
        """A line that stays."""
        if not self._quiet:
            self._console.print(text, soft_wrap=True)

    def note_from_signal(self, text: str) -> None:
        """The same from a signal handler, on a panel until the end: rich may be in the middle of a line and would print
        it twice, and what is written past it the next frame overwrites."""
        if self._live is not None:
            self._state.stopping = text
            self._live.update(panel(self._state, time.monotonic()))
        elif not self._quiet:
            os.write(sys.stderr.fileno(), f"{text}\n".encode())

    def phase(self, text: str) -> None:
        self._state.phase = text
        self._state.building = (0, 0)
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
        self._state.building = (done, of)
        self._state.built.add(time.monotonic())
        self._refresh()

    def judged(self, candidate: Candidate, verdict: Verdict, artifact: Artifact | None, spent: int) -> None:
        state = self._state
        if state.spent_before is None:
            state.spent_before = spent - 1
        state.spent = spent
        state.judged.add(time.monotonic())
        if isinstance(verdict, Rejection):
            state.gates[str(verdict.gate)] += 1
            figures = f"{verdict.gate}: {verdict.reason}"
        elif isinstance(verdict, Measurement):
            state.gates["measured"] += 1
            state.clocks = verdict.clocks.get("after", {})
            figures = f"{verdict.median_us:.3f} us, noise {verdict.noise:.1%}, {_known(verdict)}"
            if verdict.stopped != "beaten":
                self._improve(candidate, verdict.median_us, verdict.noise)
        else:
            state.gates["estimated"] += 1
            figures = f"estimated {verdict.estimated_us:.2f} us, not measured"
            self._improve(candidate, verdict.estimated_us, 0.0)
        if self._verbose:
            self.note(f"#{candidate.number} {candidate.config.label} [{candidate.operator}] {figures}")
        self._refresh()

    def _improve(self, candidate: Candidate, us: float, noise: float) -> None:
        state = self._state
        if state.best is None or us < state.best.us:
            state.best = Best(candidate.number, us, noise, candidate.config.label)
        state.trail.append(state.best.us)

    def _refresh(self) -> None:
        now = time.monotonic()
        if self._live is not None:
            self._live.update(panel(self._state, now))
        elif not self._quiet and now - self._last_line >= PLAIN_SECONDS:
            self._last_line = now
            self._console.print(plain(self._state, now), soft_wrap=True)


def _known(verdict: Measurement) -> str:
    """How well a time is known, why no more windows were taken, and what is to be held against it."""
    width = verdict.evidence.get("half_width")
    known = verdict.stopped if width is None else f"{verdict.stopped} at ±{width:.2%}"
    on = [f"on {verdict.evidence['card']}"] if "card" in verdict.evidence else []
    return ", ".join([known, *verdict.flags, *on])
