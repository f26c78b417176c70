"""Finalists under compute-sanitizer, before they are timed together: what a gate by outputs cannot see.

A finding rejects, and the rejection replaces the measurement in the database. What is only noted goes into the evidence
of the elite: findings that prove nothing (`sanitizer.doubt`), and tools that did not come to an end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from evoengine.archive.records import Elite
from evoengine.archive.study import Study
from evoengine.devices.cuda.sanitizer import TOOLS, Report, Sanitizer
from evoengine.progress import Listener
from evoengine.question import Question
from evoengine.verdict import Artifact, Candidate, Evidence, Rejection

Work = Sequence[tuple[Candidate, Artifact]]


class Screening:
    """Runs the tools over the small problems of each finalist, which reach every branch of its cubin."""

    def __init__(self, question: Question, sanitizer: Sanitizer) -> None:
        self._question = question
        self._sanitizer = sanitizer

    def __call__(
        self, work: Work, study: Study, listener: Listener, check_stop: Callable[[], None]
    ) -> tuple[list[tuple[Candidate, Artifact]], dict[int, Evidence]]:
        """The finalists that are left, and by trial what is noted of each. `check_stop` is called between tools."""
        kept: list[tuple[Candidate, Artifact]] = []
        notes: dict[int, Evidence] = {}
        for index, (candidate, artifact) in enumerate(work, 1):
            reports: list[Report] = []
            rejection: Rejection | None = None
            for tool in TOOLS:
                check_stop()
                listener.phase(f"sanitizing finalist {index} of {len(work)}: {tool}")
                values = candidate.config.values
                problems = self._question.template.module.small_problems(values, self._question.problem)
                ptx = artifact.ptx.read_text(errors="replace")
                reports.append(self._sanitizer.check(tool, artifact.cubin, values, problems, ptx))
                if not reports[-1].clean:
                    listener.note(f"trial {candidate.number}: {reports[-1].line}")
                if (rejection := reports[-1].rejection()) is not None:
                    break
            found: dict[str, Evidence] = {report.tool: report.evidence for report in reports}
            if rejection is None:
                kept.append((candidate, artifact))
                notes[candidate.number] = found
            else:
                study.overrule(candidate.number, dataclasses.replace(rejection, evidence={"sanitizer": found}))
        return kept, notes


def annotated(elites: Iterable[Elite], notes: Mapping[int, Evidence]) -> list[Elite]:
    """The elites with what the tools found in their evidence."""
    return [
        dataclasses.replace(elite, evidence={**elite.evidence, "sanitizer": notes[elite.number]})
        if elite.number in notes
        else elite
        for elite in elites
    ]
