"""What is written down of one fault, whoever had it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from evoengine.verdict import Artifact, Measurement, Rejection

STOPPED = "stopped"
"""In place of a gate: the search ends with one line, blames nobody and can be resumed."""
BUILT, WRITTEN, GONE = "built", "written", "gone"
"""What comes after a fault of the compiler or cache, of the database, and of evoengine itself."""


@dataclass(frozen=True, slots=True)
class Survived:
    """A fault, what became of it, and of what came next.

    `gate` is empty where the fault costs no verdict, `expected` what it has to be. `deadline_seconds` is what the fault
    may cost by what evoengine states; `following` is the next candidate's ratio to the default config, or a word;
    `orphans` are the command lines of processes that were left.
    """

    fault: str
    expected: str
    gate: str
    reason: str
    seconds: float
    deadline_seconds: float
    following: float | str
    orphans: tuple[str, ...] = ()

    @property
    def problem(self) -> str:
        """Why it was not survived after all; empty where it was."""
        if self.gate != self.expected:
            return f"gate {self.gate or 'none'} ({self.reason}), expected {self.expected or 'none'}"
        if self.orphans:
            return f"left {', '.join(self.orphans)}"
        if self.seconds > self.deadline_seconds:
            return f"took {self.seconds:.1f} s of {self.deadline_seconds:g}"
        if isinstance(self.following, float) and not 0.9 < self.following < 1.1:
            return f"the next candidate, the default config itself, is at {self.following:.3f}"
        if isinstance(self.following, str) and self.following not in (BUILT, WRITTEN, GONE):
            return f"the next candidate: {self.following}"
        return ""

    def as_json(self) -> Mapping[str, Any]:
        return {**asdict(self), "seconds": round(self.seconds, 3), "survived": not self.problem}


def told(result: Artifact | Measurement | Rejection) -> tuple[str, str]:
    """Gate and reason of a verdict; both empty where it is none."""
    return (result.gate.value, result.reason) if isinstance(result, Rejection) else ("", "")
