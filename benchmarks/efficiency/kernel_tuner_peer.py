"""Kernel Tuner's strategies on a recorded space, in its own simulation mode, at the defaults of 1.5.0.

A strategy is told every recorded config as feasible, failing ones too: Kernel Tuner's `tune_cache` would hide those,
which no tuner could know beforehand.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sized
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np

from evoengine.recorded.space import RecordedSpace
from evoengine.space import Axis

STRATEGIES: dict[str, tuple[str, dict[str, object]]] = {
    "random_sample": ("random_sample", {}),
    "genetic_algorithm": ("genetic_algorithm", {}),
    "diff_evo": ("diff_evo", {}),
    # Its default of 16 for each axis is half of a budget of 200, or more.
    "diff_evo, population 20": ("diff_evo", {"popsize": 20, "popsize_times_dimensions": False}),
    "pso": ("pso", {}),
    "simulated_annealing": ("simulated_annealing", {}),
    "dual_annealing": ("dual_annealing", {}),
    "firefly_algorithm": ("firefly_algorithm", {}),
    "basinhopping": ("basinhopping", {}),
    "greedy_ils": ("greedy_ils", {}),
    "greedy_mls": ("greedy_mls", {}),
    "mls": ("mls", {}),
    "ordered_greedy_mls": ("ordered_greedy_mls", {}),
    "nsga2": ("nsga2", {}),
    "adaptive_tabu_greywolf": ("adaptive_tabu_greywolf", {}),
    "hybrid_vndx": ("hybrid_vndx", {}),
    "bayes_opt": ("bayes_opt", {}),
}
"""Strategies and options by name: all that search for one objective, but `minimize` (one local search, over after ten
evaluations) and two that hand over to other packages (skopt, pyATF)."""

VISITS_PER_EVALUATION = 50
"""Known configs that a strategy may visit for free. greedy_ils never leaves a group of configs without neighbours, and
a run that does nothing else is over."""

KERNEL, PROBLEM = "recorded", (1,)


def search(space: RecordedSpace, name: str, seed: int, budget: int) -> tuple[int, ...]:
    """The rows of `space` that strategy `name` evaluated, in order; fewer than `budget` where it stopped by itself.

    Kernel Tuner draws from the process's global generators, which are seeded here: a process must run one search at a
    time.
    """
    import kernel_tuner
    from constraint import FunctionConstraint, Unassigned

    strategy, options = STRATEGIES[name]
    names = [axis.name for axis in space.axes]
    values = [_values(axis) for axis in space.axes]
    configs = [tuple(of[index] for of, index in zip(values, point, strict=True)) for point in space.points]
    row_of = {config: row for row, config in enumerate(configs)}
    begun: dict[tuple[int, ...], set[tuple[Any, ...]]] = {}

    def recorded(*config: Any) -> bool:
        """Whether a config, of which some axes may not be set yet, can become a recorded one: without this look ahead
        every point of the product would be visited, 12 million for 2,820 configs of our own."""
        at = tuple(index for index, value in enumerate(config) if value is not Unassigned)
        if at not in begun:
            begun[at] = {tuple(one[index] for index in at) for one in configs}
        return tuple(config[index] for index in at) in begun[at]

    with (
        tempfile.TemporaryDirectory() as folder,
        _watched(budget) as evaluated,
        _as_on_a_card(evaluated),
        _mended(),
        _seeded(seed),
    ):
        path = Path(folder) / "cache.json"
        path.write_text(json.dumps(cachefile(space)), encoding="utf-8")
        # greedy_ils of 1.5.0 breaks on a config without neighbours: what it found until then is its result
        with contextlib.suppress(TypeError) if strategy == "greedy_ils" else contextlib.nullcontext():
            kernel_tuner.tune_kernel(
                KERNEL,
                "",
                PROBLEM,
                [],
                dict(zip(names, values, strict=True)),
                restrictions=[FunctionConstraint(recorded, assigned=False)],
                cache=str(path),
                simulation_mode=True,
                strategy=strategy,
                strategy_options={"max_fevals": budget, **options},
                seed=seed,
                lang="C",
                quiet=True,
            )
    return tuple(row_of[config] for config in evaluated)


def cachefile(space: RecordedSpace) -> dict[str, Any]:
    """`space` as the cachefile that Kernel Tuner's simulation mode reads; times in milliseconds."""
    names = [axis.name for axis in space.axes]
    values = [_values(axis) for axis in space.axes]
    scale = 1e-3 if space.unit == "us" else 1.0
    cache = {}
    for point, cost in zip(space.points, space.costs, strict=True):
        config = [of[index] for of, index in zip(values, point, strict=True)]
        time = "RuntimeFailedConfig" if np.isnan(cost) else scale * float(cost)
        cache[",".join(map(str, config))] = {**dict(zip(names, config, strict=True)), "time": time}
    return {
        "device_name": space.device,
        "kernel_name": KERNEL,
        "problem_size": PROBLEM,
        "tune_params_keys": names,
        "tune_params": dict(zip(names, values, strict=True)),
        "objective": "time",
        "cache": cache,
    }


def _values(axis: Axis) -> list[int | float | str]:
    """An axis's choices as its users would write them: numbers where they have an order, else words."""
    if not axis.names:
        return list(axis.choices)
    return [float(name) for name in axis.names] if axis.ordered else list(axis.names)


@contextlib.contextmanager
def _mended() -> Iterator[None]:
    """bayes_opt of 1.5.0 knows a failed config by the cost 1e20, is told 1.8e308, and fits its model to that."""
    from kernel_tuner.strategies.bayes_opt import BayesianOptimization

    evaluate = BayesianOptimization.evaluate_objective_function

    def told(self: Any, config: Any) -> Any:
        cost = evaluate(self, config)
        return self.invalid_value if cost == sys.float_info.max else cost

    with patch.object(BayesianOptimization, "evaluate_objective_function", told):
        yield


@contextlib.contextmanager
def _as_on_a_card(evaluated: Sized) -> Iterator[None]:
    """bayes_opt of 1.5.0 fits its model anew only where the evaluations since took 5 times as long as predicting, or
    the sixth time: by the wall clock, so that in simulation a busy machine changed the search (25 equal runs on an idle
    one, 3 to 9 different ones of 25 beside two others). On a card evaluations do take longer: its clock counts them."""
    from kernel_tuner.strategies import bayes_opt

    def clock() -> int:
        return len(evaluated)

    with patch.object(bayes_opt, "time", SimpleNamespace(perf_counter=clock, perf_counter_ns=clock)):
        yield


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Equal seeds, equal searches; and nothing on the terminal, which Kernel Tuner fills."""
    from kernel_tuner.strategies import bayes_opt
    from scipy.stats import qmc

    sampler = partial(qmc.LatinHypercube, rng=seed)  # Kernel Tuner seeds neither of its two
    random.seed(seed)
    np.random.seed(seed)
    with (
        patch.object(bayes_opt, "LatinHypercube", sampler),
        patch.object(qmc, "LatinHypercube", sampler),
        open(os.devnull, "w", encoding="utf-8") as devnull,
        contextlib.redirect_stdout(devnull),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
        np.errstate(all="ignore"),
    ):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _watched(budget: int) -> Iterator[dict[tuple[Any, ...], None]]:
    """The configs that are evaluated, in order; ends a search, as its budget does, after too many visits."""
    from kernel_tuner.runners.simulation import SimulationRunner
    from kernel_tuner.util import StopCriterionReached

    run, left = SimulationRunner.run, VISITS_PER_EVALUATION * budget
    evaluated: dict[tuple[Any, ...], None] = {}

    def watched(self: Any, configs: Any, options: Any) -> Any:
        nonlocal left
        left -= len(configs)
        if left < 0:
            raise StopCriterionReached("too many visits")
        results = run(self, configs, options)
        for config, result in zip(configs, results, strict=True):
            if result is not None:  # the budget was not spent before it
                evaluated[tuple(config)] = None
        return results

    with patch.object(SimulationRunner, "run", watched):
        yield evaluated
