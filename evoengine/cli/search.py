"""`evoengine search` and `evoengine resume`."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import shlex
import signal
import sys
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from evoengine.archive.archive import Archive
from evoengine.archive.lease import Owner
from evoengine.archive.records import StudySpec
from evoengine.archive.study import Study
from evoengine.build import Builder
from evoengine.cli import space as space_command
from evoengine.cli.display import Display
from evoengine.cli.judges import check_sanitizer, device_for, screening_for
from evoengine.cli.resolve import Target, find_question, find_target, reopen, resume_target
from evoengine.cli.result import nothing_passed, show_result, summary_of
from evoengine.cli.stale import check_elites
from evoengine.cli.storage import existing_storage, storage_url
from evoengine.cli.tables import console
from evoengine.cli.warm_start import find_sources
from evoengine.convergence import check_can_converge
from evoengine.engine import Search
from evoengine.errors import EvoengineError, TemplateError, UserError
from evoengine.forecast import Forecast
from evoengine.problem import problem_digest, problem_fields
from evoengine.progress import Budget, Outcome
from evoengine.question import Question
from evoengine.sampler import INFORMED, check_sampler
from evoengine.sampler.proposer import Proposer
from evoengine.sampler.source import Source
from evoengine.verification import compiler_of

INTERRUPTED = 130
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(arguments: argparse.Namespace) -> int:
    if arguments.verb == "resume":
        return _resume(arguments)
    if arguments.dry_run:
        return space_command.run(arguments)
    return _search(arguments)


def _search(arguments: argparse.Namespace) -> int:
    check_sampler(arguments.sampler)
    if arguments.until_converged:
        check_can_converge(arguments.sampler)
    target = find_target(arguments.device, arguments.target, arguments.limits)
    check_sanitizer(arguments, target)
    question, path = find_question(arguments, target)
    builder = Builder(question.template, target.device.arch, compiler=arguments.compiler, jobs=arguments.jobs)
    # Before anything is written: a space in which nothing is feasible must not leave an empty study behind.
    _ = question.default
    with closing(Archive.open(storage_url(arguments.storage))) as archive:
        sources = _sources(arguments, archive, question, target)
        proposer = Proposer(
            question.space, question.feasible, sampler=arguments.sampler, seed=arguments.seed, sources=sources
        )
        name = arguments.study or _free_name(archive, question, target, builder)
        study = archive.create_study(_spec(arguments, name, question, path, target, builder, sources))
        budget = Budget(arguments.budget, arguments.seconds, arguments.until_converged)
        return _run(arguments, question, target, builder, proposer, study, budget)


def _sources(arguments: argparse.Namespace, archive: Archive, question: Question, target: Target) -> tuple[Source, ...]:
    """What the search is told before it begins: the estimate, and what other studies measured."""
    studies = find_sources(arguments.warm_start or (), archive, question, target)
    if arguments.warm_start and not studies:
        console(stderr=True).print(f"no study of another shape or card in {archive.name} to start from")
    if arguments.sampler not in INFORMED:
        return studies
    feasible = question.feasible.points
    forecast = Forecast(question.template.module, question.problem, target.device, question.space, feasible)
    estimated = forecast.source(arguments.seed)
    return studies if estimated is None else (*studies, estimated)


def _spec(
    arguments: argparse.Namespace,
    name: str,
    question: Question,
    path: Path,
    target: Target,
    builder: Builder,
    sources: tuple[Source, ...],
) -> StudySpec:
    template = question.template
    return StudySpec(
        name=name,
        template=template.name,
        template_digest=template.digest,
        template_folder=str(template.folder),
        space=question.space.name,
        space_digest=question.space.digest,
        space_path=str(path),
        axes=question.space.axes,
        default=question.space.default,
        problem=problem_fields(question.problem),
        problem_label=question.problem.label,
        problem_digest=problem_digest(question.problem),
        device=target.device.name,
        limits=target.limits.as_json(),
        arch=target.device.arch,
        toolchain=builder.toolchain.version,
        sampler=arguments.sampler,
        seed=arguments.seed,
        budget=arguments.budget,
        seconds=arguments.seconds,
        ceilings=dataclasses.asdict(question.ceilings),
        command=arguments.command_line,
        measures=target.ordinal is not None,
        created_at=datetime.now(UTC).isoformat(),
        sources=sources,
    )


def _free_name(archive: Archive, question: Question, target: Target, builder: Builder) -> str:
    """`attention-B1_H8_S512_D64_fp16-l4-1a2b3c4d`, and `-2`, `-3`... when the same question is asked again.

    The digits stand for space, template, problem, device, limits and toolchain: what must not be mixed in one study.
    """
    parts = (
        question.space.digest,
        question.template.digest,
        problem_digest(question.problem),
        target.device.name,
        repr(target.limits),
        repr(question.ceilings),
        builder.toolchain.digest,
    )
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]
    card = "".join(c for c in target.device.name.removeprefix("NVIDIA ").lower() if c.isalnum())
    base = f"{question.template.name}-{question.problem.label}-{card}-{digest}"
    taken = {summary.spec.name for summary in archive.studies()}
    number = 1
    while (name := base if number == 1 else f"{base}-{number}") in taken:
        number += 1
    return name


def _resume(arguments: argparse.Namespace) -> int:
    with closing(Archive.open(existing_storage(arguments.storage))) as archive:
        return _resume_study(arguments, archive.open_study(arguments.study))


def _resume_study(arguments: argparse.Namespace, study: Study) -> int:
    if arguments.until_converged:
        check_can_converge(study.spec.sampler)
    question = reopen(study.spec, template_folder=arguments.template, space_file=arguments.space, stale=arguments.force)
    if question.space.axes != study.spec.axes:
        raise UserError(
            f"the axes of study {study.name} have changed since, so that its configs mean something else: start a new "
            "search"
        )
    target, note = resume_target(study.spec, arguments.device)
    check_sanitizer(arguments, target)
    compiler = compiler_of(study.spec.toolchain)
    builder = Builder(question.template, study.spec.arch, compiler=compiler, jobs=arguments.jobs)
    if builder.toolchain.version != study.spec.toolchain:
        raise UserError(
            f"study {study.name} was built with {study.spec.toolchain}, here is {builder.toolchain.version}: install "
            "that one, or start a new search"
        )
    if not arguments.force:
        check_elites(study, question, builder)
    if note:
        console(stderr=True).print(note)
    proposer = Proposer(
        question.space,
        question.feasible,
        sampler=study.spec.sampler,
        seed=study.spec.seed,
        sources=study.spec.sources,
    )
    budget = Budget(arguments.budget or study.spec.budget, arguments.seconds, arguments.until_converged)
    return _run(arguments, question, target, builder, proposer, study, budget)


def _run(
    arguments: argparse.Namespace,
    question: Question,
    target: Target,
    builder: Builder,
    proposer: Proposer,
    study: Study,
    budget: Budget,
) -> int:
    feasible = question.feasible
    measures = target.ordinal is not None
    out = console(stderr=True)
    with ExitStack() as stack:
        for number in STOP_SIGNALS:
            stack.callback(signal.signal, number, signal.getsignal(number))
        study.acquire(Owner.current())
        stack.callback(study.release)
        if budget.candidates > study.spec.budget:
            study.set_budget(budget.candidates)
        stack.enter_context(builder)
        device, timing = device_for(question, target, study, builder.jobs, force=arguments.force)
        stack.callback(device.close)
        display = Display(out, budget.candidates, measures=measures, quiet=arguments.quiet, verbose=arguments.verbose)
        display.note(
            f"study {study.name}: {len(feasible.points):,} feasible of {feasible.product:,} configs, "
            f"limits of {question.limits.name}"
        )
        for source in study.spec.sources:
            display.note(f"known beforehand: {source.name}, {source.known} configs, digest {source.digest}")
        if not measures:
            display.note(
                f"no GPU: candidates are compiled for {target.device.name}, proven in the PTX interpreter and "
                "ranked by an estimate; nothing is measured"
            )
        search = Search(
            question,
            study,
            proposer=proposer,
            builder=builder,
            device=device,
            timing=timing,
            budget=budget,
            batch=arguments.batch or min(max(2 * builder.jobs, 8), 32),
            listener=stack.enter_context(display),
            screening=screening_for(question, target, study) if arguments.sanitize else None,
        )
        _stop_on_signals(search, display)
        try:
            outcome = search.run()
        except TemplateError:
            raise
        except EvoengineError as error:  # nothing that is committed is lost
            if "evoengine resume" in str(error):
                raise
            raise type(error)(f"{error}; then go on with: {_resume_command(arguments, study)}") from error
    return _finish(arguments, question, study, outcome)


def _stop_on_signals(search: Search, display: Display) -> None:
    """The first Ctrl-C (or SIGTERM) finishes the verdict in flight; the second stops at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        display.note_from_signal("stopping after the verdict in flight; press Ctrl-C again to stop at once")
        search.request_stop()

    for number in STOP_SIGNALS:
        signal.signal(number, stop)


def _resume_command(arguments: argparse.Namespace, study: Study) -> str:
    """Without the storage's credentials."""
    command = f"evoengine resume {shlex.quote(study.name)}"
    if arguments.storage != os.path.join("studies", "evoengine.db"):
        command += f" --storage {'URL' if '@' in arguments.storage else shlex.quote(arguments.storage)}"
    return command


def _finish(arguments: argparse.Namespace, question: Question, study: Study, outcome: Outcome) -> int:
    summary = summary_of(question, study, arguments.top)
    summary["stopped"] = outcome.stopped
    if arguments.json:
        print(json.dumps(summary, indent=2))
    else:
        show_result(summary)
    if outcome.interrupted:
        console(stderr=True).print(f"go on with: {_resume_command(arguments, study)}", soft_wrap=True)
        return INTERRUPTED
    failure = nothing_passed(summary)
    if failure:
        print(f"evoengine: {failure}", file=sys.stderr)
    return int(bool(failure))
