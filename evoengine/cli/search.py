"""`evoengine search` and `evoengine resume`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from contextlib import closing

from evoengine.archive.archive import Archive
from evoengine.archive.study import Study
from evoengine.build import Builder
from evoengine.cli import INTERRUPTED
from evoengine.cli.early import Early
from evoengine.cli.entries import shapes_in
from evoengine.cli.go_on import resume_command
from evoengine.cli.judges import check_sanitizer
from evoengine.cli.new_study import ask, create, proposer_of
from evoengine.cli.resolve import Target, find_target, reopen, resume_target, stored_limits
from evoengine.cli.result import Hindsight, nothing_passed, show_result, show_seconds, summary_of
from evoengine.cli.running import Run, search_study
from evoengine.cli.space import show_spaces
from evoengine.cli.stale import check_elites
from evoengine.cli.storage import existing_storage
from evoengine.cli.tables import console
from evoengine.convergence import check_can_converge
from evoengine.errors import UserError
from evoengine.progress import Budget, End
from evoengine.sampler import check_sampler
from evoengine.stopwatch import Stopwatch
from evoengine.verification import compiler_of


def run(arguments: argparse.Namespace, early: Early, watch: Stopwatch) -> int:
    if arguments.verb == "resume":
        return _resume(arguments, early, watch)
    shapes = _shapes(arguments)
    if arguments.dry_run:
        return show_spaces(arguments, [[shape] for shape in shapes] if arguments.per_shape and shapes else [shapes])
    check_sampler(arguments.sampler)
    if arguments.until_converged:
        check_can_converge(arguments.sampler)
    if arguments.per_device:
        from evoengine.cli import per_device  # 0.1 s with what it imports, which few searches need

        return per_device.run(arguments, shapes, early, watch)
    if arguments.per_shape:
        from evoengine.cli import per_shape

        return per_shape.run(arguments, shapes, early, watch)
    return _search(arguments, shapes, early, watch)


def _shapes(arguments: argparse.Namespace) -> list[str]:
    """Every shape that is asked for; none is the template's own.

    Raises:
        UserError: a file of them cannot be read.
    """
    return [*(arguments.shape or ()), *(shapes_in(arguments.shapes) if arguments.shapes else ())]


def _search(arguments: argparse.Namespace, shapes: Sequence[str], early: Early, watch: Stopwatch) -> int:
    target = early.target or find_target(arguments.device, arguments.target, arguments.limits, arguments.devices)
    check_sanitizer(arguments, target)
    asked = ask(arguments, target, *shapes, ahead=early.ahead)
    with closing(Archive.open(arguments.storage)) as archive:
        study, proposer = create(arguments, archive, asked, arguments.study)
        budget = Budget(arguments.budget, arguments.seconds, arguments.until_converged)
        go_on = resume_command(arguments, study.name)
        run = Run(asked.question, target, asked.builder, proposer, study, budget, go_on, early, watch=watch)
        return _finish(arguments, run)


def _resume(arguments: argparse.Namespace, early: Early, watch: Stopwatch) -> int:
    with closing(Archive.open(existing_storage(arguments.storage))) as archive:
        return _resume_study(arguments, archive.open_study(arguments.study), early, watch)


def _resume_study(arguments: argparse.Namespace, study: Study, early: Early, watch: Stopwatch) -> int:
    if arguments.until_converged:
        check_can_converge(study.spec.sampler)
    run = dataclasses.replace(reopened(arguments, study), early=early, watch=watch)
    return _finish(arguments, run)


def reopened(arguments: argparse.Namespace, study: Study, *, helps: bool = False) -> Run:
    """A run over a study that exists; one that `helps` needs no card.

    Raises:
        UserError: the study cannot go on here: other code, another compiler, another card, or an elite that is stale.
    """
    question = reopen(study.spec, template_folder=arguments.template, space_file=arguments.space, stale=arguments.force)
    if question.space.axes != study.spec.axes:
        raise UserError(
            f"the axes of study {study.name} have changed since, so that its configs mean something else: start a new "
            "search"
        )
    if helps:
        target, note = Target(stored_limits(study.spec), stored_limits(study.spec), None), ""
    else:
        target, note = resume_target(study.spec, arguments.device, arguments.devices)
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
    budget = Budget(arguments.budget or study.spec.budget, arguments.seconds, arguments.until_converged)
    proposer = proposer_of(study, question, target, builder)
    return Run(question, target, builder, proposer, study, budget, resume_command(arguments, study.name))


def _finish(arguments: argparse.Namespace, run: Run) -> int:
    hindsight = Hindsight(run.question, run.study)
    outcome = search_study(arguments, run, meanwhile=hindsight.begin).outcome
    with run.watch("summary"):
        summary = summary_of(run.question, run.study, run.study.records(), arguments.top, hindsight)
    summary["stopped"] = outcome.stopped
    summary["seconds"] = {activity: round(seconds, 3) for activity, seconds in run.watch.seconds().items()}
    if arguments.json:
        print(json.dumps(summary, indent=2))
    else:
        show_result(summary)
        if arguments.verbose:
            show_seconds(summary["seconds"])
    if outcome.interrupted or not End.reached(outcome.stopped):
        console(stderr=True).print(f"go on with: {run.go_on}", soft_wrap=True)
    if outcome.interrupted:
        return INTERRUPTED
    failure = nothing_passed(summary)
    if failure:
        print(f"evoengine: {failure}", file=sys.stderr)
    return int(bool(failure))
