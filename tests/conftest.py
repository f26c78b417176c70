"""Markers and folders that every test shares: no GPU, no server and no user's cache is ever assumed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from benchmarks.trust.processes import Mark

if TYPE_CHECKING:
    from archive_databases import Server

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


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty study database, to be copied."""
    from command_line import empty_database

    return empty_database(tmp_path_factory.mktemp("database") / "empty.db")


@pytest.fixture
def folder(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh folder to work in, the current one: with a template `mine` and an empty database. No GPU is seen."""
    from command_line import lay_out

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return lay_out(tmp_path, database)


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Databases of each kind that an archive can be in."""
    from archive_databases import opened

    with opened(request.param, tmp_path_factory.mktemp("server")) as made:
        yield made


@pytest.fixture
def url(server: Server) -> str:
    return server.copy()


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


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and missing_gpu():
        pytest.skip(missing_gpu())
    if item.get_closest_marker("postgres"):
        from archive_databases import postgres_binaries

        if postgres_binaries() is None:
            pytest.skip("no PostgreSQL server (initdb) on PATH or under /usr/lib/postgresql: apt install postgresql")
