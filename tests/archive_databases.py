"""Databases for the archive's contract: SQLite files, and a throw-away PostgreSQL server."""

from __future__ import annotations

import glob
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
import sqlalchemy

from evoengine.archive.archive import Archive
from evoengine.archive.lease import Owner, process_start


class Server(Protocol):
    """Databases of one kind: `template` is the URL of one, `copy` makes another that holds the same."""

    template: str

    def copy(self) -> str: ...


class Sqlite:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self.template = f"sqlite:///{folder / 'template.db'}"

    def copy(self) -> str:
        path = self._folder / f"{next(self._numbers)}.db"
        shutil.copyfile(self._folder / "template.db", path)
        return f"sqlite:///{path}"


class Postgres:
    """A server that can be stopped, as by a restart of its machine, and started."""

    def __init__(self, folder: Path, control: list[str], user: Mapping[str, Any]) -> None:
        self._folder = folder
        self._control = control
        self._user = user
        self._numbers = itertools.count()
        self.template = self._url("postgres")

    def copy(self) -> str:
        name = f"evo{next(self._numbers)}"
        engine = sqlalchemy.create_engine(self._url("template1"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(f"CREATE DATABASE {name} TEMPLATE postgres"))
        engine.dispose()
        return self._url(name)

    def start(self) -> None:
        options = f"-c listen_addresses='' -k {self._folder} -c fsync=off"
        self._call("-w", "-l", str(self._folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        self._call("-m", "immediate", "stop")

    def _call(self, *arguments: str) -> None:
        subprocess.run([*self._control, *arguments], check=True, **self._user)

    def _url(self, name: str) -> str:
        return f"postgresql+psycopg://evo@/{name}?host={self._folder}"


@contextmanager
def opened(kind: str, folder: Path) -> Iterator[Server]:
    """Copies of a database that evoengine has opened before: making Optuna's tables takes a second."""
    with ExitStack() as stack:
        made: Server = Sqlite(folder) if kind == "sqlite" else stack.enter_context(postgres())
        Archive.open(made.template).close()
        yield made


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A server on a Unix socket in its own folder."""
    binaries = postgres_binaries()
    assert binaries is not None, "mark the test postgres: it skips where there is no server"
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'evoengine[test]'")
    # initdb refuses root, and a socket's path must be short and open to the other user: pytest's tmp_path is neither.
    folder = Path(tempfile.mkdtemp(prefix="evo-pg-", dir="/tmp"))
    user: dict[str, Any] = {"cwd": folder, "stdout": subprocess.DEVNULL}
    if os.getuid() == 0:
        account = next(a for name in ("postgres", "nobody") for a in pwd.getpwall() if a.pw_name == name)
        os.chown(folder, account.pw_uid, account.pw_gid)
        user |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    data = str(folder / "db")
    control = [str(binaries / "pg_ctl"), "-D", data]
    try:
        initdb = [str(binaries / "initdb"), "-D", data, "-A", "trust", "-U", "evo", "--no-sync", "-E", "UTF8"]
        subprocess.run(initdb, check=True, **user)
        server = Postgres(folder, control, user)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def postgres_binaries() -> Path | None:
    """Where PostgreSQL's server programs are. Debian keeps them off the PATH, and what it puts there may be a link."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += [Path(path).parent for path in sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"), reverse=True)]
    return next((place for place in places if (place / "pg_ctl").exists()), None)


def dead_owner() -> Owner:
    """An owner on this host whose process is gone. It ran until its start was read, which a zombie does not tell."""
    with subprocess.Popen(["sleep", "60"]) as process:
        owner = Owner(Owner.current().host, process.pid, process_start(process.pid) or "")
        process.kill()
    assert owner.started
    return owner
