"""What compute-sanitizer says of a candidate that took its worker down."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from evoengine.devices.cuda.messages import Subject
from evoengine.devices.cuda.sanitizer import PROGRAM, Sanitizer
from evoengine.devices.cuda.watched import find_tool
from evoengine.problem import Problem
from evoengine.template import Template
from evoengine.verdict import Rejection

EXPLAIN_SECONDS = 60.0
"""For the reason of a fault, on the problems that the gate ran: the first of a run waits for it, once."""


class Memcheck:
    """Asked where it is installed, for the first fault of each name in a run: it costs seconds, and a space that breaks
    in one way breaks often."""

    def __init__(self, template: Template, problem: Problem, ordinal: int, seed: int) -> None:
        self._template = template
        self._problem = problem
        found = find_tool(PROGRAM)
        self._sanitizer = None if found is None else Sanitizer(found, template, ordinal, seed)
        self._explained: set[str] = set()

    def explained(self, subject: Subject, verdict: Rejection) -> Rejection:
        """A fault of the context with what memcheck says of it."""
        error = verdict.evidence.get("error")
        if error is None or error in self._explained or self._sanitizer is None:
            return verdict
        self._explained.add(error)
        others = self._template.module.check_problems(subject.values, self._problem)
        problems = (self._problem, *others)
        cubin = Path(subject.cubin)
        report = self._sanitizer.check("memcheck", cubin, subject.values, problems, seconds=EXPLAIN_SECONDS)
        return dataclasses.replace(verdict, evidence={**verdict.evidence, "memcheck": report.evidence})
