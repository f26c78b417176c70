"""Finalists under compute-sanitizer, before they are timed together: what a gate by outputs cannot see.

A finding rejects, and the rejection replaces the measurement in the database. What is only noted goes into the evidence
of the elite: findings that prove nothing (`sanitizer.doubt`), and tools that did not come to an end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from evoengine.archive.records import Elite
from evoengine.archive.study import Study
from evoengine.devices.cuda.sanitizer import TOOLS, Report, Sanitizer, Tool
from evoengine.problem import Problem
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
        """The finalists that are left, and by trial what is noted of each. `check_stop` is called between tools.

        A tool that does not come to an end on one finalist is not asked again: its deadline would pass for each.
        """
        kept: list[tuple[Candidate, Artifact]] = []
        notes: dict[int, Evidence] = {}
        given_up: dict[str, Evidence] = {}
        for index, (candidate, artifact) in enumerate(work, 1):
            found: dict[str, Evidence] = dict(given_up)
            rejection: Rejection | None = None
            for tool in TOOLS:
                if tool in given_up:
                    continue
                check_stop()
                listener.phase(f"sanitizing finalist {index} of {len(work)}: {tool}")
                report = self._check(tool, candidate, artifact)
                found[tool] = report.evidence
                if not report.clean:
                    listener.note(f"trial {candidate.number}: {report.line}")
                if report.unfinished:
                    why = f"given up after trial {candidate.number}: {report.unfinished}"
                    given_up[tool] = {"clean": False, "findings": [], "unfinished": why}
                if (rejection := report.rejection()) is not None:
                    break
            if rejection is None:
                kept.append((candidate, artifact))
                notes[candidate.number] = found
            else:
                study.overrule(candidate.number, dataclasses.replace(rejection, evidence={"sanitizer": found}))
        return kept, notes

    def _check(self, tool: Tool, candidate: Candidate, artifact: Artifact) -> Report:
        """What the tool says of a finalist; of several cubins, of the first that is not clean."""
        values, module = candidate.config.values, self._question.template.module
        problems: dict[str, dict[Problem, None]] = {}
        for question, part in zip(self._question.members, artifact.parts, strict=True):
            small = module.small_problems(values, question.problem)
            problems.setdefault(part.cubin_sha256, {}).update(dict.fromkeys(small))
        for part in {one.cubin_sha256: one for one in artifact.parts}.values():
            small = list(problems[part.cubin_sha256])
            report = self._sanitizer.check(tool, part.cubin, values, small, part.ptx.read_text(errors="replace"))
            if not report.clean:
                break
        return report


def annotated(elites: Iterable[Elite], notes: Mapping[int, Evidence]) -> list[Elite]:
    """The elites with what the tools found in their evidence."""
    return [
        dataclasses.replace(elite, evidence={**elite.evidence, "sanitizer": notes[elite.number]})
        if elite.number in notes
        else elite
        for elite in elites
    ]
