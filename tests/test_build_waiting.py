"""Several streams on one builder: who waits for a job costs little, can be called off, and dies with the engine."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_build_kill import ROOT, eventually, hanging, home, names_below, parent_of, processes_below, request

from evoengine.build import Builder, BuildRequest
from evoengine.build.builder import Building
from evoengine.template import load_template
from evoengine.verdict import Artifact

__all__ = ["hanging", "home"]  # fixtures

pytestmark = pytest.mark.usefixtures("no_orphans")


def workers_below(folder: Path) -> set[int]:
    names = names_below(folder)
    return {process for process in names if names.get(parent_of(process)) == "ninja"}


def switches(process: int) -> int:
    """How often a process has gone to sleep."""
    said = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    assert said is not None
    return int(said[1])


def awake(workers: list[int]) -> list[int]:
    """Those that do anything while one of them looks twenty times."""
    before = {worker: switches(worker) for worker in workers}
    assert eventually(lambda: any(switches(worker) >= before[worker] + 20 for worker in workers))
    return [worker for worker in workers if switches(worker) > before[worker]]


@pytest.fixture
def queue(home: Path, hanging: Path) -> Iterator[list[tuple[Building, int]]]:
    """Streams with the process of each one's worker: of one job the first has it, and hangs."""
    with Builder(load_template(hanging), "sm_89", jobs=1, deadline_seconds=600.0, home=home) as builder:
        streams: list[tuple[Building, int]] = []
        for number, items in enumerate((7, 1, 2, 3)):
            stream = builder.stream([request(items)])
            # ninja and worker of every stream, and the one compile
            assert eventually(lambda processes=2 * number + 3: len(processes_below(home)) == processes)
            [worker] = workers_below(home) - {worker for _, worker in streams}
            streams.append((stream, worker))
        waiting = [worker for _, worker in streams[1:]]
        # More than once: a worker that has yet to start sleeps too.
        assert eventually(lambda: all(len(awake(waiting)) == 1 for _ in range(4)))
        yield streams


def test_of_all_who_wait_for_a_job_one_looks(queue: list[tuple[Building, int]]) -> None:
    looking = awake([worker for _, worker in queue[1:]])
    queue[0][0].close()
    results = [result for stream, _ in queue[1:] for _, result in stream]

    assert 1 == len(looking)
    assert [Artifact] * 3 == [type(result) for result in results]


@pytest.mark.parametrize("looks", [True, False])
def test_who_waits_for_a_job_can_be_called_off(home: Path, queue: list[tuple[Building, int]], looks: bool) -> None:
    looking = awake([worker for _, worker in queue[1:]])
    off, worker = next(one for one in queue[1:] if (one[1] in looking) == looks)
    off.close()
    left = workers_below(home)
    queue[0][0].close()
    results = [result for stream, _ in queue[1:] if stream is not off for _, result in stream]

    assert {other for _, other in queue} - {worker} == left
    assert [Artifact] * 2 == [type(result) for result in results]


def test_all_who_wait_for_a_job_die_with_the_engine(home: Path, hanging: Path) -> None:
    script = f"""
import time
from pathlib import Path
from evoengine.build import Builder, BuildRequest
from evoengine.template import load_template
template = load_template(Path({str(hanging)!r}))
builder = Builder(template, "sm_89", jobs=1, deadline_seconds=600.0, home=Path({str(home)!r}))
requests = [BuildRequest({{"EVO_THREADS": 32 * warps, "EVO_ITEMS": 7}}, 0) for warps in (1, 2, 3, 4)]
streams = [builder.stream([one]) for one in requests]
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT) as engine:
        try:
            begun = eventually(lambda: len(processes_below(home)) == 9)  # with one compile
        finally:
            engine.kill()

    assert begun
    assert eventually(lambda: not processes_below(home))


def test_a_step_takes_few_workers_where_others_keep_the_jobs_busy(home: Path, hanging: Path) -> None:
    def edges() -> int:
        return len(list(home.glob("work/*/chunk*.json")))

    with Builder(load_template(hanging), "sm_89", jobs=2, deadline_seconds=600.0, home=home) as builder:
        unread = builder.stream([request(1), request(2)])
        assert eventually(lambda: len(list(home.glob("work/*/*/result.json"))) == 2)
        first = edges()
        free = builder.stream([request(5), request(6)])
        beside_the_unread = edges() - first
        assert len(dict(free)) == 2
        busy = builder.stream([BuildRequest({"EVO_THREADS": 32 * warps, "EVO_ITEMS": 7}, 0) for warps in range(1, 9)])
        before = edges()
        step = builder.stream([request(3), request(4)])
        beside_the_busy = edges() - before
        busy.close()
        results = [result for stream in (unread, step) for _, result in stream]

    assert (2, 1) == (beside_the_unread, beside_the_busy)
    assert [Artifact] * 4 == [type(result) for result in results]
