"""What a run may spend, whom it tells of its progress, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from evoengine.devices.cuda.results import Finals, Setup
from evoengine.verdict import Artifact, Candidate, Verdict


@dataclass(frozen=True, slots=True)
class Budget:
    """When to stop: candidates sent to the compiler over the life of the study, seconds of this run, and whether to
    stop before that once nothing is left to gain (`convergence`)."""

    candidates: int
    seconds: float | None = None
    until_converged: bool = False


class Listener(Protocol):
    """Whoever shows progress. Called from the engine's thread, between steps."""

    def note(self, text: str) -> None: ...
    def phase(self, text: str) -> None: ...
    def set_up(self, setup: Setup) -> None: ...
    def building(self, done: int, of: int) -> None: ...
    def judged(self, candidate: Candidate, verdict: Verdict, artifact: Artifact | None, spent: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. `finals` is None where nothing was confirmed."""

    stopped: str
    spent: int
    interrupted: bool
    setup: Setup | None
    finals: Finals | None
