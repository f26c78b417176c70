"""`--warm-start`: from names of studies, or `auto`, to what a new search is told of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from evoengine.archive.archive import Archive
from evoengine.archive.records import Record, StudySpec
from evoengine.archive.study import Study
from evoengine.cli.resolve import Target
from evoengine.errors import UserError
from evoengine.problem import problem_digest, problem_fields
from evoengine.question import Question
from evoengine.sampler.source import Source, make_source
from evoengine.space import Point
from evoengine.verdict import Gate, Measurement, Rejection

AUTO = "auto"
NEAREST = 4
"""Studies that `auto` takes at most. Each costs a fit of 400 configs at the start, and the nearest say most."""


def find_sources(
    names: Sequence[str], archive: Archive, question: Question, target: Target, before: Sequence[StudySpec] = ()
) -> tuple[Source, ...]:
    """What the named studies measured, in their order; for `auto` the studies of the same template and axes at other
    shapes or cards, the nearest shape first; without it those of the same run that came `before`, chosen likewise.

    Raises:
        UserError: no such study, or one of another template or other axes, or one that has measured nothing.
    """
    studies = [archive.open_study(name) for name in dict.fromkeys(names) if name != AUTO]
    sources = [_source(study, question) for study in studies]
    known = {study.name for study in studies}
    near = _others(archive, question, target) if AUTO in names else before
    for spec in sorted(near, key=lambda spec: _distance(spec, question, target)):
        found = None if spec.name in known else _made(archive.open_study(spec.name), question)
        if found is not None and len(sources) < len(studies) + NEAREST:
            sources.append(found)
    return tuple(sources)


def _others(archive: Archive, question: Question, target: Target) -> list[StudySpec]:
    """Studies of the same template, but for those that `resume` is for."""
    here = (target.device.name, problem_digest(question.problem))
    specs = (summary.spec for summary in archive.studies())
    return [
        spec for spec in specs if spec.template == question.template.name and (spec.device, spec.problem_digest) != here
    ]


def _distance(spec: StudySpec, question: Question, target: Target) -> tuple[float, bool]:
    """How far a study's problem is from ours, in doublings of a size and changed flags; our own card comes first.

    Where one of the two is a set, from each of our problems to the nearest of theirs, on average.
    """
    theirs = [member.problem for member in spec.members] or [spec.problem]
    ours = [problem_fields(one.problem) for one in question.members]
    apart = statistics.fmean(min(_between(their, our) for their in theirs) for our in ours)
    return apart, spec.device != target.device.name


def _between(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> float:
    return sum(_apart(theirs.get(name), ours.get(name)) for name in theirs.keys() | ours.keys())


def _apart(theirs: Any, ours: Any) -> float:
    sizes = all(type(one) in (int, float) and one > 0 for one in (theirs, ours))
    return abs(math.log2(theirs / ours)) if sizes else float(theirs != ours)


def _source(study: Study, question: Question) -> Source:
    spec = study.spec
    if spec.template != question.template.name:
        raise UserError(
            f"--warm-start {study.name}: that study is of template {spec.template}, this search of "
            f"{question.template.name}"
        )
    if {axis.name for axis in spec.axes} != {axis.name for axis in question.space}:
        raise UserError(f"--warm-start {study.name}: that study has other axes than space {question.space.name}")
    source = _made(study, question)
    if source is None:
        raise UserError(f"--warm-start {study.name}: that study has measured no config of this space")
    return source


def _made(study: Study, question: Question) -> Source | None:
    spec = study.spec
    return make_source(
        study.name,
        spec.device,
        spec.problem_label,
        [trial for record in study.records() for trial in _told(record)],
        theirs=spec.axes,
        ours=question.space.axes,
    )


def _told(record: Record) -> list[tuple[Point, float | None]]:
    """A trial as another search may use it: what a gate of its card or limits refused may pass here."""
    if record.twin_of is not None:
        return []
    if isinstance(record.verdict, Measurement):
        return [(record.point, record.verdict.median_us)]
    if isinstance(record.verdict, Rejection) and record.verdict.gate not in (Gate.STATIC, Gate.RESOURCES):
        return [(record.point, None)]
    return []
