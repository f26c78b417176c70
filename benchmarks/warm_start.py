"""What a warm start is worth: recorded spaces searched cold and with what another recording of the same axes knows.

    python benchmarks/warm_start.py --runs 20 SOURCE.json.gz:TARGET.json.gz... > studies/warm_start.json

For every pair, per seed: the target `cold`; with a `search` of the source as a study would hold it (200 evaluations, of
another seed); with the whole `recording` of it; with a `misleading` source, that search with its times shuffled. The
JSON holds means and standard errors over seeds, as `sampler_ablation.py` does. A run takes a second.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.replay_figures import BUDGET, figures, spread
from evoengine.recorded.load import load
from evoengine.recorded.replay import replay
from evoengine.recorded.score import random_search
from evoengine.recorded.space import RecordedSpace
from evoengine.sampler.source import Source, make_source

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
    values = [None if np.isnan(cost) else float(cost) for cost in costs]
    trials = zip([theirs.points[row] for row in rows], values, strict=True)
    made = make_source(theirs.name, theirs.device, "", trials, theirs=theirs.axes, ours=ours.axes)
    if made is None:
        sys.exit(f"warm_start: {theirs.name} and {ours.name} have no parameters and working configs in common")
    return [made]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", metavar="SOURCE:TARGET")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--kind", action="append", choices=KINDS, help="only these (repeatable)")
    arguments = parser.parse_args()
    table = []
    for pair in arguments.pairs:
        theirs, ours = (load(Path(file)) for file in pair.split(":"))
        random = random_search(ours, BUDGET)
        row: dict[str, object] = {"source": theirs.name, "target": ours.name}
        seeds = range(arguments.runs)
        searched = [replay(theirs, sampler="evolution", seed=ANOTHER + seed, budget=BUDGET).rows for seed in seeds]
        for kind in arguments.kind or KINDS:
            told = [source(kind, theirs, ours, searched[seed], seed) for seed in seeds]
            traces = [replay(ours, sampler="evolution", seed=seed, budget=BUDGET, sources=told[seed]) for seed in seeds]
            row[kind] = spread([[figures(ours, random, trace)] for trace in traces])
            print(theirs.name, ours.name, kind, row[kind], file=sys.stderr, flush=True)
        table.append(row)
    print(json.dumps({"runs": arguments.runs, "budget": BUDGET, "pairs": table}, indent=1))


if __name__ == "__main__":
    main()
