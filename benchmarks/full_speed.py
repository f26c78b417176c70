"""A whole search at full speed, and where its wall time goes: studies/h200/full_speed.json.

    python -m benchmarks.full_speed --runs 2 --output studies/h200/full_speed.json

`evoengine search --budget 200` at the mission shape, in a process of its own, with an empty cache and an empty
database, as the first search on a machine is. `wall_seconds` is the process's, from its start to its end. `seconds` is
what the search says of itself (`search --json`), by activity; what is missing to `wall_seconds` is the interpreter's
start and end. `first_verdict_seconds` and `last_verdict_seconds` count from the process's start. `compile` sums what
the compilers say: busy job-seconds over all that there were between start-up and the last verdict, and the median of
one. Then `steps` of the start, each alone on the idle machine; how many candidates a second the compilers reach when
nothing else goes on (`builds`); and what the card's worker needs for each of its jobs (`card`). The goal is 25 s on an
H200 with 16 cores and `bytecode`, as pip leaves it: where an installation has none, every process compiles torch's
Python code anew (PYTHONPYCACHEPREFIX names a folder for it).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.build_rate import measure, sample
from benchmarks.first_search import first_search
from benchmarks.trust.document import write_document
from evoengine import __version__
from evoengine.build import Builder, BuildRequest
from evoengine.devices.cuda.device import WORKER
from evoengine.devices.cuda.messages import SDPA, Judge, RunFinals, SetUp, Subject
from evoengine.devices.cuda.nvml import Nvml
from evoengine.devices.cuda.probe import find_gpu, find_uuid
from evoengine.devices.cuda.session import START_SECONDS, Session
from evoengine.devices.cuda.spares import Spares
from evoengine.final_run import FINALISTS
from evoengine.hardware import DeviceLimits, card
from evoengine.space import load_space
from evoengine.template import Template, load_template, shipped
from evoengine.verdict import Artifact

ROOT = Path(__file__).resolve().parent.parent
GOAL_SECONDS = 25.0
VERDICTS = 30
SPARE_SECONDS = 8.0
"""By then a spare worker has imported torch."""
STEPS = {
    "python": "pass",
    "import torch": "import torch",
    "import the search": "import evoengine.cli.search",
    "torch context": "import torch; torch.zeros(1, device='cuda')",
    "ask the driver for the card": "from evoengine.devices.cuda.probe import find_gpu; find_gpu()",
    "feasible configs": (
        "from evoengine.cli.resolve import find_template, space_path; from evoengine.space import load_space; "
        "from evoengine.question import Question; from evoengine.gates import Ceilings; "
        "from evoengine.hardware import card; template = find_template(None); "
        "Question(template, load_space(space_path(None, template)), template.module.PROBLEM(), card('h200'), "
        "Ceilings()).feasible"
    ),
}
"""Programs, each with the start of its interpreter."""


def search(options: list[str]) -> dict[str, Any]:
    """One search, and what there is to say of it."""
    done = first_search(options)
    document = done.summary
    verdicts = [(when - done.began).total_seconds() for when in done.committed]
    builds = [one.build.build_seconds for one in done.records if one.build is not None]
    jobs = len(os.sched_getaffinity(0))
    return {
        "wall_seconds": round(done.wall_seconds, 2),
        "first_verdict_seconds": round(verdicts[0], 2),
        "last_verdict_seconds": round(verdicts[-1], 2),
        "seconds": document["seconds"],
        "compile": {
            "compiles": len(builds),
            "median_seconds": round(statistics.median(builds), 3) if builds else None,
            "busy": round(sum(builds) / (jobs * (verdicts[-1] - document["seconds"]["start-up"])), 3),
        },
        "spent": document["spent"],
        "verdicts": document["verdicts"],
        "winner": document["winner"],
        "best_us": document["elites"][0]["median_us"] if document["elites"] else None,
        "ratio_to_sdpa": document["elites"][0]["ratio_to_sdpa"] if document["elites"] else None,
        "environment": document["environment"],
        "toolchain": document["toolchain"],
        "study": document["study"],
        "template_digest": document["template_digest"],
        "space_digest": document["space_digest"],
    }


def steps() -> dict[str, float]:
    """Wall seconds of every step, the second of two runs: files are in memory then, as on a machine in use."""
    found = {}
    for name, program in STEPS.items():
        for _ in range(2):
            started = time.monotonic()
            done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=False)
            found[name] = round(time.monotonic() - started, 3) if done.returncode == 0 else float("nan")
    return {name: seconds for name, seconds in found.items() if seconds == seconds}


def card_steps(template: Template, limits: DeviceLimits) -> dict[str, float]:
    """Wall seconds of the worker's jobs with the default config; of verdicts the median of VERDICTS, of the final run
    one with eight finalists, all of them the default."""
    problem = template.module.PROBLEM()
    space = load_space(shipped("search_spaces") / "attention.py")
    values = space.default
    request = BuildRequest(template.module.defines(values, problem), template.module.launch(values, problem).smem_bytes)
    with Builder(template, limits.arch) as builder:
        (built,) = builder.build([request])
        assert isinstance(built, Artifact), built
        control = Subject("default", dict(values), str(built.cubin), built.cubin_sha256)
        session = Session(Spares((*WORKER, "0")), template, problem)
        found: dict[str, float] = {}

        def lap(name: str, step: Callable[[], object]) -> None:
            started = time.monotonic()
            step()
            found[name] = round(time.monotonic() - started, 3)

        with contextlib.closing(session):
            lap("a worker up, its inputs made", lambda: session.open(1))
            lap("the default proven and timed", lambda: session.ask(SetUp(control, None, False), START_SECONDS))
            lap("the same again, and baselines", lambda: session.ask(SetUp(control, None, True), START_SECONDS))
            each = []
            for _ in range(VERDICTS):
                lap("a verdict", lambda: session.ask(Judge(control, float("inf")), START_SECONDS))
                each.append(found["a verdict"])
            found["a verdict"] = statistics.median(each)
            session.workers.begin()
            time.sleep(SPARE_SECONDS)
            finalists = tuple(dataclasses.replace(control, name=str(at)) for at in range(FINALISTS))
            lap("a spare opened, its inputs made", lambda: session.open(2))
            lap("a final run", lambda: session.ask(RunFinals(control, finalists, 2, SDPA), START_SECONDS))
        return found


def has_bytecode() -> bool:
    """Whether torch's Python code is there compiled."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return False
    return Path(importlib.util.cache_from_source(found.origin)).exists()


def source_digest() -> str:
    """Of evoengine's Python code, templates and spaces."""
    hasher = hashlib.sha256()
    for room in ("evoengine", "kernel_templates", "search_spaces"):
        for path in sorted((ROOT / room).rglob("*")):
            if path.suffix in (".py", ".cu", ".cuh"):
                hasher.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return hasher.hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2, help="searches, each from an empty cache")
    parser.add_argument("--budget", type=int, default=200)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, help="JSON document")
    arguments = parser.parse_args()
    options = ["--budget", str(arguments.budget), "--device", arguments.device]
    runs = []
    for _ in range(arguments.runs):
        runs.append(search(options))
        print(json.dumps({name: runs[-1][name] for name in ("wall_seconds", "seconds")}), file=sys.stderr)
    gpu = find_gpu()
    template = load_template(shipped("kernel_templates") / "attention")
    limits = gpu or card("h200")
    requests = sample(template, limits, "1,8,512,64", min(arguments.budget, 96), seed=1)
    document = {
        "command": f"python -m benchmarks.full_speed --runs {arguments.runs} --budget {arguments.budget}",
        "searched": f"evoengine search {' '.join(options)}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "evoengine": __version__,
        "source_digest": source_digest(),
        "gpu": gpu and gpu.name,
        "driver": Nvml(find_uuid() or "").settings().get("driver") if gpu else None,
        "cores": len(os.sched_getaffinity(0)),
        "bytecode": has_bytecode(),
        "goal_seconds": GOAL_SECONDS,
        "median_wall_seconds": statistics.median(run["wall_seconds"] for run in runs),
        "runs": runs,
        "steps": steps(),
        "builds": measure(template, limits.arch, "nvrtc", None, requests),
    }
    put(arguments.output, document)
    if gpu:
        put(arguments.output, document | {"card": card_steps(template, limits)})


def put(output: Path | None, document: dict[str, Any]) -> None:
    if output is None:
        print(json.dumps(document, indent=1))
    else:
        write_document(output, document)


if __name__ == "__main__":
    main()
