"""Sessions: who has a study open for searching. A session is the lease that claims of candidates hang on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import Connection, extract, func, insert, select, update

from evoengine.archive import lease, tables
from evoengine.archive.codec import read_row
from evoengine.archive.documents import typed
from evoengine.archive.lease import Owner
from evoengine.errors import Unavailable, UserError

TAKEN_OVER = "taken over by another process, which believed this one dead"
Turn = Literal["mine", "another's", "done"]
"""Who confirms a study for all that share it: the session that asks, another that is at it, or nobody any more."""


def now() -> str:
    """UTC in ISO 8601."""
    return datetime.now(UTC).isoformat()


def clock(connection: Connection) -> float:
    """Seconds by which leases are judged: PostgreSQL's, since the clocks of its clients may differ by minutes.

    SQLite has none: it is used on one host.
    """
    if connection.dialect.name != "postgresql":
        return time.time()
    # now() would be the start of a transaction that may have waited for a lock.
    return float(connection.scalar(select(extract("epoch", func.clock_timestamp()))) or 0.0)


def begin(connection: Connection, study_id: int, name: str, owner: Owner, *, shared: bool) -> int:
    """Open a session and return its id. Sessions of dead owners end here.

    Raises:
        Unavailable: a live owner has the study open, and not both sides share it.
        UserError: the study was deleted.
    """
    opened = update(tables.study).where(tables.study.c.id == study_id).values(opened_at=now())
    if not connection.execute(opened).rowcount:
        raise UserError(f"study {name} is gone, another process has deleted it: see: evoengine studies")
    for row, other, alive in _open_sessions(connection, study_id):
        if not alive:
            connection.execute(update(tables.session).where(tables.session.c.id == row["id"]).values(ended_at=now()))
        elif not (shared and row["shared"]):
            raise Unavailable(
                f"study {name} is being searched by {other} since {row['started_at'][:19]} UTC: wait for it, stop it, "
                "or give another --study"
            )
    values = {
        "study_id": study_id,
        "host": owner.host,
        "pid": owner.pid,
        "pid_started": owner.started,
        "shared": shared,
        "started_at": now(),
        "expires_unix_seconds": clock(connection) + lease.LEASE_SECONDS,
        "environment": {},
    }
    key = connection.execute(insert(tables.session).values(values)).inserted_primary_key
    assert key is not None, "an insert of one row has a key"
    return int(key[0])


def refuse_if_open(connection: Connection, study_id: int, name: str) -> None:
    """For what a search must not meet.

    Raises:
        UserError: a live owner has the study open.
    """
    for _, other, alive in _open_sessions(connection, study_id):
        if alive:
            raise UserError(f"study {name} is being searched by {other}: wait for it or stop it, then try again")


def renew(connection: Connection, session_id: int, name: str) -> None:
    """Extend the lease.

    Raises:
        Unavailable: another process has taken the study over.
    """
    mine = (tables.session.c.id == session_id) & tables.session.c.ended_at.is_(None)
    renewed = {"expires_unix_seconds": clock(connection) + lease.LEASE_SECONDS}
    if not connection.execute(update(tables.session).where(mine).values(renewed)).rowcount:
        raise Unavailable(f"study {name} was {TAKEN_OVER}")


def end(connection: Connection, session_id: int) -> None:
    connection.execute(update(tables.session).where(tables.session.c.id == session_id).values(ended_at=now()))


def set_environment(connection: Connection, session_id: int, environment: Mapping[str, Any]) -> None:
    connection.execute(
        update(tables.session).where(tables.session.c.id == session_id).values(environment=dict(environment))
    )


def living(connection: Connection, study_id: int) -> set[int]:
    """Ids of the sessions whose owners are alive."""
    return {int(row["id"]) for row, _, alive in _open_sessions(connection, study_id) if alive}


def owners(connection: Connection, study_id: int) -> list[Owner]:
    """Who is alive and has the study open."""
    return [owner for _, owner, alive in _open_sessions(connection, study_id) if alive]


def confirmed(connection: Connection, study_id: int) -> set[int]:
    """Ids of the sessions that have confirmed the study."""
    session = tables.session
    query = select(session.c.id).where(session.c.study_id == study_id, session.c.finals == "done")
    return {int(key) for key in connection.scalars(query)}


def take_turn(connection: Connection, study_id: int, session_id: int, before: set[int]) -> Turn:
    """Let a session confirm the study, unless another that is not among those `before` does or has done it."""
    if confirmed(connection, study_id) - before:
        return "done"
    others = [row for row, _, alive in _open_sessions(connection, study_id) if alive and row["id"] != session_id]
    if any(row["finals"] == "begun" for row in others):
        return "another's"
    set_finals(connection, session_id, "begun")
    return "mine"


def set_finals(connection: Connection, session_id: int, state: Literal["begun", "done"]) -> None:
    connection.execute(update(tables.session).where(tables.session.c.id == session_id).values(finals=state))


def forget_finals(connection: Connection, study_id: int) -> None:
    """There will be more to confirm."""
    connection.execute(update(tables.session).where(tables.session.c.study_id == study_id).values(finals=None))


def _open_sessions(connection: Connection, study_id: int) -> list[tuple[Mapping[str, Any], Owner, bool]]:
    query = select(tables.session).where(tables.session.c.study_id == study_id, tables.session.c.ended_at.is_(None))
    found: list[tuple[Mapping[str, Any], Owner, bool]] = []
    rows = connection.execute(query).mappings().all()
    if not rows:
        return found
    time_now, one_host = clock(connection), connection.dialect.name == "sqlite"
    for row in rows:
        owner = read_row(Owner, {**row, "started": row["pid_started"]})
        alive = time_now < typed(float, row["expires_unix_seconds"])
        # A process that was cut off for the length of its lease lives on, but others share its work out by then.
        if owner.in_sight() or (one_host and owner.host == Owner.current().host):
            alive = owner.runs and (alive or not row["shared"])
        found.append((dict(row), owner, alive))
    return found
