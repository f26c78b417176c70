"""The connection: a URL or a path becomes an engine and an Optuna storage, and every failure one clear line."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy import URL, event, exc, insert, select, text, update

from evoengine.archive import tables
from evoengine.archive.documents import Damaged
from evoengine.archive.storage import TrialStorage
from evoengine.errors import Unavailable, UserError

T = TypeVar("T")

PATIENCE_SECONDS = 8.0
"""How long a locked or unreachable database is asked again: longer than any transaction of another evoengine, shorter
than what a user takes for a hang."""
BUSY_SECONDS = 2.0
"""SQLite's own wait for a lock. Optuna tries the birth of a trial five times, so there it may be five times as long."""

LIBPQ = ("psycopg", "psycopg2")
"""PostgreSQL drivers over libpq, which take its parameters from the URL: TLS, service files, time limits."""
LIBPQ_ARGUMENTS: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""Unless the URL says otherwise. A link that is cut says nothing: by Linux's own limits a query would wait for its
answer for two hours, with these for 11 seconds."""
IDLE_TRANSACTION_MS = 10_000
"""After which the server ends a transaction whose host has vanished, and lets go of the study's row. Ours think for
milliseconds between two statements."""

OTHER = "or give another with --storage"
"""What else helps where a database cannot be opened."""
_FULL = ("disk is full", "No space left on device")
"""SQLite's words for a full disk, and the system's, which PostgreSQL passes on."""
_LASTING = (
    *("not a database", "malformed", "readonly", "unable to open"),
    *("password authentication failed", "no password supplied", "no pg_hba.conf entry", "does not exist"),
    *("certificate verify failed", "does not support SSL", "root certificate file"),
)
"""What asking again does not change, in the words of SQLite, of PostgreSQL and of libpq."""
WAL_INDEX_BYTES = 32 * 1024
"""SQLite's step for the index beside its log (sqlite.org/walformat.html): with less room it says "disk I/O error"."""
_TRANSIENT = (
    *(exc.OperationalError, exc.InterfaceError, StorageInternalError, sqlite3.OperationalError),
    exc.InternalError,  # what psycopg makes of a transaction that was ended for being idle: a process that was frozen
)


class Database:
    """One database: `engine` for our tables, `storage` for Optuna's.

    Args:
        patience_seconds: how long to ask again while it is locked or away; `PATIENCE_SECONDS` by default.

    Raises:
        UserError: it cannot be opened, is not a database, cannot be written, or is of a newer schema.
    """

    def __init__(self, url_or_path: str, patience_seconds: float | None = None) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # one line on stderr for each new study otherwise
        self.url = _parse(url_or_path)
        self.name = _shown(self.url)
        self._patience_seconds = patience_seconds
        self._libpq = self.url.get_backend_name() == "postgresql" and self.url.get_driver_name() in LIBPQ
        self.sqlite = self.url.get_backend_name() == "sqlite"
        if self.sqlite and self.url.database and not self.url.query:
            _prepare_file(Path(self.url.database))
        try:
            try:
                rdb = self.patiently(self._connect, OTHER)
            except (exc.IntegrityError, exc.ProgrammingError):  # another process made the tables at the same moment
                rdb = self.patiently(self._connect, OTHER)
        except exc.NoSuchModuleError:
            raise UserError(
                f"database {self.name}: SQLAlchemy knows no such kind; use sqlite:///FILE or "
                "postgresql+psycopg://USER@HOST/NAME"
            ) from None
        except ImportError as error:
            raise UserError(
                f"database {self.name} needs a driver that is not installed ({self._reason(error)}): pip install "
                "'evoengine[postgres]' and write postgresql+psycopg://USER@HOST/NAME"
            ) from None
        except (exc.SQLAlchemyError, StorageInternalError) as error:
            raise UserError(
                f"database {self.name} cannot be used ({self._reason(error)}): repair it, or give another "
                "with --storage"
            ) from None
        except RuntimeError as error:  # Optuna's tables are of another version
            raise UserError(f"database {self.name}: {self._reason(error)}") from None
        except (TypeError, ValueError) as error:  # what is behind the question mark, to SQLite's driver
            raise UserError(
                f"database {self.name} cannot be opened ({self._reason(error)}): write sqlite:///FILE or "
                "postgresql+psycopg://USER@HOST/NAME"
            ) from None
        self._rdb = rdb
        self.engine = rdb.engine
        self.storage: BaseStorage = optuna.storages.get_storage(rdb)

    def forget_trials(self) -> None:
        """Drop what Optuna remembers of finished trials: after a deletion SQLite gives their ids to others."""
        self.storage = optuna.storages.get_storage(self._rdb)

    def close(self) -> None:
        """Give back this thread's session and close every connection; the next use connects again."""
        self.engine.dispose()

    def patiently(self, work: Callable[[], T], retry_hint: str = "") -> T:
        """`work`, again while the database is locked or away.

        Raises:
            Unavailable: it stayed so as long as there was patience; ends with `retry_hint`, which says what to do then.
            UserError: it is full, read-only or no database, or holds what `work` cannot read.
        """
        then = retry_hint and f", {retry_hint}"
        patience = PATIENCE_SECONDS if self._patience_seconds is None else self._patience_seconds
        deadline = time.monotonic() + patience
        while True:
            try:
                return work()
            except _TRANSIENT as error:
                reason = self._reason(error)
                if self._full(reason):
                    raise UserError(f"database {self.name} is full ({reason}): make room there{then}") from error
                lasting = any(word in reason for word in _LASTING)
                if lasting or time.monotonic() > deadline:
                    kind = UserError if lasting else Unavailable
                    remedy = f"check that it is there and free{then}"
                    raise kind(f"database {self.name} does not answer ({reason}): {remedy}") from error
                time.sleep(0.1)
            except Damaged as error:
                raise self.damaged(error) from error

    def damaged(self, error: Damaged) -> UserError:
        """What the user is told of something that cannot be read."""
        return UserError(
            f"database {self.name} is damaged ({self._reason(error)}): go back to a copy of it, or give another with "
            "--storage"
        )

    def _full(self, reason: str) -> bool:
        if any(word in reason for word in _FULL):
            return True
        if not self.sqlite or self.url.query or not self.url.database or "disk I/O error" not in reason:
            return False
        return shutil.disk_usage(Path(self.url.database).parent).free < WAL_INDEX_BYTES

    def _connect(self) -> RDBStorage:
        url = self.url.render_as_string(hide_password=False)
        options = self._options()
        # RDBStorage formats its URL, so braces in a path must be doubled.
        storage = TrialStorage(url.replace("{", "{{").replace("}", "}}"), engine_kwargs=options)
        if self.sqlite or self._libpq:
            storage.engine.dispose()  # its first connection was made before it could be told this
            event.listen(storage.engine, "connect", _write_ahead if self.sqlite else _leave_no_locks)
        try:
            self._prepare_tables(storage.engine)
        except BaseException:
            storage.engine.dispose()
            raise
        return storage

    def _options(self) -> dict[str, Any]:
        if self.sqlite:
            return {"connect_args": {"timeout": BUSY_SECONDS}}
        given = {key: value for key, value in LIBPQ_ARGUMENTS.items() if key not in self.url.query}
        return {"pool_pre_ping": True, "connect_args": given if self._libpq else {}}

    def _prepare_tables(self, engine: sqlalchemy.Engine) -> None:
        tables.metadata.create_all(engine)
        with engine.begin() as connection:
            # A write that changes nothing: what is read-only is found out now and not at the first verdict.
            connection.execute(update(tables.schema).values(version=tables.schema.c.version))
            version = connection.scalar(select(tables.schema.c.version))
            if version is None:
                connection.execute(insert(tables.schema).values(version=tables.SCHEMA_VERSION))
                version = tables.SCHEMA_VERSION
            if version > tables.SCHEMA_VERSION:
                raise UserError(
                    f"database {self.name} has schema {version}, this evoengine knows {tables.SCHEMA_VERSION}: upgrade "
                    "evoengine, or give another database with --storage"
                )
            # The update above locks the version: of two processes that open an older database one migrates it.
            while version < tables.SCHEMA_VERSION:
                if version not in tables.MIGRATIONS:
                    raise UserError(
                        f"database {self.name} has schema {version}, which no evoengine has written: give another "
                        "database with --storage"
                    )
                for statement in tables.MIGRATIONS[version]:
                    connection.execute(text(statement))
                version += 1
                connection.execute(update(tables.schema).values(version=version))

    def _reason(self, error: BaseException) -> str:
        """The innermost cause in one line, without credentials."""
        while isinstance(error, StorageInternalError) and error.__cause__ is not None:
            error = error.__cause__
        if isinstance(error, exc.DBAPIError) and error.orig is not None:
            error = error.orig
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        for secret in _secrets(self.url):
            text = text.replace(secret, "***")
        return text


def file_of(url_or_path: str) -> Path | None:
    """The file of an SQLite database; None for a server's, for one in memory, and for what SQLite itself opens by URI.

    Raises:
        UserError: it is empty, or a URL that cannot be parsed.
    """
    url = _parse(url_or_path)
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:") or "uri" in url.query:
        return None
    return Path(str(url.database))


def _parse(url_or_path: str) -> URL:
    if not url_or_path:
        raise UserError("the study database has no name: give a file or a URL, such as studies/evoengine.db")
    if "://" not in url_or_path:
        return URL.create("sqlite", database=os.path.expanduser(url_or_path))
    try:
        return sqlalchemy.make_url(url_or_path)
    except (exc.ArgumentError, ValueError):  # ValueError: the port is no number
        raise UserError(
            "the database URL cannot be parsed: write sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME, "
            "with special characters of the password percent-encoded"
        ) from None


def _secrets(url: URL) -> list[str]:
    words = [url.password, *(url.query.get(key) for key in ("password", "passfile", "sslpassword"))]
    return [str(word) for word in words if word]


def _shown(url: URL) -> str:
    """The URL as messages may show it: a file as its path, anything else without credentials."""
    if url.get_backend_name() == "sqlite" and not url.query:
        return url.database or ":memory:"
    return url.difference_update_query(["password", "passfile", "sslpassword"]).render_as_string(hide_password=True)


def _prepare_file(path: Path) -> None:
    if path.is_dir():
        raise UserError(f"database {path} is a folder: give a file, such as {path / 'evoengine.db'}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"database {path}: its folder cannot be made ({error.strerror}): give another with --storage"
        ) from None


def _leave_no_locks(connection: Any, _record: Any) -> None:
    """For this connection; PostgreSQL knows it from 9.6 on."""
    with connection.cursor() as cursor:
        cursor.execute(f"SET idle_in_transaction_session_timeout = {IDLE_TRANSACTION_MS}")
    connection.commit()


def _write_ahead(connection: Any, _record: Any) -> None:
    """WAL with synchronous=NORMAL costs a quarter of SQLite's defaults a trial (94 against 390 ms of wall). What is
    committed survives a killed process; only a power cut may take the last transactions, and never corrupts."""
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL"):
        connection.execute(f"PRAGMA {pragma}")
