"""Replays of recorded spaces with the default sampler, as README and studies/LOG.md quote them: studies/replay.json.

    python benchmarks/replay_spaces.py --public SPACE.json.gz... --ours studies/h200/spaces/*.jsonl.gz \\
        --output studies/replay.json

What `evoengine replay FILE --runs 20 --json` says over all runs: of `--public` spaces one config at a time, in batches
of 16, and with 2 % noise on every replayed value; of `--ours` one at a time, with the estimate and without, and with
it at the pace of one card beside 16 cores (`cli.running.informed_pace`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.replay_figures import BUDGET, in_processes
from evoengine.cli.replay import estimated, forecast_of
from evoengine.cli.running import informed_pace, usual_batch
from evoengine.recorded.load import load
from evoengine.recorded.replay import replay
from evoengine.recorded.summary import summarise

RUNS = 20
PUBLIC: dict[str, Mapping[str, Any]] = {"batch_1": {}, "batch_16": {"batch": 16}, "noise_2": {"noise_percent": 2.0}}
JOBS = 16
PACE = dataclasses.asdict(informed_pace(JOBS, usual_batch(JOBS, 1), BUDGET, begun=False))
OURS: dict[str, Mapping[str, Any]] = {"batch_1": {}, "without_estimate": {}, "head_start": PACE}
UNTOLD = ("without_estimate",)


def measure(task: tuple[Path, str, bool]) -> tuple[str, str, dict[str, Any], dict[str, Any]]:
    """Name of the space, kind of replay, random search's figures and those over all runs."""
    path, kind, ours = task
    space = load(path)
    forecast = forecast_of(space) if ours and kind not in UNTOLD else None
    options = OURS[kind] if ours else PUBLIC[kind]
    traces = [
        replay(space, sampler="evolution", seed=seed, budget=BUDGET, sources=estimated(forecast, seed), **options)
        for seed in range(RUNS)
    ]
    document = summarise(space, traces, BUDGET)
    random = {name: value for name, value in document["random"].items() if name != "best_so_far"}
    return space.name, kind, random, document["over_runs"]


def mean(rows: list[dict[str, Any]], picked: bool) -> dict[str, Any]:
    """Over spaces; under noise of the config that measured best."""
    share = "picked_percent_of_optimum" if picked else "percent_of_optimum"
    count = len(rows)
    return {
        share: {mark: sum(row[share][mark]["mean"] for row in rows) / count for mark in rows[0][share]},
        "score_over_random": sum(row["score_over_random"]["mean"] for row in rows) / count,
        **{name: sum(row[name] for row in rows) / count for name in ("within_5_percent", "within_1_percent")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--public", nargs="+", type=Path, default=[], metavar="SPACE")
    parser.add_argument("--ours", nargs="+", type=Path, default=[], metavar="SPACE")
    parser.add_argument("--jobs", type=int, default=1, help="spaces searched at a time, each in a process")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    arguments = parser.parse_args()
    tasks = [(path, kind, False) for kind in PUBLIC for path in arguments.public]
    tasks += [(path, kind, True) for kind in OURS for path in arguments.ours]
    spaces: dict[str, dict[str, Any]] = {}
    found: dict[str, list[dict[str, Any]]] = {}
    for task, (name, kind, random, over) in zip(tasks, in_processes(measure, tasks, arguments.jobs), strict=True):
        spaces.setdefault(name, {"random": random})[kind] = over
        found.setdefault(f"{'ours' if task[2] else 'public'}_{kind}", []).append(over)
        print(name, kind, over["score_over_random"], file=sys.stderr, flush=True)
    means = {kind: mean(rows, kind.endswith("noise_2")) for kind, rows in found.items()}
    head = {"command": "python benchmarks/replay_spaces.py", "runs": RUNS, "budget": BUDGET}
    document = {**head, "means": means, "spaces": spaces}
    arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
