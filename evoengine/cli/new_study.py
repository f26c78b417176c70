"""From the options of `search` to a study of its own, or to one of the same search that was begun before."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from evoengine.archive.archive import Archive, StudyExists
from evoengine.archive.records import MemberSpec, StudySpec, StudySummary
from evoengine.archive.study import Study
from evoengine.build import Builder
from evoengine.cli.ahead import Ahead, Listed
from evoengine.cli.apart import CORES, ProposerProcess
from evoengine.cli.go_on import resume_command
from evoengine.cli.resolve import Target, find_question, stored_limits
from evoengine.cli.tables import console
from evoengine.cli.warm_start import find_sources
from evoengine.errors import UserError
from evoengine.forecast import forecast
from evoengine.problem import Member, Problem, ProblemSet, problem_digest, problem_fields
from evoengine.question import Question
from evoengine.sampler import INFORMED, Proposing
from evoengine.sampler.proposer import Proposer
from evoengine.sampler.source import Source


@dataclass(frozen=True)
class Asked:
    """What `search` is asked: a question with where its space came from, the card, what builds for it, and who lists
    the configs."""

    question: Question
    space_path: Path
    target: Target
    builder: Builder
    ahead: Ahead | None = None


def ask(arguments: argparse.Namespace, target: Target, *shapes: str, ahead: Ahead | None = None) -> Asked:
    """What the options ask of a shape, or of several at once; none is the template's own. `ahead` has begun to list it.

    Raises:
        UserError: they cannot be read, nothing is feasible or nothing can be built, which must not leave an empty study
            behind.
    """
    question, path = find_question(arguments, target, *shapes)
    builder = Builder(question.template, target.device.arch, compiler=arguments.compiler, jobs=arguments.jobs)
    if question.static_gate(question.space.default) is not None:
        _ = question.default
    builder.check_cache()
    return Asked(question, path, target, builder, ahead)


def create(
    arguments: argparse.Namespace, archive: Archive, asked: Asked, name: str | None, before: Sequence[StudySpec] = ()
) -> tuple[Study, Proposing]:
    """A new study, called `name` or by its question, and who proposes for it; the same run has searched those `before`.

    Raises:
        UserError: the name is taken, or a study to start from cannot be used.
    """
    question = asked.question
    listed = None if asked.ahead is None else asked.ahead.listed(question)
    if listed is not None:
        question.take(listed.feasible)
    sources = _sources(arguments, archive, question, asked.target, before, listed)
    proposer = _proposer(question, asked.target, asked.builder, arguments.sampler, arguments.seed, sources)
    taken = [] if name else _same_question(archive, asked)
    spec = _spec(arguments, name or taken.pop(), asked, sources)
    if taken and not arguments.quiet:
        go_on = resume_command(arguments, taken[-1])
        line = f"study {taken[-1]} asks the same, go on with it with: {go_on}; this one is {spec.name}"
        console(stderr=True).print(line, soft_wrap=True)
    try:
        return archive.create_study(spec), proposer
    except StudyExists as error:
        raise UserError(f"{error}, or resume it with: {resume_command(arguments, spec.name)}") from error


def proposer_of(study: Study, question: Question, target: Target, builder: Builder) -> Proposing:
    """Who goes on proposing for a study that exists."""
    spec = study.spec
    return _proposer(question, target, builder, spec.sampler, spec.seed, spec.sources)


def _proposer(
    question: Question, target: Target, builder: Builder, sampler: str, seed: int, sources: Sequence[Source]
) -> Proposing:
    """In a process of its own where cards and compilers are fast. The default sampler alone: what others lack must be
    found out before there is a study."""
    fast = target.ordinal is not None and builder.jobs >= CORES
    made = ProposerProcess if fast and sampler in INFORMED else Proposer
    return made(question.space, question.feasible, sampler=sampler, seed=seed, sources=sources)


def begun(
    arguments: argparse.Namespace, studies: Sequence[StudySummary], asked: Asked, name: str | None
) -> StudySummary | None:
    """The study in which this search was begun, of that `name` if there is one; the last of several."""
    same = (one for one in studies if name in (None, one.spec.name) and _same_search(one.spec, arguments, asked))
    return next(same, None)


def _same_search(spec: StudySpec, arguments: argparse.Namespace, asked: Asked) -> bool:
    """Whether a study has this question and is searched in the same way; one that measures needs the card."""
    question, target = asked.question, asked.target
    there = (spec.template_digest, spec.space_digest, spec.problem_digest, spec.ceilings, spec.device, spec.toolchain)
    here = (
        question.template.digest,
        question.space.digest,
        problem_digest(question.problem),
        dataclasses.asdict(question.ceilings),
        target.device.name,
        asked.builder.toolchain.version,
    )
    alike = there == here and (spec.sampler, spec.seed) == (arguments.sampler, arguments.seed)
    return alike and stored_limits(spec) == target.limits and not (spec.measures and target.ordinal is None)


def _sources(
    arguments: argparse.Namespace,
    archive: Archive,
    question: Question,
    target: Target,
    before: Sequence[StudySpec],
    listed: Listed | None,
) -> tuple[Source, ...]:
    """What the search is told before it begins: the estimate, which may be `listed`, and what others measured."""
    informed = arguments.sampler in INFORMED
    studies = find_sources(arguments.warm_start or (), archive, question, target, before if informed else ())
    if arguments.warm_start and not studies:
        console(stderr=True).print(f"no study of another shape or card in {archive.name} to start from")
    if not informed:
        return studies
    estimated = listed.estimate if listed else forecast(question, target.device).source(arguments.seed)
    return studies if estimated is None else (*studies, estimated)


def _spec(arguments: argparse.Namespace, name: str, asked: Asked, sources: tuple[Source, ...]) -> StudySpec:
    question, target = asked.question, asked.target
    template = question.template
    return StudySpec(
        name=name,
        template=template.name,
        template_digest=template.digest,
        template_folder=str(template.folder),
        space=question.space.name,
        space_digest=question.space.digest,
        space_path=str(asked.space_path),
        axes=question.space.axes,
        default=question.space.default,
        problem=problem_fields(question.problem),
        problem_label=question.problem.label,
        problem_digest=problem_digest(question.problem),
        device=target.device.name,
        limits=target.limits.as_json(),
        arch=target.device.arch,
        toolchain=asked.builder.toolchain.version,
        sampler=arguments.sampler,
        seed=arguments.seed,
        budget=arguments.budget,
        seconds=arguments.seconds,
        ceilings=dataclasses.asdict(question.ceilings),
        command=arguments.command_line,
        measures=target.ordinal is not None,
        created_at=datetime.now(UTC).isoformat(),
        sources=sources,
        members=tuple(
            MemberSpec(one.problem.label, problem_fields(one.problem), one.weight) for one in _set(question.problem)
        ),
    )


def _set(problem: Problem) -> tuple[Member, ...]:
    """The members of a set; a problem by itself has none to store."""
    return problem.members if isinstance(problem, ProblemSet) else ()


def _same_question(archive: Archive, asked: Asked) -> list[str]:
    """`attention-B1_H8_S512_D64_fp16-l4-1a2b3c4d`, and `-2`, `-3`... for as often as the same question was asked: the
    names that are taken, then the first that is free.

    The digits stand for space, template, problem, device, limits and toolchain: what must not be mixed in one study.
    """
    question, target = asked.question, asked.target
    parts = (
        question.space.digest,
        question.template.digest,
        problem_digest(question.problem),
        target.device.name,
        repr(target.limits),
        repr(question.ceilings),
        asked.builder.toolchain.digest,
    )
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]
    card = "".join(c for c in target.device.name.removeprefix("NVIDIA ").lower() if c.isalnum())
    base = f"{question.template.name}-{question.problem.label}-{card}-{digest}"
    taken = {summary.spec.name for summary in archive.studies()}
    names = [base]
    while names[-1] in taken:
        names.append(f"{base}-{len(names) + 1}")
    return names
