"""evoengine beside Kernel Tuner on one GPU, same kernel, space and budget: `python -m benchmarks.against_tuners`.

    --output studies/h200/against_tuners.json [--strategy NAME ...] [--seconds S]

Kernel Tuner cannot opt in to more than 48 KB of shared memory nor pass other arguments to some configs, so both search
`tuners/space.py` within 48 KB; evoengine also searches the whole space, beside them. Each starts with an empty cache of
builds. The winners are then timed together by `trust/graph_clock`, which neither tool uses. What the file has is kept;
rows are written as they are made.

Needs kernel_tuner and cupy beside evoengine.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.first_search import SearchFailed, first_search
from benchmarks.trust.graph_clock import independent_us
from benchmarks.tuners.space import SPACE
from evoengine import __version__
from evoengine.build import Builder, BuildRequest
from evoengine.devices.cuda import find_gpu
from evoengine.problem import AttentionProblem, parse_shape, problem_fields
from evoengine.template import load_template, shipped
from evoengine.verdict import Artifact

ROOT = Path(__file__).resolve().parents[1]
SHAPE, BUDGET, MAX_SMEM = "1,8,512,64", 200, 48 * 1024
STRATEGIES = ("adaptive_tabu_greywolf", "genetic_algorithm")
"""Kernel Tuner's best on recorded spaces (studies/search_efficiency.json), and the one that most of its users know."""
ROUNDS = 100
OURS, WHOLE = "evoengine", "evoengine, whole space"


def searched_by_us(seed: int, options: list[str]) -> dict[str, Any]:
    """One search by the command line, as a user starts it."""
    done = first_search(["--shape", SHAPE, "--budget", str(BUDGET), "--seed", str(seed), *options])
    result = done.summary
    best = result["elites"][0]
    told = {"config": best["config"], "told_us": best["median_us"], "evaluated": result["spent"]}
    failed = result["spent"] - result["verdicts"].get("measured", 0)
    return {"command": done.command, **told, "failed": failed, "seconds": done.wall_seconds}


def searched_by_kernel_tuner(strategy: str, seed: int, seconds: float) -> dict[str, Any]:
    """One search in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.tuners.kernel_tuner_search", strategy, "--shape", SHAPE]
    command += ["--budget", str(BUDGET), "--max-smem", str(MAX_SMEM), "--seed", str(seed)]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=seconds)
    total = time.perf_counter() - started
    told = json.loads(done.stdout.splitlines()[-1])
    return {"command": shlex.join(["python", *command[1:]]), **told, "seconds": total}


def retimed(rows: list[dict[str, Any]]) -> list[float]:
    """Median microseconds of each row's winner, all timed side by side."""
    template, limits = load_template(shipped("kernel_templates") / "attention"), find_gpu()
    assert limits is not None, "checked at the start"
    problem = parse_shape(AttentionProblem, SHAPE)
    module = template.module
    with Builder(template, limits.arch) as builder:
        launches = [module.launch(row["config"], problem) for row in rows]
        requests = [
            BuildRequest(module.defines(row["config"], problem), launch.smem_bytes)
            for row, launch in zip(rows, launches, strict=True)
        ]
        built = builder.build(requests)
    subjects = {}
    for at, (row, artifact) in enumerate(zip(rows, built, strict=True)):
        assert isinstance(artifact, Artifact), artifact
        subjects[str(at)] = (row["config"], artifact.cubin)
    times = independent_us(template.folder, problem_fields(problem), subjects, ROUNDS)
    return [statistics.median(times[str(at)]) for at in range(len(rows))]


def compared(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Wall time and winner of the others over ours, on the space that all searched; per seed, and the median."""
    ours = {row["seed"]: row for row in rows if row["tool"] == OURS}
    ratios = [
        {
            "tool": row["tool"],
            "seed": row["seed"],
            "wall": row["seconds"] / ours[row["seed"]]["seconds"],
            "wall_without_its_space": (row["seconds"] - row["space_seconds"]) / ours[row["seed"]]["seconds"],
            "winner_us": row["retimed_us"] / ours[row["seed"]]["retimed_us"],
        }
        for row in rows
        if "space_seconds" in row and row["seed"] in ours
    ]
    return {"over_ours": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--strategy", action="append", metavar="NAME", help=f"default: {', '.join(STRATEGIES)}")
    parser.add_argument("--seeds", type=int, default=1, metavar="N")
    parser.add_argument("--seconds", type=float, default=3600.0, metavar="S", help="begin nothing after that long")
    arguments = parser.parse_args()
    limits = find_gpu()
    if limits is None:
        sys.exit("against_tuners needs a GPU, and there is none here")
    document: dict[str, Any] = {"rows": []}
    if arguments.output.exists():
        document = json.loads(arguments.output.read_text())
    template = load_template(shipped("kernel_templates") / "attention")
    document |= {
        "command": "python -m benchmarks.against_tuners --output studies/h200/against_tuners.json",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "evoengine": __version__,
        "gpu": limits.name,
        "cores": len(os.sched_getaffinity(0)),
        "template_digest": template.digest,
        "space_digest": SPACE.digest,
        "shape": SHAPE,
        "budget": BUDGET,
        "max_smem_bytes": MAX_SMEM,
    }
    end = time.monotonic() + arguments.seconds
    space = str(ROOT / "benchmarks" / "tuners" / "space.py")
    for seed in range(arguments.seeds):
        tools: dict[str, Any] = {OURS: ["--space", space, "--max-smem", str(MAX_SMEM)], WHOLE: []}
        tools |= dict.fromkeys(arguments.strategy or STRATEGIES)
        for tool, options in tools.items():
            name = tool if options is not None else f"Kernel Tuner, {tool}"
            if time.monotonic() > end or any((row["tool"], row["seed"]) == (name, seed) for row in document["rows"]):
                continue
            try:
                row = (
                    searched_by_kernel_tuner(tool, seed, end - time.monotonic())
                    if options is None
                    else searched_by_us(seed, options)
                )
            except (SearchFailed, subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                print(f"{name}: {error}", file=sys.stderr)
                continue
            document["rows"].append({"seed": seed, **row, "tool": name, "version": row.get("tool", __version__)})
            _write(arguments.output, document)
            print(json.dumps(document["rows"][-1]), flush=True)
    for row, us in zip(document["rows"], retimed(document["rows"]), strict=True):
        row["retimed_us"] = us
    document["compared"] = compared(document["rows"])
    _write(arguments.output, document)
    print(json.dumps(document["compared"], indent=1))


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
