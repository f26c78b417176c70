"""What a search knows of its trials: what was paid for, who is whose twin, and the part of it that proposals see."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from evoengine.archive.records import Record
from evoengine.convergence import Converged, converged, timer_noise
from evoengine.pace import visible
from evoengine.question import Question
from evoengine.sampler import Proposal, Seen
from evoengine.space import Point
from evoengine.verdict import Candidate, Estimate, Measurement, Verdict, is_paid


class Observations:
    """Rebuilt from what the database holds, then kept up with every claim and verdict.

    `measures`: times are measured, by this search or by those that it helps, so that no estimate decides anything.
    """

    def __init__(self, question: Question, *, measures: bool) -> None:
        self._question = question
        self._measures = measures
        self._seen: dict[int, Seen] = {}
        self._twins: dict[str, tuple[int, Verdict]] = {}
        self._paid: set[int] = set()

    @property
    def paid(self) -> int:
        """Candidates paid for. A trial is paid for once: measured after its estimate, it costs nothing more, and it is
        free if it then proves to be a twin."""
        return len(self._paid)

    @property
    def next_number(self) -> int:
        """Of the next trial, where nobody else bears any."""
        return max(self._seen, default=-1) + 1

    def remember(self, records: Iterable[Record]) -> None:
        """What the database holds, of other processes too."""
        for record in records:
            self._seen[record.number] = record.seen(measures=self._measures)
            if record.verdict is None:
                continue
            self._pay(record.number, record.verdict, record.twin_of)
            provisional = isinstance(record.verdict, Estimate) and self._measures
            if record.build is not None and record.twin_of is None and not provisional:
                identity = self._question.identity(record.config.values, record.build.cubin_sha256)
                self._twins[identity] = (record.number, record.verdict)

    def claimed(self, candidates: Iterable[Candidate], proposals: Mapping[Point, Proposal]) -> None:
        """New trials, from these proposals."""
        for candidate in candidates:
            point = self._question.space.point(candidate.config.values)
            self._seen[candidate.number] = Seen(
                candidate.number,
                point,
                None,
                "running",
                candidate.operator,
                candidate.generation,
                candidate.parents,
                proposals[point].system_attrs,
                proposals[point].expected_gain,
            )

    def judged(self, candidate: Candidate, verdict: Verdict, twin_of: int | None) -> None:
        self._pay(candidate.number, verdict, twin_of)
        seen = self._seen[candidate.number]
        if isinstance(verdict, Estimate) and self._measures:  # as `Record.seen` has it
            seen = dataclasses.replace(seen, expected_gain=None)
        elif isinstance(verdict, Estimate):
            seen = dataclasses.replace(seen, value=verdict.estimated_us, state="done")
        else:
            value = verdict.median_us if isinstance(verdict, Measurement) else None
            seen = dataclasses.replace(seen, value=value, state="done")
        self._seen[candidate.number] = seen

    def _pay(self, number: int, verdict: Verdict, twin_of: int | None) -> None:
        if is_paid(verdict, twin_of):
            self._paid.add(number)
        else:
            self._paid.discard(number)

    def twin(self, identity: str) -> tuple[int, Verdict] | None:
        """The trial that runs the same, and its verdict."""
        return self._twins.get(identity)

    def settled(self, identity: str, number: int, verdict: Verdict) -> None:
        self._twins[identity] = (number, verdict)

    # *** what a proposal may know: verdicts of trials before `known` ***

    def seen(self, known: int) -> list[Seen]:
        """Every trial; those from `known` on run."""
        return visible(self._seen.values(), known)

    def spent(self, known: int) -> int:
        """Candidates that are paid for, or will be if all of those from `known` on are."""
        return len({number for number in self._paid if number < known} | {n for n in self._seen if n >= known})

    def converged(self, known: int) -> Converged | None:
        """Whether nothing is left to gain."""
        noise = timer_noise(verdict for number, verdict in self._twins.values() if number < known)
        return converged([one for one in self.seen(known) if one.state == "done"], noise)
