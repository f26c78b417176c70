"""How many candidates a second a search manages on several cards, without any: studies/simulated_fleet.json.

    python -m benchmarks.simulated_fleet --cards 1,2,4 --budget 1000 --output studies/simulated_fleet.json

The whole command line with its database, sampler and worker processes; simulated are what takes a card (a verdict
every 34 ms and a worker that is up after 2 s, as an H200's were, times that follow from the config) and what takes
cores (16 a card, 0.84 s a compile with a spread of 25 %, the median of 200 of the attention template on an H200's
machine). So it says what evoengine's own processes cost on the machine that it runs on, which needs a core for the
search and one for the process that proposes. `candidates_per_second` is from the first verdict to the last, `over_one`
that over one card's. Each row is a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import heapq
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.trust.document import write_document
from evoengine import __version__
from evoengine.archive.archive import Archive
from evoengine.build import BuildRequest
from evoengine.build.builder import Builder, Building
from evoengine.cli import cards, judges, main
from evoengine.devices.cuda import Gpu
from evoengine.devices.cuda.messages import Hello, Judge, Judged, Lap, Open, Opened, Raced, Ready, RunFinals, SetUp
from evoengine.devices.cuda.results import Deviation
from evoengine.devices.cuda.serve import Tell, serve
from evoengine.hardware import card
from evoengine.verdict import Artifact, Check, Measurement, ResourceUsage

VERDICT_SECONDS, WORKER_SECONDS, FINAL_SECONDS = 0.034, 2.0, 5.0
COMPILE_SECONDS, COMPILE_SPREAD = 0.835, 0.25
CORES_A_CARD = 16
DEFAULT_US = 8.6
CUBIN_BYTES = 48_000
FACTORS: Mapping[str, Mapping[int, float]] = {
    "WARPS_M": {1: 1.05, 4: 1.3, 8: 1.7},
    "WARPS_KV": {1: 1.2, 4: 1.05, 8: 1.3},
    "BLOCK_N": dict.fromkeys((16, 32, 48, 64, 96), 1.4),
    "PRODUCER_WARPS": {0: 1.15, 1: 1.15},
    "OVERLAP": {1: 1.1},
}
"""What choices cost; the others are free. Enough for a sampler to have something to learn."""


def ratio(values: Mapping[str, int]) -> float:
    """A config's time over the default's, with up to 10 % that nobody can foresee."""
    text = json.dumps(sorted(values.items()))
    made = 0.5 * (1.0 + 0.1 * int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32)
    for name, costs in FACTORS.items():
        made *= costs.get(values[name], 1.0)
    return made


class SimulatedBench:
    """The worker's end of a card."""

    def __init__(self, uuid: str, tell: Tell) -> None:
        self._uuid = uuid
        self._reference_us = DEFAULT_US
        time.sleep(WORKER_SECONDS)

    def hello(self) -> Hello:
        return Hello(self._uuid, "NVIDIA H200")

    def open(self, request: Open) -> Opened:
        time.sleep(0.15)
        return Opened({"gpu": "NVIDIA H200", "uuid": self._uuid, "other_load_percent": 0, "other_processes": 0})

    def set_up(self, request: SetUp) -> Ready:
        time.sleep(0.7)
        self._reference_us = request.reference_us or DEFAULT_US
        return Ready(self._reference_us, (), {}, 0.002)

    def judge(self, request: Judge) -> Judged:
        time.sleep(VERDICT_SECONDS)
        us = DEFAULT_US * ratio(request.subject.values)
        windows = tuple(us * (1.0 + 0.0005 * at) for at in range(8))
        shape = "B1_H8_S512_D64_fp16"
        check = Check("check", shape, 1, 2e-4, 7e-4, 3e-4, 5e-4, 4e-4, 0, 0, 0, False, 50, 0, 0.007)
        own = (DEFAULT_US,) * 8
        return Judged(Measurement(windows, own, self._reference_us, 114, "warm", "converged", checks=(check,) * 4))

    def run_finals(self, request: RunFinals) -> Raced:
        time.sleep(FINAL_SECONDS)
        laps = [
            Lap(one.name, tuple(DEFAULT_US * ratio(one.values) + 0.001 * at for at in range(50)), 100)
            for one in request.finalists
        ]
        default = Lap("default", tuple(DEFAULT_US + 0.001 * at for at in range(50)), 100)
        sdpa = Lap("sdpa", (9.2,) * 50, 50, (), Deviation(1e-3, 1e-4, 0))
        return Raced(default, tuple(laps), (sdpa,), Lap("empty kernel", (0.5,) * 50, 500), {}, {})


class SimulatedCores:
    """Compiles that take their time and no core: `stream` stands for the builder's."""

    def __init__(self, cores: int, folder: Path) -> None:
        self._free = [0.0] * cores
        self._folder = folder
        self._random = random.Random(1)

    def stream(self, requests: Sequence[BuildRequest]) -> Building:
        ready = []
        for index, request in enumerate(requests):
            began = max(time.monotonic(), heapq.heappop(self._free))
            end = began + COMPILE_SECONDS * self._random.lognormvariate(0.0, COMPILE_SPREAD)
            heapq.heappush(self._free, end)
            ready.append((end, index, request))
        return Building(self._built(sorted(ready, key=lambda one: one[:2])), None)

    def _built(self, ready: Sequence[tuple[float, int, BuildRequest]]) -> Iterator[tuple[int, Artifact]]:
        for end, index, request in ready:
            time.sleep(max(end - time.monotonic(), 0.0))
            digest = hashlib.sha256(repr(sorted(request.defines.items())).encode()).hexdigest()
            folder = self._folder / digest
            folder.mkdir(exist_ok=True)
            cubin = hashlib.shake_256(digest.encode()).digest(CUBIN_BYTES)
            (folder / "kernel.cubin").write_bytes(cubin)
            used = ResourceUsage(150, 0, 0, 0, 0, request.smem_bytes)
            sha256 = hashlib.sha256(cubin).hexdigest()
            yield index, Artifact(digest, folder, sha256, used, COMPILE_SECONDS, "NVRTC 13.0.88", "sm_90")


def search(count: int, budget: int) -> dict[str, Any]:
    """One search on so many cards."""
    cores = CORES_A_CARD * count
    gpus = [Gpu(at, f"GPU-{at}a{os.getpid()}", 140 << 30, card("h200")) for at in range(count)]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        compilers = SimulatedCores(cores, Path(folder))
        worker = (sys.executable, "-m", "benchmarks.simulated_fleet", "--worker")
        out = io.StringIO()
        with (
            mock.patch.dict(os.environ, {"EVOENGINE_HOME": f"{folder}/home"}),
            mock.patch.object(judges, "WORKER", worker),
            mock.patch.object(cards, "find_gpus", return_value=gpus),
            mock.patch.object(Builder, "stream", lambda self, requests: compilers.stream(requests)),
            contextlib.redirect_stdout(out),
        ):
            cpu = time.process_time()
            options = ["--devices", "all", "--budget", str(budget), "--jobs", str(cores), "--json", "--quiet"]
            assert main(["search", *options]) == 0, out.getvalue()
            cpu = time.process_time() - cpu
        summary = json.loads(out.getvalue())
        with contextlib.closing(Archive.open("studies/evoengine.db")) as archive:
            records = archive.open_study(summary["study"]).records()
    committed = sorted(datetime.fromisoformat(one.committed_at) for one in records)
    seconds = (committed[-1] - committed[0]).total_seconds()
    return {
        "cards": count,
        "cores": cores,
        "budget": budget,
        "searching_seconds": round(seconds, 2),
        "candidates_per_second": round(len(records) / seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "seconds": summary["seconds"],
        "best_over_default": min(ratio(one.config.values) for one in records),
    }


def run() -> int:
    if sys.argv[1:2] == ["--worker"]:
        uuid, descriptor = sys.argv[2:]
        serve(Connection(int(descriptor)), lambda tell: SimulatedBench(uuid, tell))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cards", default="1,2,4", help="numbers of cards, such as 1,2,4")
    parser.add_argument("--budget", type=int, default=1000)
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON document; without it one row, of one number")
    arguments = parser.parse_args()
    counts = [int(word) for word in arguments.cards.split(",")]
    if arguments.output is None:
        print(json.dumps(search(counts[0], arguments.budget)))
        return 0
    rows: list[dict[str, Any]] = []
    for count in counts:
        command = [sys.executable, "-m", "benchmarks.simulated_fleet"]
        done = subprocess.run(
            [*command, "--cards", str(count), "--budget", str(arguments.budget)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        rows[-1]["over_one"] = round(rows[-1]["candidates_per_second"] / rows[0]["candidates_per_second"], 2)
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    document = {
        "command": f"python -m benchmarks.simulated_fleet --cards {arguments.cards} --budget {arguments.budget}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "evoengine": __version__,
        "cores_here": len(os.sched_getaffinity(0)),
        "rows": rows,
    }
    write_document(arguments.output, document)
    return 0


if __name__ == "__main__":
    sys.exit(run())
