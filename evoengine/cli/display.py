"""What a running search shows: a live panel on a terminal, plain lines elsewhere, nothing with --quiet."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from evoengine.devices.cuda.results import Setup
from evoengine.verdict import Artifact, Candidate, Gate, Measurement, Rejection, Verdict

PLAIN_SECONDS = 10.0
"""Between two lines where there is no terminal: a 200-candidate run without a GPU stays under 40 lines."""
BAR = 30


class Display:
    """Follows the engine (`engine.Listener`) and writes to standard error, so that results can be piped."""

    def __init__(self, console: Console, budget: int, *, measures: bool, quiet: bool, verbose: bool) -> None:
        self._console = console
        self._budget = budget
        self._measures = measures
        self._quiet = quiet
        self._verbose = verbose
        self._live = Live(console=console, refresh_per_second=4, transient=True) if self._is_live() else None
        self._started = time.monotonic()
        self._spent_before: int | None = None
        self._spent = 0
        self._phase = "starting"
        self._building = (0, 0)
        self._gates: Counter[str] = Counter()
        self._best: tuple[float, float, str] | None = None
        self._sdpa_us: float | None = None
        self._last_line = 0.0

    def _is_live(self) -> bool:
        return self._console.is_terminal and not self._quiet

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def note(self, text: str) -> None:
        """A line that stays."""
        if not self._quiet:
            self._console.print(text, soft_wrap=True)

    def note_from_signal(self, text: str) -> None:
        """The same from a signal handler: past rich, which may be in the middle of a line and would print it twice."""
        if not self._quiet:
            os.write(sys.stderr.fileno(), f"{text}\n".encode())

    def phase(self, text: str) -> None:
        self._phase = text
        self._building = (0, 0)
        self._refresh()

    def set_up(self, setup: Setup) -> None:
        self.note(f"default config: {setup.control_us:.2f} us a launch (noise {setup.control.noise:.1%})")
        for baseline in setup.baselines:
            self.note(f"{baseline.name}: {baseline.median_us:.2f} us (noise {baseline.noise:.1%})")
            if baseline.name == "sdpa":
                self._sdpa_us = baseline.median_us
        for warning in setup.warnings:
            self.note(f"warning: {warning}")

    def building(self, done: int, of: int) -> None:
        self._building = (done, of)
        self._refresh()

    def judged(self, candidate: Candidate, verdict: Verdict, artifact: Artifact | None, spent: int) -> None:
        if self._spent_before is None:
            self._spent_before = spent - 1
        self._spent = spent
        if isinstance(verdict, Rejection):
            self._gates[str(verdict.gate)] += 1
            figures = f"{verdict.gate}: {verdict.reason}"
        elif isinstance(verdict, Measurement):
            self._gates["measured"] += 1
            figures = f"{verdict.median_us:.3f} us, noise {verdict.noise:.1%}, {_known(verdict)}"
            if verdict.stopped != "beaten":
                self._improve(verdict.median_us, verdict.noise, candidate)
        else:
            self._gates["estimated"] += 1
            figures = f"estimated {verdict.estimated_us:.2f} us, not measured"
            self._improve(verdict.estimated_us, 0.0, candidate)
        if self._verbose:
            self.note(f"#{candidate.number} {candidate.config.label} [{candidate.operator}] {figures}")
        self._refresh()

    def _improve(self, us: float, noise: float, candidate: Candidate) -> None:
        if self._best is None or us < self._best[0]:
            self._best = (us, noise, candidate.config.label)

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.update(Group(*self._lines()))
        elif not self._quiet and time.monotonic() - self._last_line >= PLAIN_SECONDS:
            self._last_line = time.monotonic()
            self._console.print(" | ".join(line.plain for line in self._lines()), soft_wrap=True)

    def _lines(self) -> list[Text]:
        filled = round(BAR * min(self._spent / self._budget, 1.0))
        head = Text.assemble(
            ("█" * filled, "green"), ("░" * (BAR - filled), "dim"), f" {self._spent}/{self._budget} {self._remaining()}"
        )
        done, of = self._building
        now = Text(self._phase + (f" ({done}/{of})" if of else ""), "dim")
        order = ["measured", "estimated", *map(str, Gate)]
        counts = Text("  ".join(f"{self._gates[key]} {key}" for key in order if self._gates[key]) or "no verdict yet")
        return [head, counts, self._best_line(), now]

    def _best_line(self) -> Text:
        if self._best is None:
            return Text("best so far: none")
        us, noise, label = self._best
        if not self._measures:
            return Text.assemble(("best estimate: ", "yellow"), f"{us:.2f} us (nothing measured)  {label}")
        ratio = f"  {self._sdpa_us / us:.2f}x SDPA" if self._sdpa_us else ""
        return Text.assemble(("best so far, to be confirmed: ", "bold"), f"{us:.3f} us ±{noise:.1%}{ratio}  {label}")

    def _remaining(self) -> str:
        elapsed = time.monotonic() - self._started
        here = self._spent - (self._spent_before or 0)
        if here < 8:
            return f"{elapsed:.0f} s"
        rate = here / elapsed
        left = max(self._budget - self._spent, 0) / rate
        return f"{elapsed:.0f} s, {rate:.1f}/s, {left:.0f} s left"


def _known(verdict: Measurement) -> str:
    """How well a time is known, why no more windows were taken, and what is to be held against it."""
    width = verdict.evidence.get("half_width")
    known = verdict.stopped if width is None else f"{verdict.stopped} at ±{width:.2%}"
    return f"{known}, {', '.join(verdict.flags)}" if verdict.flags else known
