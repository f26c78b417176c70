"""Where a verdict comes from: a GPU, or the interpreter and an estimate where there is none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from evoengine.verdict import Artifact, Candidate, Verdict

if TYPE_CHECKING:
    from evoengine.devices.cuda.results import Finals, Setup

Work = Sequence[tuple[Candidate, Artifact]]


class Device(Protocol):
    """Judges built candidates, one verdict each, in any order.

    One that judges them one by one draws from `work` only a little ahead of that: the others are being built.
    """

    name: str

    def judge(self, work: Iterable[tuple[Candidate, Artifact]]) -> Iterator[tuple[Candidate, Verdict]]: ...

    def close(self) -> None: ...


class Watched(Device, Protocol):
    """A device that says what it is at."""

    def in_hand(self) -> list[list[int]]:
        """For each of its workers, the trials that it was given and has not judged. Asked between two verdicts."""


class TimingDevice(Device, Protocol):
    """A device that measures: it proves and times a control first, and times finalists together at the end."""

    def start(self, values: Mapping[str, int], artifact: Artifact) -> Setup: ...

    def finals(self, work: Work, seed: int) -> Finals: ...
