"""What a warm start is worth: recorded spaces searched cold and with what another recording of the same axes knows.

    python benchmarks/warm_start.py --runs 20 SOURCE.json.gz:TARGET.json.gz... \\
        --output studies/warm_start.json

For every pair, per seed: the target `cold`; with a `search` of the source as a study would hold it (200 evaluations, of
another seed); with the whole `recording` of it; with a `misleading` source, that search with its times shuffled. The
JSON holds means and standard errors over seeds, as `sampler_ablation.py` does. A pair takes two minutes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.replay_figures import BUDGET, Figures, figures, in_processes, spread
from evoengine.recorded.load import load
from evoengine.recorded.replay import replay
from evoengine.recorded.score import random_search
from evoengine.recorded.source import source_of
from evoengine.recorded.space import RecordedSpace
from evoengine.sampler.source import Source

ANOTHER = 1000
"""Added to a seed for the search of the source."""
KINDS = ("cold", "search", "recording", "misleading")


def source(kind: str, theirs: RecordedSpace, ours: RecordedSpace, searched: Sequence[int], seed: int) -> list[Source]:
    """What a search of `ours` is told, where a search of `theirs` tried the rows `searched`; nothing when cold."""
    if kind == "cold":
        return []
    rows = range(len(theirs)) if kind == "recording" else searched
    costs = theirs.costs[list(rows)]
    if kind == "misleading":
        costs = np.random.default_rng([ANOTHER, seed]).permutation(costs)
    made = source_of(theirs, ours, zip(rows, costs.tolist(), strict=True))
    if made is None:
        sys.exit(f"warm_start: {theirs.name} and {ours.name} have no parameters and working configs in common")
    return [made]


def measure(task: tuple[str, int]) -> tuple[str, str, dict[str, Figures]]:
    """Names of a pair's source and target, and the figures of every kind for one seed."""
    pair, seed = task
    theirs, ours = (load(Path(file)) for file in pair.split(":"))
    random = random_search(ours, BUDGET)
    searched = replay(theirs, sampler="evolution", seed=ANOTHER + seed, budget=BUDGET).rows
    found: dict[str, Figures] = {}
    for kind in KINDS:
        told = source(kind, theirs, ours, searched, seed)
        found[kind] = figures(ours, random, replay(ours, sampler="evolution", seed=seed, budget=BUDGET, sources=told))
    return theirs.name, ours.name, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", metavar="SOURCE:TARGET")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=1, help="searches at a time, each in a process")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    arguments = parser.parse_args()
    tasks = [(pair, seed) for pair in arguments.pairs for seed in range(arguments.runs)]
    done = in_processes(measure, tasks, arguments.jobs)
    rows: list[dict[str, Any]] = []
    for _ in arguments.pairs:
        runs = list(itertools.islice(done, arguments.runs))
        kinds = {kind: spread([[found[kind]] for *_, found in runs]) for kind in KINDS}
        rows.append({"source": runs[0][0], "target": runs[0][1], **kinds})
        document = {"runs": arguments.runs, "budget": BUDGET, "pairs": rows}
        arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
