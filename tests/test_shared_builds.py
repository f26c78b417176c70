"""Builds that travel between machines: found by digest, believed only if they are whole, bounded in size."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import archive_databases as databases
import pytest
import sqlalchemy
from command_line import make_template

from evoengine.archive import blobs, tables
from evoengine.archive.blobs import DatabaseStore
from evoengine.archive.database import Database
from evoengine.build import Builder, BuildRequest, compiling, shared
from evoengine.build.cache import entry_folder, read_result
from evoengine.build.shared import FolderStore, Store, pack, unpack
from evoengine.cli.storage import shared_store
from evoengine.errors import UserError
from evoengine.template import Template, load_template
from evoengine.verdict import Artifact, Rejection

FIRST, SECOND = "0a" * 16, "0b" * 16


class Kept:
    """A store, and how its content is tampered with: `change` maps every record of it, checksum line and all."""

    def __init__(self, store: Store, change: Callable[[Callable[[bytes], bytes]], None]) -> None:
        self.store = store
        self.change = change


@contextlib.contextmanager
def in_folder(folder: Path, limit_bytes: int) -> Iterator[Kept]:
    def change(work: Callable[[bytes], bytes]) -> None:
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            said, _, packed = path.read_bytes().partition(b"\n")
            path.write_bytes(said + b"\n" + work(packed))

    yield Kept(FolderStore(folder, limit_bytes), change)


@contextlib.contextmanager
def in_database(url: str, limit_bytes: int) -> Iterator[Kept]:
    database = Database(url)

    def change(work: Callable[[bytes], bytes]) -> None:
        with database.engine.begin() as connection:
            for digest, content in connection.execute(sqlalchemy.select(tables.blob.c.digest, tables.blob.c.content)):
                mine = tables.blob.c.digest == digest
                connection.execute(sqlalchemy.update(tables.blob).where(mine).values(content=work(bytes(content))))

    yield Kept(DatabaseStore(database, limit_bytes), change)
    database.close()


@pytest.fixture(scope="module", params=["folder", "sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def make(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[int], contextlib.AbstractContextManager[Kept]]]:
    """Makes an empty store that may hold so many bytes."""
    if request.param == "folder":
        yield lambda limit: in_folder(tmp_path_factory.mktemp("store"), limit)
        return
    with databases.opened(request.param, tmp_path_factory.mktemp("database")) as server:
        yield lambda limit: in_database(server.copy(), limit)


@pytest.fixture
def kept(make: Callable[[int], contextlib.AbstractContextManager[Kept]]) -> Iterator[Kept]:
    with make(1 << 20) as made:
        yield made


class TestStore:
    def test_gives_back_what_it_was_given(self, kept: Kept) -> None:
        kept.store.keep(FIRST, b"one")
        kept.store.keep(SECOND, b"two\nlines")

        assert {FIRST: b"one", SECOND: b"two\nlines"} == kept.store.fetch([FIRST, SECOND, "ff" * 16])

    def test_what_was_damaged_is_not_there_and_can_be_kept_anew(self, kept: Kept) -> None:
        kept.store.keep(FIRST, b"one")
        kept.change(lambda packed: packed[:-1] + b"x")

        assert {} == kept.store.fetch([FIRST])
        kept.store.keep(FIRST, b"one")
        assert {FIRST: b"one"} == kept.store.fetch([FIRST])

    def test_the_oldest_go_when_it_is_full(
        self, make: Callable[[int], contextlib.AbstractContextManager[Kept]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for module in (shared, blobs):
            monkeypatch.setattr(module, "KEPT_BETWEEN_SWEEPS", 1)
        names = [f"{number:032x}" for number in range(5)]
        with make(3000) as kept:
            for name in names:
                kept.store.keep(name, b"x" * 900)

            assert set(names[2:]) == kept.store.fetch(names).keys()


def test_a_build_under_another_s_name_is_not_believed(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.keep(FIRST, b"one")
    shutil.copy(tmp_path / FIRST[:2] / FIRST, tmp_path / FIRST[:2] / SECOND)

    assert {FIRST} == store.fetch([FIRST, SECOND]).keys()


class TestUnpack:
    @pytest.fixture
    def build(self, tmp_path: Path) -> Path:
        folder = tmp_path / "build"
        folder.mkdir()
        files = {"build.log": b"fine", "kernel.cubin": b"\x7fELF", "kernel.ptx": b".version"}
        for name, content in files.items():
            (folder / name).write_bytes(content)
        record = {"outcome": "exited", "code": 0, "seconds": 0.5, "peak_bytes": 1}
        record["sha256"] = {name: shared.hashlib.sha256(content).hexdigest() for name, content in files.items()}
        (folder / "result.json").write_text(json.dumps(record))
        return folder

    def test_is_what_was_packed(self, build: Path, tmp_path: Path) -> None:
        result = unpack(pack(build), tmp_path / "there")

        assert result is not None
        assert result == read_result(build)
        assert b"\x7fELF" == (tmp_path / "there" / "kernel.cubin").read_bytes()

    def test_nothing_where_a_file_is_not_the_one_that_was_hashed(self, build: Path, tmp_path: Path) -> None:
        (build / "kernel.cubin").write_bytes(b"\x7fELG")

        assert unpack(pack(build), tmp_path / "there") is None

    @pytest.mark.parametrize("name", ["../kernel.cubin", "/kernel.cubin", "other"])
    def test_nothing_under_a_name_that_no_build_has(self, tmp_path: Path, name: str) -> None:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            entry = tarfile.TarInfo(name)
            entry.size = 3
            tar.addfile(entry, io.BytesIO(b"abc"))

        assert unpack(buffer.getvalue(), tmp_path / "there") is None
        assert [] == list(tmp_path.rglob("*kernel*"))

    @pytest.mark.parametrize("packed", [b"", b"nothing", gzip.compress(b"nothing"), gzip.compress(b"x" * 2048)[:-9]])
    def test_nothing_of_what_is_no_package(self, tmp_path: Path, packed: bytes) -> None:
        assert unpack(packed, tmp_path / "there") is None

    def test_nothing_of_what_would_fill_the_disk(
        self, build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shared, "UNPACKED_BYTES", 100)

        assert unpack(pack(build), tmp_path / "there") is None
        assert not (tmp_path / "there").exists()


class TestBuilder:
    """Two machines: two caches, one store."""

    @pytest.fixture
    def template(self, tmp_path: Path) -> Template:
        return load_template(make_template(tmp_path / "mine"))

    @pytest.fixture
    def requests(self, template: Template) -> list[BuildRequest]:
        problem = template.module.PROBLEM()
        configs = [dict(THREADS=threads, ITEMS=2, IGNORED=0) for threads in (64, 48)]
        return [BuildRequest(template.module.defines(values, problem), 0) for values in configs]

    def built(self, template: Template, home: Path, store: Store, requests: list[BuildRequest]) -> list[object]:
        with Builder(template, "sm_89", jobs=2, home=home) as builder:
            builder.store = store
            return list(builder.build(requests))

    def test_what_one_has_built_the_other_finds(
        self, template: Template, requests: list[BuildRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = FolderStore(tmp_path / "store")
        here = self.built(template, tmp_path / "here", store, requests)
        monkeypatch.setattr(compiling.Compiling, "__init__", lambda *_: pytest.fail("compiled again"))
        there = self.built(template, tmp_path / "there", store, requests)

        assert isinstance(here[0], Artifact)
        assert isinstance(there[0], Artifact)
        assert (here[0].cubin_sha256, False, True) == (there[0].cubin_sha256, here[0].cached, there[0].cached)
        assert here[0].cubin.read_bytes() == there[0].cubin.read_bytes()
        assert isinstance(here[1], Rejection)
        assert here[1] == there[1]

    def test_what_is_damaged_is_built_again_and_mended(
        self, template: Template, requests: list[BuildRequest], tmp_path: Path
    ) -> None:
        store = FolderStore(tmp_path / "store")
        [here] = self.built(template, tmp_path / "here", store, requests[:1])
        assert isinstance(here, Artifact)
        [file] = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
        whole = file.read_bytes()
        file.write_bytes(whole[:-20])
        [there] = self.built(template, tmp_path / "there", store, requests[:1])

        assert isinstance(there, Artifact)
        assert (False, here.cubin_sha256) == (there.cached, there.cubin_sha256)
        assert [here.digest] == list(store.fetch([here.digest]))
        assert read_result(entry_folder(tmp_path / "there", here.digest)) is not None


class TestOption:
    def test_a_folder_that_cannot_be_used_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")

        with pytest.raises(UserError, match=rf"cannot use the shared cache {tmp_path}/file/sub .*--cache"):
            FolderStore(tmp_path / "file" / "sub")

    @pytest.mark.parametrize("text", ["s3://bucket/builds", "file://elsewhere/builds"])
    def test_another_kind_of_url_is_refused(self, text: str) -> None:
        with pytest.raises(UserError, match=f"--cache {text}: give a folder"):
            shared_store(text, None)  # type: ignore[arg-type]  # no study is asked for a folder

    def test_a_file_url_is_a_folder(self, tmp_path: Path) -> None:
        store = shared_store(f"file://{tmp_path}/with%20space", None)  # type: ignore[arg-type]

        assert isinstance(store, FolderStore)
        assert tmp_path / "with space" == store.folder
