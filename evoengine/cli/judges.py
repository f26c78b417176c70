"""Who judges the candidates of a search: a card or the interpreter, and the sanitizer where it is asked for."""

from __future__ import annotations

import argparse

from evoengine.archive.study import Study
from evoengine.cli.early import Early
from evoengine.cli.resolve import Target
from evoengine.devices import Device, TimingDevice
from evoengine.devices.cuda import CudaDevice
from evoengine.devices.cuda.sanitizer import PROGRAM, Sanitizer
from evoengine.devices.cuda.watched import require_tool
from evoengine.devices.interpreter.session import InterpreterDevice
from evoengine.errors import UserError
from evoengine.question import Question
from evoengine.screening import Screening
from evoengine.verdict import Measurement


def device_for(
    question: Question, target: Target, study: Study, jobs: int, *, force: bool, early: Early
) -> tuple[Device, TimingDevice | None]:
    """The device, and the same again where it times. A study that was measured before keeps its scale and its best."""
    if target.ordinal is None:
        return InterpreterDevice(question.template, question.problem, question.limits, jobs=jobs), None
    measured = [record.verdict for record in study.records() if isinstance(record.verdict, Measurement)]
    device = CudaDevice(
        question.template,
        question.problem,
        target.device,
        ordinal=target.ordinal,
        seed=study.spec.seed,
        force=force,
        reference_us=measured[0].control_reference_us if measured else None,
        best_us=min((one.median_us for one in measured), default=float("inf")),
        started=early.take(),
        spares=True,
    )
    return device, device


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
