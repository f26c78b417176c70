"""Who judges the candidates of a search: a card or the interpreter, and the sanitizer where it is asked for."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evoengine.archive.study import Study
from evoengine.cli.early import Early
from evoengine.cli.resolve import Target
from evoengine.devices import TimingDevice, Watched
from evoengine.devices.cuda import CudaDevice
from evoengine.devices.cuda.device import WORKER
from evoengine.devices.cuda.lock import SharedLock
from evoengine.devices.cuda.sanitizer import PROGRAM, Sanitizer
from evoengine.devices.cuda.shapes import ShapesDevice
from evoengine.devices.cuda.spares import Spares
from evoengine.devices.cuda.watched import require_tool
from evoengine.devices.fleet import Fleet
from evoengine.devices.pool import Card, CardDevice
from evoengine.devices.prepared import Prepared
from evoengine.devices.single import SingleCard
from evoengine.errors import UserError
from evoengine.final_run import FINAL_SEED
from evoengine.problem import Problem, ProblemSet
from evoengine.question import Question
from evoengine.screening import Screening
from evoengine.verdict import Measurement, on_shapes

SPARES = 2
"""Workers begun while the card's first one comes up. A time over a tenth under the best so far is believed only once a
fresh process has confirmed it (`doubt.SUSPICIOUS`), which the first fast ones of a search all need, and no proposal may
know of any verdict behind them. Begun once the first was up, such a process was ready 5 s after the first verdict, the
next 7 s after that; two at the start made a search of 200 candidates 8 of 37 s shorter in a model of it, and no more
are begun in all."""
CORES_FOR_A_SPARE = 4
"""Fewer are kept for the first, which needs 5 s of one to import torch, and for the compilers."""


def device_for(
    question: Question,
    target: Target,
    study: Study,
    jobs: int,
    *,
    force: bool,
    note: Callable[[str], None],
    early: Early | None = None,
) -> tuple[Watched, TimingDevice | None]:
    """The device, and the same again where it times. A study that was measured before keeps its scale and its best.

    `note` is told when one card of several is lost.
    """
    if target.ordinal is None:
        from evoengine.devices.interpreter.session import InterpreterDevice  # 0.05 s, which no search on a card pays

        return InterpreterDevice(question.template, question.problem, question.limits, jobs=jobs), None
    measured = [record.verdict for record in study.records() if isinstance(record.verdict, Measurement)]
    if len(target.cards) < 2:
        started = None if early is None else early.take(target.ordinal)
        spares = Spares((*WORKER, str(target.ordinal)), started)
        if started is not None:
            _begin(spares, jobs)
        options: dict[str, Any] = {"ordinal": target.ordinal, "force": force, "spares": spares}
        if isinstance(question.problem, ProblemSet):
            single = SingleCard(_device(question, target, study, measured, options))
        else:
            seed = study.spec.seed
            made = Prepared(question.template, question.problem, question.default.values, seed, seed + FINAL_SEED)
            options["scratch"] = made.folder
            single = SingleCard(_device(question, target, study, measured, options), made.close)
        return single, single
    scratch = tempfile.TemporaryDirectory(prefix="evoengine-")  # the fleet's `close` removes it
    cards = []
    for gpu in target.cards:
        spares = Spares((*WORKER, gpu.uuid))
        spares.begin()
        _begin(spares, jobs // len(target.cards))
        options = {
            "ordinal": gpu.ordinal,
            "uuid": gpu.uuid,
            "scratch": Path(scratch.name),
            "force": force,
            "spares": spares,
        }
        cards.append(Card(gpu.uuid, _device(question, target, study, measured, options)))
    fleet = Fleet(target.device.name, cards, note, after=scratch.cleanup)
    return fleet, fleet


def _begin(spares: Spares, cores: int) -> None:
    """As many as there are cores for, beside the first."""
    for _ in range(min(cores // CORES_FOR_A_SPARE, SPARES)):
        spares.begin()


def _device(
    question: Question, target: Target, study: Study, measured: Sequence[Measurement], options: Mapping[str, Any]
) -> CardDevice:
    """One card, for the problem or for every problem of a set; `measured` is what the study knows already."""
    if not isinstance(question.problem, ProblemSet):
        known = [(one.control_reference_us, one.median_us) for one in measured]
        return _card(question, question.problem, target, study, known, options)
    lock = SharedLock()
    rows = [row for verdict in measured for row in on_shapes(verdict.evidence)]
    shared = {**options, "lock": lock}
    members = [
        (one, _card(question, one.problem, target, study, _known_at(one.problem, rows), shared))
        for one in question.problem.members
    ]
    return ShapesDevice(members, lock)


def _known_at(problem: Problem, rows: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """The control's scale and the time of every measured config at one problem of a set."""
    return [(row["control_reference_us"], row["median_us"]) for row in rows if row["shape"] == problem.label]


def _card(
    question: Question,
    problem: Problem,
    target: Target,
    study: Study,
    known: Sequence[tuple[float, float]],
    options: Mapping[str, Any],
) -> CudaDevice:
    """The card for one problem; `known` are the control's scale and the time of what the study measured there."""
    return CudaDevice(
        question.template,
        problem,
        target.device,
        seed=study.spec.seed,
        reference_us=known[0][0] if known else None,
        best_us=min((time_us for _, time_us in known), default=float("inf")),
        **options,
    )


def check_sanitizer(arguments: argparse.Namespace, target: Target) -> None:
    """Before anything is spent.

    Raises:
        UserError: --sanitize is given and there is no GPU, or no compute-sanitizer.
    """
    if not arguments.sanitize:
        return
    require_tool(PROGRAM, "--sanitize")
    if target.ordinal is None:
        raise UserError("--sanitize launches finalists on a GPU, and there is none to use: leave it out")


def screening_for(question: Question, target: Target, study: Study) -> Screening:
    assert target.ordinal is not None, "checked before the search"
    executable = require_tool(PROGRAM, "--sanitize")
    return Screening(question, Sanitizer(executable, question.template, target.ordinal, study.spec.seed))
