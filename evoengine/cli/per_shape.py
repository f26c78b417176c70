"""`evoengine search --per-shape`: a study for every shape, one after the other."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

from evoengine.archive.archive import Archive
from evoengine.archive.records import StudySpec, fastest
from evoengine.archive.study import Study
from evoengine.cli import INTERRUPTED
from evoengine.cli.dispatch import dispatch_row, dispatch_table, show_dispatch
from evoengine.cli.early import Early
from evoengine.cli.go_on import storage_option
from evoengine.cli.judges import check_sanitizer
from evoengine.cli.new_study import Asked, ask, begun, create, proposer_of
from evoengine.cli.resolve import find_target
from evoengine.cli.running import Ran, Run, search_study
from evoengine.cli.storage import without_secrets
from evoengine.cli.tables import console
from evoengine.errors import TemplateError
from evoengine.problem import problem_digest
from evoengine.progress import Budget
from evoengine.stopwatch import Stopwatch
from evoengine.verdict import Estimate, is_paid

KEPT = "kept"
NOT_BEGUN = "not begun"


def run(arguments: argparse.Namespace, shapes: Sequence[str], early: Early, watch: Stopwatch) -> int:
    """Search every shape, those first that come first; a shape that is given twice counts once."""
    target = find_target(arguments.device, arguments.target, arguments.limits, arguments.devices)
    check_sanitizer(arguments, target)
    every = [ask(arguments, target, shape) for shape in shapes or [""]]
    distinct = list({problem_digest(asked.question.problem): asked for asked in every}.values())
    template, storage = distinct[0].question.template, storage_option(arguments.storage)
    labels = [asked.question.problem.label for asked in distinct]
    return search_all(
        arguments,
        early,
        watch,
        "shape",
        labels,
        distinct,
        lambda rows: dispatch_table(template, rows, storage),
        show_dispatch,
    )


def search_all(
    arguments: argparse.Namespace,
    early: Early,
    watch: Stopwatch,
    kind: str,
    labels: Sequence[str],
    every: Sequence[Asked],
    document_of: Callable[[list[dict[str, Any]]], dict[str, Any]],
    show: Callable[[dict[str, Any]], None],
) -> int:
    """A study for each of a `kind`, called by its label; then the document of all, and the exit code."""
    with closing(Archive.open(arguments.storage)) as archive:
        go_on = _same_command(arguments)
        try:
            rows, stopped = _search_each(arguments, archive, kind, labels, every, go_on, early, watch)
        except KeyboardInterrupt as stop:
            raise stop if stop.args else KeyboardInterrupt(f"stopped; {_how_to_go_on(go_on)}") from None
    document = document_of(rows)
    if arguments.json:
        print(json.dumps(document, indent=2))
    else:
        show(document)
    if stopped:
        console(stderr=True).print(_how_to_go_on(go_on), soft_wrap=True)
        return INTERRUPTED
    without = [row for row in rows if "why" in row]
    for row in without:
        print(f"evoengine: {row[kind]}: {row['why']}", file=sys.stderr)
    return int(bool(without))


def _search_each(
    arguments: argparse.Namespace,
    archive: Archive,
    kind: str,
    labels: Sequence[str],
    every: Sequence[Asked],
    go_on: str,
    early: Early,
    watch: Stopwatch,
) -> tuple[list[dict[str, Any]], bool]:
    """A row for each, and whether the user stopped it before the last."""
    studies = archive.studies()
    rows: list[dict[str, Any]] = []
    before: list[StudySpec] = []
    stopped = False
    for number, (label, asked) in enumerate(zip(labels, every, strict=True), start=1):
        name = f"{arguments.study}-{label.replace(' ', '_')}" if arguments.study else None
        found = begun(arguments, studies, asked, name)
        study, state = (None, NOT_BEGUN) if found is None else (archive.open_study(found.spec.name), found.status)
        if study is not None and _finished(arguments, study, state, asked):
            state = f"{KEPT}: {state}"
        elif not stopped:
            if not arguments.quiet:
                console(stderr=True).print(f"{kind} {number} of {len(every)}: {label}")
            if study is None:
                study, proposer = create(arguments, archive, asked, name, before)
            else:
                proposer = proposer_of(study, asked.question, asked.target, asked.builder)
            budget = _budget(arguments)
            run = Run(asked.question, asked.target, asked.builder, proposer, study, budget, go_on, early, watch)
            ran = _search_one(arguments, run, label)
            state = ran.outcome.stopped
            stopped = ran.outcome.interrupted or (ran.told_to_stop and number < len(every))
        if study is not None:
            before.append(study.spec)
        rows.append({kind: label, **dispatch_row(asked.question, study, state)})
    return rows, stopped


def _search_one(arguments: argparse.Namespace, run: Run, label: str) -> Ran:
    try:
        return search_study(arguments, run)
    except TemplateError as error:
        raise TemplateError(f"{label}: {error}; the studies before it are kept") from error


def _budget(arguments: argparse.Namespace) -> Budget:
    return Budget(arguments.budget, arguments.seconds, arguments.until_converged)


def _finished(arguments: argparse.Namespace, study: Study, status: str, asked: Asked) -> bool:
    """Whether another run would find nothing to do: nothing is in flight, waits for the card or for the final run, and
    the budget is spent."""
    records = study.records()
    waits = any(one.verdict is None for one in records)
    if asked.target.ordinal is not None:
        waits |= any(isinstance(one.verdict, Estimate) for one in records)
        waits |= not study.elites() and bool(fastest(records, 1))
    spent = sum(is_paid(one.verdict, one.twin_of) for one in records)
    return not waits and _budget(arguments).granted(status, spent)


def _same_command(arguments: argparse.Namespace) -> str:
    """The command that was given, with URL for a storage that has a password in it."""
    hidden = without_secrets(arguments.storage)
    command: str = arguments.command_line
    if hidden == arguments.storage:
        return command
    return shlex.join(word.replace(hidden, "URL") for word in shlex.split(command))


def _how_to_go_on(command: str) -> str:
    return f"go on with the same command: {command}"
