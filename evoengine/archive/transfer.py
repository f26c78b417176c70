"""Studies as wholes: renamed, deleted, copied to another database. Each is one transaction, so a kill leaves no half.

None of them touches a study that a live process searches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqlalchemy import Connection, exc, select, update

from evoengine.archive import sessions, tables
from evoengine.archive.codec import read_spec
from evoengine.archive.documents import Damaged
from evoengine.archive.records import StudySpec
from evoengine.archive.rows import STUDIES, Keys, Rows, delete_rows, insert_rows, read_rows
from evoengine.errors import UserError


@dataclass(frozen=True, slots=True)
class Whole:
    """Every row of a study, in memory: a copy within one database must not read it under its own lock."""

    spec: StudySpec
    ours: Rows
    optunas: Rows


def read_whole(connection: Connection, name: str) -> Whole:
    """The study `name`, which exists.

    Raises:
        UserError: a live process has it open.
        Damaged: it holds what no evoengine writes.
    """
    study_id, at = hold(connection, name)
    rows = read_rows(connection, tables.study, study_id)
    [study] = rows[tables.study]
    return Whole(read_spec(study), rows, read_rows(connection, STUDIES, found(at, name)))


def hold(connection: Connection, name: str) -> tuple[int, int | None]:
    """Our id and Optuna's of the study `name`, which no process can open until this transaction ends.

    Raises:
        UserError: a live process has it open, or it was deleted a moment ago.
    """
    mine = tables.study.c.name == name
    connection.execute(update(tables.study).where(mine).values(name=name))  # locks it, as the start of a session does
    study_id = connection.scalar(select(tables.study.c.id).where(mine))
    if study_id is None:
        raise UserError(f"study {name} is gone: another process has deleted or renamed it")
    sessions.refuse_if_open(connection, study_id, name)
    return int(study_id), connection.scalar(select(STUDIES.c.study_id).where(STUDIES.c.study_name == name))


def found(optuna_id: int | None, name: str) -> int:
    """Optuna's id of a study that must be whole.

    Raises:
        Damaged: another program has deleted Optuna's side of the study.
    """
    if optuna_id is None:
        raise Damaged(f"Optuna's tables have no study {name!r:.80}")
    return optuna_id


def spec_of(connection: Connection, study_id: int) -> StudySpec:
    return read_spec(connection.execute(select(tables.study).where(tables.study.c.id == study_id)).mappings().one())


def write_whole(connection: Connection, whole: Whole, name: str, taken: UserError) -> None:
    """A new study `name` with all that `whole` holds, and Optuna's trials under their numbers.

    Raises:
        UserError: `taken`, another study has the name.
    """
    keys: Keys = {}
    optunas = whole.optunas | {STUDIES: [{**row, "study_name": name} for row in whole.optunas[STUDIES]]}
    spec = replace(whole.spec, name=name).as_json()
    study = [{**row, "name": name, "spec": spec, "opened_at": sessions.now()} for row in whole.ours[tables.study]]
    # Nobody is alive to end them, and where their process table is out of sight they would count as live.
    ended = [{**row, "ended_at": row["ended_at"] or sessions.now()} for row in whole.ours[tables.session]]
    try:
        insert_rows(connection, STUDIES, optunas, keys)
        insert_rows(connection, tables.study, whole.ours | {tables.study: study, tables.session: ended}, keys)
    except exc.IntegrityError:
        raise taken from None


def rename(connection: Connection, name: str, new: str, taken: UserError) -> None:
    """Give the study `name` another, here and in Optuna's tables.

    Raises:
        UserError: `taken`, another study has the name; or a live process has the study open.
    """
    study_id, at = hold(connection, name)
    values = {"name": new, "spec": replace(spec_of(connection, study_id), name=new).as_json()}
    try:
        connection.execute(update(tables.study).where(tables.study.c.id == study_id).values(values))
        connection.execute(update(STUDIES).where(STUDIES.c.study_id == found(at, name)).values(study_name=new))
    except exc.IntegrityError:
        raise taken from None


def delete(connection: Connection, name: str) -> None:
    """Delete the study `name`; also one whose Optuna side another program has deleted.

    Raises:
        UserError: a live process has it open.
    """
    study_id, at = hold(connection, name)
    delete_rows(connection, tables.study, study_id)
    if at is not None:
        delete_rows(connection, STUDIES, at)
