"""evoengine beside Kernel Tuner on one GPU, same kernel, space and budget: `python -m benchmarks.against_tuners`.

    --output studies/h200/against_tuners.json [--part NAME ...] [--seconds S]

Kernel Tuner cannot opt in to more than 48 KB of shared memory nor pass other arguments to some configs, so both search
`tuners/space.py` within 48 KB; evoengine also searches the whole space, beside them. Each search is a part, and starts
with an empty cache of builds. The winners of all are then timed together by `trust/graph_clock`, which neither tool
uses. Rows are written as they are made; another run does what is missing, and drops what was found on another card or
in another space.

Needs kernel_tuner and cupy beside evoengine.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.first_search import SearchFailed, first_search
from benchmarks.trust.document import this_card, write_document
from benchmarks.trust.graph_clock import independent_us
from benchmarks.tuners.space import SPACE, WHOLE
from evoengine import __version__
from evoengine.build import Builder, BuildRequest
from evoengine.devices.cuda import find_gpu
from evoengine.hardware import DeviceLimits
from evoengine.problem import AttentionProblem, parse_shape, problem_fields
from evoengine.template import Template, load_template, shipped
from evoengine.verdict import Artifact

ROOT = Path(__file__).resolve().parents[1]
SHAPE, MAX_SMEM = "1,8,512,64", 48 * 1024
OURS: dict[str, tuple[str, ...]] = {
    "evoengine": ("--space", str(ROOT / "benchmarks" / "tuners" / "space.py"), "--max-smem", str(MAX_SMEM)),
    "whole": (),
}
"""Our own parts, with the options of each."""
STRATEGIES = ("adaptive_tabu_greywolf", "genetic_algorithm")
"""Kernel Tuner's best on recorded spaces (studies/search_efficiency.json), and the one that most of its users know."""
MODULES = ("cupy", "kernel_tuner", "constraint", "jsonschema", "referencing", "rpds", "attr", "xmltodict", "packaging")
"""What a search by Kernel Tuner imports, and what that imports."""
OUR_SECONDS, THEIR_SECONDS, CLOSING_SECONDS = 60.0, 180.0, 40.0
"""How much time there must be to begin a part, and what timing the winners takes."""
ROUNDS = 100

Row = dict[str, Any]


def tool_of(part: str) -> str:
    """The name of a part's row."""
    return {"evoengine": "evoengine", "whole": "evoengine, whole space"}.get(part, f"Kernel Tuner, {part}")


def searched_by_us(part: str, seed: int, budget: int) -> Row:
    """One search by the command line, as a user starts it.

    Raises:
        SearchFailed: it ended with an error, or confirmed nothing.
    """
    options = ["--shape", SHAPE, "--budget", str(budget), "--seed", str(seed), "--device", "cuda", *OURS[part]]
    done = first_search(options)
    result = done.summary
    if not result["elites"]:
        raise SearchFailed(f"{done.command} confirmed nothing: {result['verdicts']}")
    best = result["elites"][0]
    return {
        "command": done.command.replace(f"{ROOT}{os.sep}", ""),  # the folder is the machine's own affair
        "version": __version__,
        "config": best["config"],
        "told_us": best["median_us"],
        "evaluated": result["spent"],
        "failed": result["spent"] - result["verdicts"].get("measured", 0),
        "seconds": done.wall_seconds,
    }


def searched_by_kernel_tuner(strategy: str, seed: int, budget: int, seconds: float) -> Row:
    """One search in a process of its own, which may take that many seconds."""
    command = [sys.executable, "-m", "benchmarks.tuners.kernel_tuner_search", strategy, "--shape", SHAPE]
    command += ["--budget", str(budget), "--max-smem", str(MAX_SMEM), "--seed", str(seed)]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=seconds)
    total = time.perf_counter() - started
    told = json.loads(done.stdout.splitlines()[-1])
    return {"command": shlex.join(["python", *command[1:]]), **told, "seconds": total}


def retimed(template: Template, limits: DeviceLimits, rows: Sequence[Row]) -> list[float]:
    """Median microseconds of each row's winner, all timed side by side."""
    problem = parse_shape(AttentionProblem, SHAPE)
    module = template.module
    requests = [
        BuildRequest(module.defines(row["config"], problem), module.launch(row["config"], problem).smem_bytes)
        for row in rows
    ]
    with Builder(template, limits.arch) as builder:
        built = builder.build(requests)
    subjects = {}
    for at, (row, artifact) in enumerate(zip(rows, built, strict=True)):
        assert isinstance(artifact, Artifact), artifact
        subjects[str(at)] = (row["config"], artifact.cubin)
    times = independent_us(template.folder, problem_fields(problem), subjects, ROUNDS)
    return [statistics.median(times[str(at)]) for at in range(len(rows))]


def compared(rows: Sequence[Row]) -> list[Row]:
    """Wall time and winner of the others over ours, on the space that all searched, for each seed."""
    ours = {row["seed"]: row for row in rows if row["tool"] == tool_of("evoengine")}
    return [
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


def opened(path: Path, setting: Row) -> Row:
    """The document of an earlier run in this setting, or a new one."""
    if path.exists():
        found: Row = json.loads(path.read_text())
        if found.get("environment") == setting:
            return found
    return {
        "command": "python -m benchmarks.against_tuners --output studies/h200/against_tuners.json",
        "evoengine": __version__,
        "environment": setting,
        "rows": [],
        "over_ours": [],
    }


def missing(document: Row, parts: Sequence[str], seeds: int) -> Iterator[tuple[str, int]]:
    """The parts that are still to be done, each with its seed."""
    have = {(row["tool"], row["seed"]) for row in document["rows"]}
    for seed in range(seeds):
        yield from ((part, seed) for part in parts if (tool_of(part), seed) not in have)


def search(part: str, seed: int, budget: int, seconds: float) -> Row | None:
    """A part's row, or None where it fails or there is too little time."""
    if seconds < (OUR_SECONDS if part in OURS else THEIR_SECONDS):
        print(f"{tool_of(part)}, seed {seed}: too little time left, run it again", file=sys.stderr)
        return None
    try:
        if part in OURS:
            return searched_by_us(part, seed, budget)
        return searched_by_kernel_tuner(part, seed, budget, seconds)
    except (SearchFailed, subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(f"{tool_of(part)}, seed {seed}: {error}", file=sys.stderr)
        return None


def main() -> int:
    arguments = _arguments()
    parts = arguments.part or [*OURS, *STRATEGIES]
    absent = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if absent and not OURS.keys() >= set(parts):
        sys.exit(f"against_tuners needs {', '.join(absent)}: install them, or name our own parts: {', '.join(OURS)}")
    limits = find_gpu()
    if limits is None:
        sys.exit("against_tuners needs a GPU, and there is none here")
    template = load_template(shipped("kernel_templates") / "attention")
    setting = {
        **this_card(limits),
        "cores": len(os.sched_getaffinity(0)),
        "template_digest": template.digest,
        "space_digest": SPACE.digest,
        "whole_space_digest": WHOLE.digest,
        "shape": SHAPE,
        "budget": arguments.budget,
        "max_smem_bytes": MAX_SMEM,
    }
    document = opened(arguments.output, setting)
    rows: list[Row] = document["rows"]
    end = time.monotonic() + arguments.seconds - CLOSING_SECONDS
    for part, seed in list(missing(document, parts, arguments.seeds)):
        row = search(part, seed, arguments.budget, end - time.monotonic())
        if row is not None:
            date = datetime.now(UTC).isoformat(timespec="seconds")
            rows.append({"tool": tool_of(part), "seed": seed, "date": date, **row})
            write_document(arguments.output, document)
            print(json.dumps(rows[-1]), flush=True)
    if not rows:
        return 1
    for row, us in zip(rows, retimed(template, limits, rows), strict=True):
        row["retimed_us"] = us
    document["over_ours"] = compared(rows)
    write_document(arguments.output, document)
    print(json.dumps(document["over_ours"], indent=1))
    return int(any(missing(document, parts, arguments.seeds)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON document")
    named = f"{', '.join(OURS)} or a strategy of Kernel Tuner (default: ours and {', '.join(STRATEGIES)})"
    parser.add_argument("--part", action="append", metavar="NAME", help=named)
    parser.add_argument("--seeds", type=int, default=1, metavar="N")
    parser.add_argument("--budget", type=int, default=200, metavar="N", help="configs a search")
    parser.add_argument("--seconds", type=float, default=3600.0, metavar="S", help="when to stop (default: 3600)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
