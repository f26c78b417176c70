"""Sessions: who has a study open for searching. A session is the lease that claims of candidates hang on."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, insert, select, update

from evoengine.archive import tables
from evoengine.archive.codec import read_row
from evoengine.archive.documents import typed
from evoengine.archive.lease import LEASE_SECONDS, Owner
from evoengine.errors import UserError


def now() -> str:
    """UTC in ISO 8601."""
    return datetime.now(UTC).isoformat()


def begin(connection: Connection, study_id: int, name: str, owner: Owner, *, shared: bool) -> int:
    """Open a session and return its id. Sessions of dead owners end here.

    Raises:
        UserError: a live owner has the study open, and not both sides share it; or the study was deleted.
    """
    # The update comes first: it locks the study's row (SQLite: the database) until this transaction ends, so that of
    # two processes that start together one sees the other.
    opened = update(tables.study).where(tables.study.c.id == study_id).values(opened_at=now())
    if not connection.execute(opened).rowcount:
        raise UserError(f"study {name} is gone, another process has deleted it: see: evoengine studies")
    for row, other, alive in _open_sessions(connection, study_id):
        if not alive:
            connection.execute(update(tables.session).where(tables.session.c.id == row["id"]).values(ended_at=now()))
        elif not (shared and row["shared"]):
            raise UserError(
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
        "expires_unix_seconds": time.time() + LEASE_SECONDS,
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
        UserError: another process has taken the study over.
    """
    mine = (tables.session.c.id == session_id) & tables.session.c.ended_at.is_(None)
    lease = {"expires_unix_seconds": time.time() + LEASE_SECONDS}
    if not connection.execute(update(tables.session).where(mine).values(lease)).rowcount:
        raise UserError(
            f"study {name} was taken over by another process, which believed this one dead: resume with: "
            f"evoengine resume {shlex.quote(name)}"
        )


def end(connection: Connection, session_id: int) -> None:
    connection.execute(update(tables.session).where(tables.session.c.id == session_id).values(ended_at=now()))


def set_environment(connection: Connection, session_id: int, environment: Mapping[str, Any]) -> None:
    connection.execute(
        update(tables.session).where(tables.session.c.id == session_id).values(environment=dict(environment))
    )


def living(connection: Connection, study_id: int) -> set[int]:
    """Ids of the sessions whose owners are alive."""
    return {int(row["id"]) for row, _, alive in _open_sessions(connection, study_id) if alive}


def _open_sessions(connection: Connection, study_id: int) -> list[tuple[Mapping[str, Any], Owner, bool]]:
    query = select(tables.session).where(tables.session.c.study_id == study_id, tables.session.c.ended_at.is_(None))
    found: list[tuple[Mapping[str, Any], Owner, bool]] = []
    for row in connection.execute(query).mappings():
        owner = read_row(Owner, {**row, "started": row["pid_started"]})
        found.append((dict(row), owner, owner.is_alive(typed(float, row["expires_unix_seconds"]))))
    return found
