"""Elites that are no longer what they were: found before `resume` goes on with them and before `export`."""

from __future__ import annotations

from evoengine.archive.study import Study
from evoengine.build import Builder
from evoengine.errors import UserError
from evoengine.question import Question
from evoengine.verification import compiler_of, recorded_trial, stale


def check_elites(study: Study, question: Question, builder: Builder) -> None:
    """Rebuild every elite of a study.

    Raises:
        UserError: one is stale.
    """
    _check(study, question, builder, {elite.number for elite in study.elites()})


def check_trial(study: Study, question: Question, number: int) -> None:
    """The same for one trial, elite or not, with the compiler that built it.

    Raises:
        UserError: it is stale, or that compiler is not here.
    """
    try:
        builder = Builder(question.template, study.spec.arch, compiler=compiler_of(study.spec.toolchain))
    except UserError as error:
        raise UserError(
            f"trial {number} of study {study.name} cannot be rebuilt here ({error}); or give --force"
        ) from error
    with builder:
        _check(study, question, builder, {number})


def _check(study: Study, question: Question, builder: Builder, numbers: set[int]) -> None:
    elites = {elite.number: elite for elite in study.elites()}
    records = [record for record in study.records() if record.number in numbers]
    builds = builder.build([question.build_request(record.config.values) for record in records])
    for record, built in zip(records, builds, strict=True):
        elite = elites.get(record.number)
        why = stale(recorded_trial(study.spec, record, elite), question, built, elite)
        if why:
            raise UserError(
                f"trial {record.number} of study {study.name} is stale, {why}: search again, or give --force"
            )
