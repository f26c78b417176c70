"""Markers and folders that every test shares: no GPU, no server and no user's cache is ever assumed."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

from benchmarks.trust.processes import Mark

# A shared machine can stall any one example, and a failure must come back on the next run.
settings.register_profile("evoengine", deadline=None, derandomize=True)
settings.load_profile("evoengine")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A build cache for this run alone, so that no test reads or fills the user's own."""
    folder = tmp_path_factory.mktemp("evoengine_home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVOENGINE_HOME", str(folder))
        yield folder


@pytest.fixture
def no_orphans(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever the test starts, and that starts, is gone soon after the test: compiles, ninja, GPU workers."""
    mark = Mark()
    monkeypatch.setenv(mark.name, mark.value)
    yield
    assert [] == mark.left_behind(30.0)


@cache
def missing_gpu() -> str:
    """Why GPU tests cannot run here; empty where they can."""
    from evoengine.devices.cuda import find_gpu

    return "" if find_gpu() is not None else "no NVIDIA GPU with a driver"


@cache
def postgres_binaries() -> Path | None:
    """The folder of PostgreSQL's server programs; Debian keeps them off PATH."""
    on_path = shutil.which("initdb")
    installed = [Path(on_path)] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return installed[-1].parent if installed else None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and missing_gpu():
        pytest.skip(missing_gpu())
    if item.get_closest_marker("postgres") and postgres_binaries() is None:
        pytest.skip("no PostgreSQL server (initdb) on PATH or under /usr/lib/postgresql")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A throw-away PostgreSQL server on a Unix socket; its URL for SQLAlchemy. Use in tests marked `postgres`."""
    binaries = postgres_binaries()
    assert binaries is not None, "mark the test postgres: it skips where there is no server"
    # Not below pytest's own folder: that is private to this user, a server must not run as root, and the path of its
    # socket may have 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="evo_pg_"))
    # cwd: pg_ctl would start the server in ours, which the other user may not be allowed to enter
    other_user = {}
    if os.getuid() == 0:
        names = {entry.pw_name: entry for entry in pwd.getpwall()}
        owner = names.get("postgres") or names["nobody"]
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        other_user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}

    def call(program: str, *arguments: str) -> None:
        command = [str(binaries / program), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, timeout=60, **other_user)

    try:
        call("initdb", "-A", "trust", "-U", "evo", "--no-sync", "-E", "UTF8")
        options = f"-c listen_addresses='' -k {folder} -c fsync=off"
        call("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield f"postgresql+psycopg://evo@/postgres?host={folder}"
        finally:
            call("pg_ctl", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
