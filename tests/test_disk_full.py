"""Disks that run full under a search: one clear line, exit code 2, nothing lost, and on it goes when there is room."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import JOBS, QUESTION
from sqlalchemy import event
from test_archive import ARTIFACT, MEASUREMENT, SPEC
from test_faults import judged

from evoengine.archive import database
from evoengine.archive.archive import Archive
from evoengine.archive.lease import Owner
from evoengine.archive.records import Record
from evoengine.build.toolchain import Compiler
from evoengine.errors import UserError
from evoengine.sampler import Proposal

ROOT = Path(__file__).resolve().parent.parent
SCALE = ROOT / "tests" / "templates" / "scale"
DISK_MB = 8
BUDGET = 6

# In a mount namespace of its own, folder $1 becomes a small disk of which $2 pages of 4 KB are free; the search in "$@"
# runs into that, room is made, and it is resumed with budget $3. What both say and leave goes to files in $PWD.
ON_A_FULL_DISK = f"""
disk=$1 pages=$2 budget=$3; shift 3
cp -r "$disk" "$disk.filled"
mount -t tmpfs -o size={DISK_MB}m tmpfs "$disk" && cp -r "$disk.filled/." "$disk" || exit 99
ballast=$(( ($(stat -f -c %a "$disk") - pages) * 4096 ))
head -c $ballast /dev/zero > "$disk/ballast"
python -m evoengine "$@" > full.out 2> full.err
echo $? > full.code
rm "$disk/ballast"
cp -r "$disk" "$disk.left"
python -m evoengine resume first --device none --jobs 2 --budget "$budget" --json > resumed.json 2> resumed.err
echo $? > resumed.code
cp -r "$disk" "$disk.after"
"""


@cache
def namespace() -> tuple[str, ...]:
    """The command that gives a process mounts of its own; empty where nobody may mount."""
    for command in (("unshare", "-m"), ("unshare", "-rm")):
        with contextlib.suppress(OSError):
            tried = [*command, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/mnt"]
            if subprocess.run(tried, capture_output=True, check=False).returncode == 0:
                return command
    return ()


needs_mount = pytest.mark.skipif(not namespace(), reason="unshare -m and mounting a tmpfs are not permitted here")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH")


class Disk:
    """A search that ran into a full disk, and its resumption."""

    def __init__(self, folder: Path, disk: str, pages: int, cache_folder: Path, budget: int = BUDGET) -> None:
        # One candidate at a time: with several in flight, who meets the full disk first is a matter of luck.
        search = ("search", *QUESTION, *JOBS, "--study", "first", "--budget", str(budget), "--batch", "1", "--verbose")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
        environment["EVOENGINE_HOME"] = str(cache_folder)
        command = [*namespace(), "sh", "-c", ON_A_FULL_DISK, "sh", disk, str(pages), str(budget), *search]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
        assert 0 == done.returncode, done.stderr
        self.code, self.resumed_code = (int((folder / f"{name}.code").read_text()) for name in ("full", "resumed"))
        self.err = (folder / "full.err").read_text()
        self.resumed: dict[str, Any] = json.loads((folder / "resumed.json").read_text() or "{}")
        self.resumed_err = (folder / "resumed.err").read_text()

    @property
    def said(self) -> set[int]:
        return {int(number) for number in re.findall(r"^#(\d+) ", self.err, re.MULTILINE)}


def records(path: Path) -> list[Record]:
    archive = Archive.open(str(path))
    try:
        return archive.open_study("first").records()
    finally:
        archive.close()


@needs_mount
def test_a_full_database_stops_the_search_and_loses_nothing(folder: Path) -> None:
    disk = Disk(folder, "studies", 130, folder / "cache")
    before = judged(records(folder / "studies.left" / "evoengine.db"))
    after = judged(records(folder / "studies.after" / "evoengine.db"))

    assert 2 == disk.code
    assert (
        "evoengine: database studies/evoengine.db is full (database or disk is full): make room there; "
        "then go on with: evoengine resume first --batch 1"
    ) == disk.err.splitlines()[-1]
    assert "Traceback" not in disk.err
    assert 0 < len(disk.said)
    assert disk.said <= set(before)
    assert (0, BUDGET) == (disk.resumed_code, disk.resumed["spent"]), disk.resumed_err
    assert before.items() <= after.items()
    assert set(range(len(after))) == set(after)


@needs_mount
def test_a_full_cache_stops_the_search_and_loses_nothing(folder: Path) -> None:
    (folder / "cache").mkdir()
    # The default is built by itself and as the first candidate: two builds under way need 20 pages, all leave over 40.
    disk = Disk(folder, "cache", 28, folder / "cache", budget=16)
    before = judged(records(folder / "studies" / "evoengine.db"))

    assert 2 == disk.code
    assert f"evoengine: cannot use the cache folder {folder / 'cache'} (" in disk.err
    assert disk.err.endswith(
        "No space left on device): make room there, or set EVOENGINE_HOME to a folder of your own; "
        "then go on with: evoengine resume first --batch 1\n"
    )
    assert "Traceback" not in disk.err
    assert (0, 16) == (disk.resumed_code, disk.resumed["spent"]), disk.resumed_err
    assert disk.said <= set(before)
    assert 0 < len(list((folder / "cache.left").glob("builds/*/*"))) < 16
    assert {"work", "builds", "lock", "trusted", "ballast"} >= {path.name for path in (folder / "cache.left").iterdir()}
    assert [] == list((folder / "cache.left" / "work").iterdir()), "no half-built candidate is left"


@pytest.mark.parametrize("compiler", ["nvrtc", pytest.param("nvcc", marks=needs_nvcc)])
@needs_mount
def test_no_candidate_is_blamed_for_a_full_disk(tmp_path: Path, compiler: Compiler) -> None:
    """Whatever is the first that does not fit: ninja's files, the log, a temporary file, the cubin, the result."""
    script = f"""
import sys
from pathlib import Path
from evoengine.build import Builder, BuildRequest
from evoengine.errors import UserError
from evoengine.template import load_template
free = int(sys.argv[1])
for pages in [int(word) for word in sys.argv[2:]]:
    Path("disk/ballast").write_bytes(bytes(4096 * (free - pages)))
    try:
        with Builder(load_template(Path({str(SCALE)!r})), "sm_89", compiler={compiler!r}, home=Path("disk")) as builder:
            (result,) = builder.build([BuildRequest({{"EVO_THREADS": 32, "EVO_ITEMS": pages}}, 0)])
        print(pages, "built" if not hasattr(result, "gate") else result)
    except UserError as error:
        print(pages, "stopped", "no space left on device" in str(error).lower())
"""
    mount = f'mkdir disk && mount -t tmpfs -o size={DISK_MB}m tmpfs disk && exec "$0" -c "$@"'
    sizes = (1, 5, 7, 9) if compiler == "nvrtc" else (6, 8, 12, 40, 300)
    arguments = [script, str(DISK_MB * 256), *map(str, sizes)]
    done = subprocess.run(
        [*namespace(), "sh", "-c", mount, sys.executable, *arguments],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip

    assert "" == done.stderr
    assert [f"{pages} stopped True" for pages in sizes] == done.stdout.splitlines()


def test_a_verdict_that_finds_the_database_full_is_committed_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite's own limit of pages stands in for the disk, so that this runs where nobody may mount."""
    monkeypatch.setattr(database, "PATIENCE_SECONDS", 3600.0)  # a full disk is not waited for
    archive = Archive.open(str(tmp_path / "evo.db"))
    study = archive.create_study(SPEC)
    study.acquire(Owner.current())
    [candidate] = study.claim([Proposal((0, 0, 0, 0), "default")])
    large = dataclasses.replace(MEASUREMENT, windows_us=(1.0,) * 5000, control_us=(1.0,) * 5000)
    with archive._database.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
    archive.close()

    def limit(connection: Any, record: Any) -> None:
        connection.execute(f"PRAGMA max_page_count={pages}")

    event.listen(archive._database.engine, "connect", limit)
    with pytest.raises(UserError, match=r"is full \(.*disk is full\): make room there$"):
        study.commit(candidate, large, ARTIFACT)
    event.remove(archive._database.engine, "connect", limit)
    archive.close()
    study.commit(candidate, large, ARTIFACT)

    assert [large] == [record.verdict for record in study.records()]
    archive.close()


@pytest.mark.parametrize(("free_bytes", "words"), [(20_000, "is full"), (10**9, "does not answer")])
def test_sqlites_io_error_is_a_full_disk_only_where_there_is_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_bytes: int, words: str
) -> None:
    archive = Archive.open(str(tmp_path / "evo.db"))
    monkeypatch.setattr(database, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free_bytes))

    def fail() -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with pytest.raises(UserError, match=rf"{words} \(disk I/O error\).* run the same command again"):
        archive._database.patiently(fail, "then run the same command again")
    archive.close()
