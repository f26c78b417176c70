"""What each part of the default sampler is worth: recorded spaces searched with and without it.

    python benchmarks/sampler_ablation.py --runs 20 SPACE.json.gz... > sampler_ablation.json

One run of one variant on one space takes a second. The JSON holds, per variant, the mean over spaces and its standard
error over seeds: % of the optimum after 50, 100 and 200 evaluations, score over random, % of runs within 5 % and 1 %.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

from evoengine.recorded.load import load
from evoengine.recorded.replay import replay
from evoengine.recorded.score import RandomSearch, judge, mean_and_error, random_search
from evoengine.recorded.space import RecordedSpace

BUDGET = 200
NEVER = 10**9

VARIANTS: dict[str, dict[str, object]] = {
    "evolution": {},
    "starts 4": {"evolution.START_SIZE": 4},
    "starts 16": {"evolution.START_SIZE": 16},
    "no power-of-two features": {"features.POWER_OF_TWO_FROM": NEVER},
    "sampled pool": {"model.EXACT_POOL": 0, "model.SAMPLED_POOL": 1000},
    "sampled pool, no offspring": {
        "model.EXACT_POOL": 0,
        "model.SAMPLED_POOL": 1000,
        "evolution.offspring": lambda *_: {},
    },
    "no surrogate": {"evolution.MIN_FINISHED": NEVER},
}
"""Module attributes of evoengine.sampler that a variant replaces. Without the surrogate the starts go on to the end."""

Figures = Mapping[str, float]


@contextmanager
def replaced(attributes: Mapping[str, object]) -> Iterator[None]:
    with ExitStack() as stack:
        for name, value in attributes.items():
            stack.enter_context(patch(f"evoengine.sampler.{name}", value))
        yield


def figures(space: RecordedSpace, random: RandomSearch, seed: int, batch: int, noise: float) -> dict[str, float]:
    """One run, judged by true costs of the config that measured best."""
    trace = replay(space, sampler="evolution", seed=seed, budget=BUDGET, batch=batch, noise_percent=noise)
    rows = [trace.rows[0] if row is None else row for row in trace.picked]
    found = judge(space, rows, BUDGET, random)
    assert found.score is not None, "no recorded space is flat"
    return {
        **{f"at_{mark}": 100 * share for mark, share in found.share.items()},
        "score": found.score,
        **{f"within_{100 * close:.0f}": 100.0 * (at is not None) for close, at in found.evaluations.items()},
    }


def spread(runs: Sequence[Sequence[Figures]]) -> dict[str, list[float]]:
    """Mean and standard error over seeds of the mean over spaces; `runs` are per seed, then per space."""
    table = {}
    for name in runs[0][0]:
        mean, error = mean_and_error([math.fsum(one[name] for one in seed) / len(seed) for seed in runs])
        table[name] = [round(mean, 3), round(error or 0.0, 3)]
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spaces", nargs="+", type=Path, metavar="SPACE")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--noise", type=float, default=0.0, metavar="PERCENT")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="only these (repeatable)")
    arguments = parser.parse_args()
    spaces = [load(path) for path in arguments.spaces]
    chance = [random_search(space, BUDGET) for space in spaces]
    table = {}
    for name in arguments.variant or VARIANTS:
        with replaced(VARIANTS[name]):
            runs = [
                [
                    figures(one, random, seed, arguments.batch, arguments.noise)
                    for one, random in zip(spaces, chance, strict=True)
                ]
                for seed in range(arguments.runs)
            ]
        each = {one.name: spread([[seed[at]] for seed in runs]) for at, one in enumerate(spaces)}
        table[name] = {"mean": spread(runs), "spaces": each}
        print(name, table[name]["mean"], file=sys.stderr, flush=True)
    head = {"runs": arguments.runs, "budget": BUDGET, "batch": arguments.batch, "noise_percent": arguments.noise}
    print(json.dumps({**head, "variants": table}, indent=1))


if __name__ == "__main__":
    main()
