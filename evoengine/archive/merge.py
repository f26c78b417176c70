"""A study of another machine brought into one of this database: what it has estimated and refused, nothing measured.

A merged estimate waits under a number of its own, so that `resume` measures it before anything new is proposed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import Connection, func, select, update

from evoengine.archive import sessions, tables
from evoengine.archive.ledger import TRIAL_ATTRS, TRIALS
from evoengine.archive.records import StudySpec
from evoengine.archive.rows import STUDIES, Keys, Row, Rows, insert_rows
from evoengine.archive.transfer import Whole, found, hold, spec_of
from evoengine.archive.trials import ORIGIN
from evoengine.errors import UserError

RATES = {"name", "sms", "l2_bytes", "clock_mhz", "dram_gbps", "tensor_tflops"}
"""Of a device's limits, what refuses nothing: a card of the datasheet and the same card asked differ here."""


@dataclass(frozen=True, slots=True)
class Merged:
    """What came of a merge, in configs. `known` were in the study already and keep what it knows of them."""

    estimated: int
    rejected: int
    known: int


def merge(connection: Connection, source: Whole, into: str) -> Merged:
    """Enter what `source` has estimated or rejected, and the study `into` does not know, into that study.

    Raises:
        UserError: a live process has the study open, the two ask different questions, or `source` has measured.
    """
    study_id, optuna_id = hold(connection, into)
    at = found(optuna_id, into)
    _check_question(source.spec, spec_of(connection, study_id))
    verdicts = _verdicts(source)
    known = _known(connection, study_id)
    numbers_of = {row["trial_id"]: row["number"] for row in source.optunas[TRIALS]}
    candidates = [
        row for row in source.ours[tables.candidate] if row["trial_id"] in numbers_of and row["id"] in verdicts
    ]
    new = [row for row in candidates if row["config_digest"] not in known]
    new.sort(key=lambda row: int(numbers_of[row["trial_id"]]))
    first = connection.scalar(select(func.count()).select_from(TRIALS).where(TRIALS.c.study_id == at)) or 0
    numbers = {numbers_of[row["trial_id"]]: number for number, row in enumerate(new, start=first)}
    for row in source.ours[tables.candidate]:
        number = known.get(row["config_digest"])
        if number is not None and row["trial_id"] in numbers_of:
            numbers[numbers_of[row["trial_id"]]] = number

    keys: Keys = {STUDIES: {row["study_id"]: at for row in source.optunas[STUDIES]}}
    insert_rows(connection, STUDIES, _trials(source, new, verdicts, numbers), keys)
    keys[tables.study] = {row["id"]: study_id for row in source.ours[tables.study]}
    insert_rows(connection, tables.study, _candidates(source, new, verdicts, numbers), keys)
    last_used = update(tables.study).where(tables.study.c.id == study_id).values(opened_at=sessions.now())
    connection.execute(last_used)  # so that `resume` without a name goes on with it
    rejected = sum(bool(verdicts[row["id"]]["final"]) for row in new)
    return Merged(len(new) - rejected, rejected, len(candidates) - len(new))


def _check_question(source: StudySpec, spec: StudySpec) -> None:
    """What must not be mixed in one study. Cards first: their difference explains most of the others."""
    if (source.device, source.arch) != (spec.device, spec.arch):
        raise UserError(
            f"study {source.name} is for {source.device} ({source.arch}), study {spec.name} for {spec.device} "
            f"({spec.arch}), whose configs it cannot rank: search for that card with --device none --target CARD, or "
            "bring it in under a name of its own with --into NAME"
        )
    for what, theirs, ours in (
        ("template", source.template_digest, spec.template_digest),
        ("search space", source.space_digest, spec.space_digest),
        ("problem", source.problem_label, spec.problem_label),
        ("problem", source.problem_digest, spec.problem_digest),
        ("limit", *_differing(_binding(source.limits), _binding(spec.limits))),
        ("ceiling", *_differing(source.ceilings, spec.ceilings)),
        ("toolchain", source.toolchain, spec.toolchain),
    ):
        if theirs != ours:
            raise UserError(
                f"study {source.name} asks another question than study {spec.name}: its {what} is {theirs}, not "
                f"{ours}; bring it in under a name of its own with --into NAME"
            )


def _binding(limits: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in limits.items() if name not in RATES}


def _differing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> tuple[str, str]:
    """The first member that differs, of each; twice nothing where none does."""
    for name in sorted(theirs.keys() | ours.keys()):
        if theirs.get(name) != ours.get(name):
            return f"{name} = {theirs.get(name)}", f"{ours.get(name)}"
    return "", ""


def _verdicts(source: Whole) -> dict[int, Row]:
    """By candidate, the verdict that counts: the final one, else the estimate."""
    rows = sorted(source.ours[tables.verdict], key=lambda row: bool(row["final"]))
    measured = sum(row["kind"] == "measurement" for row in rows)
    if measured or source.ours[tables.elite]:
        raise UserError(
            f"study {source.spec.name} has measured {measured} configs, and times of two machines must not be ranked "
            "together: bring it in under a name of its own with --into NAME, and begin with it by --warm-start NAME"
        )
    return {row["candidate_id"]: row for row in rows}


def _known(connection: Connection, study_id: int) -> dict[str, int | None]:
    """The configs that a study has claimed, by digest, with their trials' numbers."""
    query = (
        select(tables.candidate.c.config_digest, TRIALS.c.number)
        .outerjoin(TRIALS, TRIALS.c.trial_id == tables.candidate.c.trial_id)
        .where(tables.candidate.c.study_id == study_id)
    )
    return {row.config_digest: row.number for row in connection.execute(query)}


def _trials(source: Whole, new: list[Row], verdicts: Mapping[int, Row], numbers: Mapping[int, int]) -> Rows:
    """Optuna's rows of the new candidates, in their order."""
    by_id = {row["trial_id"]: row for row in source.optunas[TRIALS]}
    chosen = {row["trial_id"]: verdicts[row["id"]] for row in new}
    rows: Rows = {
        table: [row for row in kept if row["trial_id"] in chosen]
        for table, kept in source.optunas.items()
        if table is not TRIALS and "trial_id" in table.columns
    }
    rows[TRIALS] = [_trial(by_id[trial_id], verdict, numbers) for trial_id, verdict in chosen.items()]
    rows[TRIAL_ATTRS] = [_attribute(row, numbers) for row in rows[TRIAL_ATTRS]]
    return rows


def _trial(row: Row, verdict: Row, numbers: Mapping[int, int]) -> Row:
    """The state is that of the verdict: the source may have been killed between the two."""
    number = numbers[row["number"]]
    if not verdict["final"]:
        return {**row, "number": number, "state": TrialState.WAITING}
    return {**row, "number": number, "state": TrialState.PRUNED}


def _attribute(row: Row, numbers: Mapping[int, int]) -> Row:
    if row["key"] != ORIGIN:
        return row
    return {**row, "value_json": json.dumps(_renumbered(json.loads(row["value_json"]), numbers))}


def _renumbered(document: Mapping[str, Any], numbers: Mapping[int, int]) -> dict[str, Any]:
    """A proposal or origin with its parents as they are called here; one that stayed behind is left out."""
    parents = [numbers.get(parent) for parent in document.get("parents", ())]
    return {**document, "parents": [parent for parent in parents if parent is not None]}


def _candidates(source: Whole, new: list[Row], verdicts: Mapping[int, Row], numbers: Mapping[int, int]) -> Rows:
    """Our rows of the new candidates, with the sessions whose environments their verdicts were reached in."""
    chosen = {row["id"] for row in new}
    kept = [
        {**row, "twin_of": None if row["twin_of"] is None else numbers.get(row["twin_of"])}
        for row in source.ours[tables.verdict]
        if row["candidate_id"] in chosen
    ]
    used = {row["session_id"] for row in kept}
    return {
        tables.session: [
            {**row, "ended_at": row["ended_at"] or sessions.now()}
            for row in source.ours[tables.session]
            if row["id"] in used
        ],
        tables.candidate: [
            {
                **{name: value for name, value in row.items() if name != "revision"},  # of another study
                "proposal": None if row["proposal"] is None else _renumbered(row["proposal"], numbers),
                "session_id": verdicts[row["id"]]["session_id"] if verdicts[row["id"]]["final"] else None,
            }
            for row in new
        ],
        tables.build: [row for row in source.ours[tables.build] if row["candidate_id"] in chosen],
        tables.verdict: kept,
    }
