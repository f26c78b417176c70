"""Packed builds in the database: where a study is, its cubins are, for every machine that works on it."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping

from sqlalchemy import Connection, delete, exc, func, insert, select

from evoengine.archive import sessions, tables
from evoengine.archive.database import Database
from evoengine.build.shared import KEPT_BETWEEN_SWEEPS, LIMIT_BYTES, checksum

blob = tables.blob
RETRY = "then run the same command again"


class DatabaseStore:
    """A `build.shared.Store` over the table of packed builds.

    Raises:
        UserError: the database stayed locked or away, or is full.
    """

    def __init__(self, database: Database, limit_bytes: int = LIMIT_BYTES) -> None:
        self._database = database
        self._limit_bytes = limit_bytes
        self._kept = 0

    def fetch(self, digests: Collection[str]) -> Mapping[str, bytes]:
        query = select(blob.c.digest, blob.c.sha256, blob.c.content).where(blob.c.digest.in_(digests))

        def read() -> Mapping[str, bytes]:
            with self._database.engine.connect() as connection:
                rows = connection.execute(query).all()
            contents = {digest: (sha256, bytes(content)) for digest, sha256, content in rows}
            return {
                digest: packed for digest, (sha256, packed) in contents.items() if sha256 == checksum(digest, packed)
            }

        return self._database.patiently(read, RETRY)

    def keep(self, digest: str, packed: bytes) -> None:
        values = {
            "digest": digest,
            "sha256": checksum(digest, packed),
            "size_bytes": len(packed),
            "content": packed,
            "stored_at": sessions.now(),
        }

        def write() -> None:
            with self._database.engine.begin() as connection:
                # What is there was damaged, or nobody would keep it again.
                connection.execute(delete(blob).where(blob.c.digest == digest))
                connection.execute(insert(blob).values(values))
                if self._kept % KEPT_BETWEEN_SWEEPS == 0:
                    self._sweep(connection)

        with contextlib.suppress(exc.IntegrityError):  # another machine has kept the same at this moment
            self._database.patiently(write, RETRY)
        self._kept += 1

    def _sweep(self, connection: Connection) -> None:
        """Remove the oldest until the rest is within the limit."""
        newest_first = blob.c.stored_at.desc(), blob.c.digest.desc()
        total = func.sum(blob.c.size_bytes).over(order_by=newest_first).label("total")
        totals = select(blob.c.digest, total).subquery()
        goes = select(totals.c.digest).where(totals.c.total > self._limit_bytes)
        connection.execute(delete(blob).where(blob.c.digest.in_(goes)))
