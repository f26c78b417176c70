"""What is left to do in a study that several processes share, counted where all of them see it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, exists, func, or_, select, update

from evoengine.archive import tables
from evoengine.verdict import Gate

candidate, verdict = tables.candidate, tables.verdict


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far new candidates may go: the study's budget, and how many may be without a measurement or a rejection."""

    budget: int
    ahead: int | None = None


def lock(connection: Connection, study_id: int) -> None:
    """To be called first in a transaction: of two processes that write at once the second sees what the first did."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # an update would write a spec of a megabyte again
    else:
        connection.execute(select(tables.study.c.id).where(tables.study.c.id == study_id).with_for_update())


def room(connection: Connection, study_id: int, bounds: Bounds) -> int:
    """How many new candidates keep the bounds.

    What has no verdict yet is taken to cost one unit of the budget: a static rejection or a twin gives it back.
    """
    left = bounds.budget - spoken_for(connection, study_id)
    return left if bounds.ahead is None else min(left, bounds.ahead - _count(connection, study_id, ~judged(final=True)))


def spoken_for(connection: Connection, study_id: int) -> int:
    """Units of the budget that are paid (`verdict.is_paid`) or may come to be."""
    paid = and_(verdict.c.twin_of.is_(None), or_(verdict.c.gate.is_(None), verdict.c.gate != Gate.STATIC.value))
    return _count(connection, study_id, ~judged() | exists().where(verdict.c.candidate_id == candidate.c.id, paid))


def in_flight(connection: Connection, study_id: int, session_ids: Collection[int]) -> int:
    """Candidates that one of these sessions is at."""
    return _count(connection, study_id, candidate.c.session_id.in_(session_ids), ~judged(final=True))


def agree_on_reference(connection: Connection, study_id: int, us: float) -> float:
    """The scale of the study's times: the first that a card has offered."""
    mine = tables.study.c.id == study_id
    first = mine & tables.study.c.reference_us.is_(None)
    connection.execute(update(tables.study).where(first).values(reference_us=us))
    return float(connection.scalar(select(tables.study.c.reference_us).where(mine)) or us)


def judged(*, final: bool | None = None) -> ColumnElement[bool]:
    """Whether a candidate has a verdict; with `final`, one that is final or is not."""
    rows = exists().where(verdict.c.candidate_id == candidate.c.id)
    return rows if final is None else rows.where(verdict.c.final == final)


def _count(connection: Connection, study_id: int, *conditions: ColumnElement[bool]) -> int:
    query = select(func.count()).select_from(candidate).where(candidate.c.study_id == study_id, *conditions)
    return connection.scalar(query) or 0
