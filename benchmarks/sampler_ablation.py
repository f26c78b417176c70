"""What each part of the default sampler is worth: recorded spaces searched with and without it.

    python benchmarks/sampler_ablation.py --runs 20 --public SPACE.json.gz... --ours studies/h200/spaces/*.jsonl.gz \\
        --output studies/ablation.json

`--public` spaces know no template and are searched cold; `--ours` are recordings of a template, of whose configs a
search knows the estimate. A run takes a second, all of them 20 minutes with `--jobs 1`. The file holds, per variant,
the mean over spaces and its standard error over seeds: % of the optimum after 50, 100 and 200 evaluations, score over
random, % of runs within 5 % and 1 %, and the median of evaluations to 1 %. It is written after every variant; variants
that it holds are not run again, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partialmethod
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from benchmarks.replay_figures import BUDGET, figures, in_processes, spread
from benchmarks.template_features import compiled_features, static_features
from evoengine.cli.replay import estimated, forecast_of
from evoengine.recorded.load import load
from evoengine.recorded.replay import replay
from evoengine.recorded.score import random_search
from evoengine.sampler.model import Model, Scale
from evoengine.sampler.surrogate import Floats
from evoengine.sampler.valid import Rows

NEVER = 10**9


@dataclass(frozen=True)
class Variant:
    """Module attributes of evoengine.sampler that are replaced, and what else the sampler knows of our recordings."""

    spaces: Literal["public", "ours"]
    replaced: Mapping[str, object] = field(default_factory=dict)
    knows_estimate: bool = False
    features: Literal["", "static", "compiled"] = ""


def uncompressed(values: Floats) -> Scale:
    """Log times, mean 0 and variance 1, a rejection as the slowest."""
    logs = np.log(np.where(np.isfinite(values), values, np.nanmax(values)))
    spread = max(float(logs.std()), 1e-9)
    return Scale((logs - logs.mean()) / spread, float(logs.mean()), spread, 0.0, 1.0)


def lowest_mean(mean: Floats, variance: Floats, best: float) -> Floats:
    return -mean


def no_opinion(points: NDArray[np.int16]) -> Floats:
    return np.zeros(len(points))


SAMPLED: dict[str, object] = {"model.EXACT_POOL": 0, "model.SAMPLED_POOL": 1000}
"""As in a space too large to judge every config at every step, where the offspring of the elites matter."""
VARIANTS = {
    "evolution": Variant("public"),
    "ours": Variant("ours", knows_estimate=True),
    "ours: without the estimate": Variant("ours"),
    "ours: estimate as starts alone": Variant("ours", {"evolution.Transfer": lambda *_: no_opinion}, True),
    "ours: estimate as forecast alone": Variant("ours", {"starts.TRANSFERRED": 0}, True),
    "ours: without the estimate, static resources": Variant("ours", features="static"),
    "ours: without the estimate, the compiler's report": Variant("ours", features="compiled"),
    "ours: the compiler's report": Variant("ours", knows_estimate=True, features="compiled"),
    "no surrogate": Variant("public", {"evolution.MIN_FINISHED": NEVER}),
    "length scales around 0.7": Variant("public", {"surrogate.LENGTH": (0.7, 1.0)}),
    "no power-of-two features": Variant("public", {"features.POWER_OF_TWO_FROM": NEVER}),
    "slow half not compressed": Variant("public", {"model.standardise": uncompressed}),
    "lowest mean, not expected improvement": Variant("public", {"model.log_improvement": lowest_mean}),
    "starts 4": Variant("public", {"evolution.START_SIZE": 4}),
    "starts 16": Variant("public", {"evolution.START_SIZE": 16}),
    "sampled pool": Variant("public", SAMPLED),
    "sampled pool, no offspring": Variant("public", {**SAMPLED, "evolution.offspring": lambda *_: {}}),
    "sampled pool, no mutation": Variant("public", {**SAMPLED, "operators.MUTATED": 0}),
    "sampled pool, no crossover": Variant("public", {**SAMPLED, "operators.CROSSOVERS": 0}),
}
"""The most telling first. Without the surrogate the spread starts go on to the end."""


def _at_with(model: Model, more: Floats, rows: Rows) -> Floats:
    """`Model._at` with more features."""
    return np.hstack([model._features.of(model._valid.at(rows)), more[rows]])


@dataclass(frozen=True)
class Task:
    """One variant on one space, every seed."""

    variant: str
    path: Path
    arguments: argparse.Namespace


@contextmanager
def changed(variant: Variant, more: Floats | None) -> Iterator[None]:
    """With the variant's attributes, and with `more` features of every config of a space, in order."""
    with ExitStack() as stack:
        for name, value in variant.replaced.items():
            stack.enter_context(patch(f"evoengine.sampler.{name}", value))
        if more is not None:
            stack.enter_context(patch("evoengine.sampler.model.Model._at", partialmethod(_at_with, more)))
        yield


def measure(task: Task) -> tuple[str, list[dict[str, float]]]:
    """The name of the task's space, and the figures of its variant there for every seed."""
    variant, path, arguments = VARIANTS[task.variant], task.path, task.arguments
    space = load(path)
    random = random_search(space, BUDGET)
    table = {"static": static_features, "compiled": compiled_features}
    more = table[variant.features](path, space) if variant.features else None
    forecast = forecast_of(space) if variant.knows_estimate else None
    found = []
    with changed(variant, more):
        for seed in range(arguments.runs):
            trace = replay(
                space,
                sampler="evolution",
                seed=seed,
                budget=BUDGET,
                batch=arguments.batch,
                noise_percent=arguments.noise,
                sources=estimated(forecast, seed),
            )
            found.append(figures(space, random, trace))
    return space.name, found


def summary(runs: Mapping[str, Sequence[dict[str, float]]]) -> dict[str, Any]:
    """`runs` are by the name of the space, then per seed."""
    return {
        "mean": spread(list(zip(*runs.values(), strict=True))),
        "spaces": {name: spread([[one] for one in found]) for name, found in runs.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--public", nargs="+", type=Path, default=[], metavar="SPACE")
    parser.add_argument("--ours", nargs="+", type=Path, default=[], metavar="SPACE")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--noise", type=float, default=0.0, metavar="PERCENT")
    parser.add_argument("--jobs", type=int, default=1, help="spaces searched at a time, each in a process")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="only these (repeatable)")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    arguments = parser.parse_args()
    head = {"runs": arguments.runs, "budget": BUDGET, "batch": arguments.batch, "noise_percent": arguments.noise}
    document: dict[str, Any] = {**head, "variants": {}}
    if arguments.output.is_file():
        document = json.loads(arguments.output.read_text(encoding="utf-8"))
        if any(document[key] != value for key, value in head.items()):
            sys.exit(f"sampler_ablation: {arguments.output} was made with other options: give another --output")
    files = {"public": arguments.public, "ours": arguments.ours}
    names = [name for name in arguments.variant or VARIANTS if name not in document["variants"]]
    tasks = [Task(name, path, arguments) for name in names for path in files[VARIANTS[name].spaces]]
    done = in_processes(measure, tasks, arguments.jobs)
    for name, group in itertools.groupby(tasks, lambda task: task.variant):
        document["variants"][name] = summary(dict(itertools.islice(done, len(list(group)))))
        arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        print(name, document["variants"][name]["mean"], file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
