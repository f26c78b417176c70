"""Faults of compiler, cache and database, each in a real build or study: no GPU is needed for them."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import event

from benchmarks.trust.fault import BUILT, STOPPED, WRITTEN, Survived, told
from benchmarks.trust.processes import Mark
from evoengine.archive.archive import Archive
from evoengine.build import Builder, BuildRequest
from evoengine.errors import UserError
from evoengine.template import Template, load_template
from evoengine.verdict import Artifact, Gate, Rejection

AXPB = Path(__file__).resolve().parents[2] / "tests" / "templates" / "axpb"
HANGS, STARVES = 100, 101
"""Values of EVO_BUG beyond the template's own, for which its source here is spoilt."""
HANG_SECONDS = 3.0
"""The compile deadline for faults that would last: the usual one is 60 s."""
MEMORY_BYTES = 512 << 20
"""The limit of a compile's memory: reached within a second, where the usual 4 GiB take over a minute."""
SPARE_SECONDS = 10.0
"""Beyond a deadline: a batch starts, is ended and waited for; a machine under load takes its time."""
SPOILT = """\
#if EVO_BUG == {hangs}
#include "{pipe}"  // nobody writes to it
#elif EVO_BUG == {starves}
template <int N, int M> struct Tree {{
  static constexpr int value = Tree<N - 1, M>::value + Tree<N - 1, M + (1 << N)>::value;
}};
template <int M> struct Tree<0, M> {{ static constexpr int value = M; }};
__device__ int bomb() {{ return Tree<30, 0>::value; }}
#endif
"""
TWIN = """\
import sys
from pathlib import Path
from evoengine.build import Builder, BuildRequest
from evoengine.template import load_template
folder, arch, home, step = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
with Builder(load_template(folder), arch, home=home) as builder:
    works = range(1, 21)[::step]
    built = builder.build([BuildRequest({"EVO_BUG": 0, "EVO_WORK": work}, 0) for work in works])
print(sorted((work, one.cubin_sha256) for work, one in zip(works, built)))
"""


@dataclass
class Bench:
    """A folder with a template that can be spoilt, an architecture, and the mark of all that is started."""

    folder: Path
    arch: str
    mark: Mark

    def __post_init__(self) -> None:
        own = Path(shutil.copytree(AXPB, self.folder / "axpb", ignore=shutil.ignore_patterns("__pycache__")))
        os.mkfifo(self.folder / "never")
        spoilt = SPOILT.format(hangs=HANGS, starves=STARVES, pipe=self.folder / "never")
        (own / "kernel.cu").write_text(spoilt + (own / "kernel.cu").read_text())
        self.template: Template = load_template(own)
        self._work = 0

    def builder(self, name: str, deadline_seconds: float = 60.0) -> Builder:
        """Over a cache of its own."""
        home = self.folder / "homes" / name
        return Builder(
            self.template, self.arch, jobs=2, deadline_seconds=deadline_seconds, memory_bytes=MEMORY_BYTES, home=home
        )

    def request(self, bug: int = 0) -> BuildRequest:
        """What no cache holds yet."""
        self._work += 1
        return BuildRequest({"EVO_BUG": bug, "EVO_WORK": self._work}, 0)

    def survived(
        self,
        fault: str,
        expected: str,
        builder: Builder,
        build: Callable[[], Artifact | Rejection | str],
        deadline_seconds: float,
    ) -> Survived:
        """`build` meets the fault; a text is why the search would stop. Then the next candidate is built."""
        started = time.monotonic()
        result = build()
        seconds = time.monotonic() - started
        gate, reason = (STOPPED, result.replace(str(self.folder), "...")) if isinstance(result, str) else told(result)
        (following,) = builder.build([self.request()])
        after = BUILT if isinstance(following, Artifact) else following.reason
        builder.close()
        orphans = tuple(self.mark.left_behind(10.0))
        return Survived(fault, expected, gate, reason, seconds, deadline_seconds, after, orphans)


def build_faults(bench: Bench) -> Iterator[Survived]:
    """Every fault that a compiler or a cache can have, one after the other."""
    yield _one(bench, "compiler hangs", Gate.TIMEOUT, HANGS, deadline_seconds=HANG_SECONDS)
    yield _one(bench, "compiler over its memory limit", Gate.COMPILE, STARVES)
    yield _one(bench, "compiler crashes", Gate.COMPILE, HANGS, shots=_shooting(bench, signal.SIGSEGV, "compile"))
    yield _one(bench, "compile worker killed", Gate.COMPILE, HANGS, shots=_shooting(bench, signal.SIGKILL, "worker"))
    yield from _damaged(bench)
    yield _two_writers(bench)
    yield _full_cache(bench)


def _one(
    bench: Bench,
    fault: str,
    expected: Gate,
    bug: int,
    *,
    deadline_seconds: float = 60.0,
    shots: AbstractContextManager[None] | None = None,
) -> Survived:
    builder = bench.builder(fault, deadline_seconds)

    def build() -> Artifact | Rejection:
        with shots or contextlib.nullcontext():
            return builder.build([bench.request(bug)])[0]

    return bench.survived(fault, expected.value, builder, build, deadline_seconds + SPARE_SECONDS)


@contextlib.contextmanager
def _shooting(bench: Bench, number: signal.Signals, what: str) -> Iterator[None]:
    """Send a signal to every compile worker below this process, or to its compile, once the compile is under way."""
    done = threading.Event()

    def shoot() -> None:
        while not done.wait(0.1):
            names = {pid: _stat(pid) for pid in _processes_below(bench.folder)}
            for pid, (_, parent) in names.items():
                if names.get(parent, ("", 0))[0] != "ninja":
                    continue
                for compile_ in [other for other, (_, its_parent) in names.items() if its_parent == pid]:
                    time.sleep(0.3)  # it is a fork at first: it must be in the compiler
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid if what == "worker" else compile_, number)

    shooter = threading.Thread(target=shoot)
    shooter.start()
    try:
        yield
    finally:
        done.set()
        shooter.join()


def _processes_below(folder: Path) -> Iterator[int]:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if Path(os.readlink(process / "cwd")).is_relative_to(folder):
                yield int(process.name)


def _stat(pid: int) -> tuple[str, int]:
    """Name and parent of a process."""
    with contextlib.suppress(OSError):
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
        return name, int(rest.split()[1])
    return "", 0


def _damaged(bench: Bench) -> Iterator[Survived]:
    """A truncated cubin, result and PTX: found out by their hashes and built again."""
    for name in ("kernel.cubin", "result.json", "kernel.ptx"):
        builder = bench.builder(f"truncated {name}")
        request = bench.request()
        (intact,) = builder.build([request])
        assert isinstance(intact, Artifact), intact
        content = (intact.folder / name).read_bytes()
        (intact.folder / name).write_bytes(content[: len(content) // 2])

        def again(builder: Builder = builder, request: BuildRequest = request) -> Artifact | Rejection:
            return builder.build([request])[0]

        yield bench.survived(f"truncated {name} in the cache", "", builder, again, 60.0 + SPARE_SECONDS)
        assert content == (intact.folder / name).read_bytes() or name == "result.json"


def _two_writers(bench: Bench) -> Survived:
    builder = bench.builder("two writers")

    def both() -> Artifact | Rejection | str:
        arguments = [str(bench.template.folder), bench.arch, str(builder.home)]
        twins = [
            subprocess.Popen([sys.executable, "-c", TWIN, *arguments, step], stdout=subprocess.PIPE, text=True)
            for step in ("1", "-1")
        ]
        one, other = (twin.communicate(timeout=120)[0] for twin in twins)
        assert one == other != "", "both writers have the same twenty cubins"
        assert len(list(builder.home.glob("builds/*/*"))) == 20
        assert list((builder.home / "work").iterdir()) == []
        return builder.build([BuildRequest({"EVO_BUG": 0, "EVO_WORK": 1}, 0)])[0]

    return bench.survived("two writers on one cache", "", builder, both, 120.0)


def _full_cache(bench: Bench) -> Survived:
    """A limit on the size of files stands in for the disk, as mounting one needs rights that few have."""
    builder = bench.builder("disk full")

    def limited() -> Artifact | Rejection | str:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
        try:
            return builder.build([bench.request()])[0]
        except UserError as error:
            return str(error)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return bench.survived("disk full in the cache", STOPPED, builder, limited, SPARE_SECONDS)


def full_database(folder: Path) -> Survived:
    """SQLite's own limit of pages stands in for the disk; what is committed next fits again."""
    path = folder / "full.db"
    archive = Archive.open(str(path))
    engine = archive._database.engine
    archive.close()

    def limit(connection: sqlite3.Connection, record: object) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count={pages}")

    event.listen(engine, "connect", limit)
    started = time.monotonic()
    gate, reason = "", ""
    try:
        archive._database.patiently(lambda: _fill(archive))
    except UserError as error:
        gate, reason = STOPPED, str(error).replace(str(folder), "...")
    seconds = time.monotonic() - started
    event.remove(engine, "connect", limit)
    archive.close()
    archive._database.patiently(lambda: _fill(archive))
    archive.close()
    return Survived("disk full in the database", STOPPED, gate, reason, seconds, SPARE_SECONDS, WRITTEN)


def _fill(archive: Archive) -> None:
    with archive._database.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE large AS SELECT randomblob(1000000) AS content")
