"""What a run may spend, whom it tells of its progress, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from evoengine.devices.cuda.results import Finals, Setup
from evoengine.verdict import Artifact, Candidate, Verdict


class End:
    """How a run ended: the status of its study, or how that begins. One out of time says `Budget.time_is_over`."""

    SPENT = "budget spent"
    SPENT_BEFORE = "nothing to do: the budget was spent before, raise it with --budget"
    ALL_TRIED = "every feasible config has been tried"
    CONVERGED = "converged"
    AHEAD = "enough waits to be measured"
    STOPPED = "stopped by the user"

    @classmethod
    def reached(cls, status: str) -> bool:
        """Whether a study with this status is done, unless its budget is raised."""
        return status in (cls.SPENT, cls.SPENT_BEFORE, cls.ALL_TRIED) or status.startswith(cls.CONVERGED)


@dataclass(frozen=True, slots=True)
class Budget:
    """When to stop: candidates sent to the compiler over the life of the study, seconds of this run, and whether to
    stop before that once nothing is left to gain (`convergence`)."""

    candidates: int
    seconds: float | None = None
    until_converged: bool = False

    @property
    def time_is_over(self) -> str:
        return f"{self.seconds:g} s are over"

    def granted(self, status: str, spent: int) -> bool:
        """Whether a study has had all of this: its last run ended with this `status`, after `spent` candidates in all.

        A status is set once the final run is over, so that a run that was killed in it has not had all.
        """
        if status in (End.SPENT, End.SPENT_BEFORE):
            return spent >= self.candidates
        in_time = self.seconds is not None and status == self.time_is_over
        converged = self.until_converged and status.startswith(End.CONVERGED)
        return in_time or converged or status == End.ALL_TRIED


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
