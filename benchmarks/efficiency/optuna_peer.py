"""Optuna's samplers on a recorded space, with the help that their users would have to write themselves.

Most of a tuning space is infeasible (50 to 78 % of the product of five public spaces, over 99 % of our own), and none
of these samplers knows which part. So each gets 20 feasible starts, the default config among them, and an infeasible
proposal is moved to the nearest untried feasible config instead of being lost. Repeats are free. Told is the logarithm
of the time, which changes nothing for those that go by rank and keeps a Gaussian process from being ruled by configs
100 times slower than the optimum (one seed on one space: from 76 to 100 % of it). A failed config is told as the
slowest so far.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, NSGAIISampler, TPESampler
from optuna.trial import TrialState, create_trial

from evoengine.recorded.space import RecordedSpace
from evoengine.sampler import starts
from evoengine.sampler.stock import RESUMED_ATTRS
from evoengine.sampler.valid import ValidSet

STARTS = 20
Best = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class OptunaPeer:
    """A sampler made from a seed and the best start; whether every axis is told as categories (else as the index of its
    choice); how many free repeats in a row it may propose before it is moved on to the nearest untried config.
    """

    sampler: Callable[[int, Best], BaseSampler]
    categorical: bool
    repeats: int = 20


PEERS = {
    "tpe": OptunaPeer(lambda seed, _: TPESampler(seed=seed), categorical=True),
    # 50, the default, leaves four generations to a budget of 200.
    "nsga2": OptunaPeer(lambda seed, _: NSGAIISampler(seed=seed, population_size=STARTS), categorical=True),
    # Margins are made for integers: without them, 82 instead of 90 % of the optimum on one of two spaces tried.
    "cmaes": OptunaPeer(
        lambda seed, best: CmaEsSampler(seed=seed, x0=dict(best), with_margin=True, warn_independent_sampling=False),
        categorical=False,
    ),
    "gp": OptunaPeer(
        lambda seed, _: GPSampler(seed=seed, deterministic_objective=True, warn_independent_sampling=False),
        categorical=False,
        repeats=0,  # the same value again is no news to a model that takes values for exact
    ),
}


def search(space: RecordedSpace, peer: OptunaPeer, seed: int, budget: int) -> tuple[int, ...]:
    """The rows of `space` that `peer` evaluated, in order."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    valid = ValidSet(space.search_space, space.feasible)
    budget = min(budget, len(valid))
    logs = np.log(space.costs)
    distributions: dict[str, BaseDistribution] = {
        axis.name: CategoricalDistribution(range(len(axis.choices)))
        if peer.categorical
        else IntDistribution(0, len(axis.choices) - 1)
        for axis in space.axes
    }
    study = optuna.create_study()
    rows: list[int] = []

    def told(row: int) -> float | None:
        """What a sampler hears of an evaluated config."""
        seen = logs[rows]
        return None if np.isnan(seen).all() else float(np.nanmax(seen) if np.isnan(logs[row]) else logs[row])

    def add(row: int, notes: Mapping[str, Any]) -> None:
        study.add_trial(
            create_trial(
                state=TrialState.PRUNED if told(row) is None else TrialState.COMPLETE,
                value=told(row),
                params=dict(zip(distributions, valid.point(row), strict=True)),
                distributions=distributions,
                system_attrs=dict(notes),
            )
        )

    drawn = np.random.default_rng(seed).permutation(len(valid))
    default = [row for row, _ in starts.known(space.search_space, valid)]
    for start in list(dict.fromkeys([*default, *map(int, drawn)]))[: min(STARTS, budget)]:
        rows.append(start)
        add(start, dict.fromkeys(RESUMED_ATTRS, 0))
    best = min(rows, key=lambda row: np.nan_to_num(logs[row], nan=np.inf))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental (GP), to be deprecated (x0): the version is pinned
        study.sampler = peer.sampler(seed, dict(zip(distributions, valid.point(best), strict=True)))
    taken, vain = set(rows), 0
    while len(rows) < budget:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # categories, margins and failed fits: nothing a reader could act on
            trial = study.ask(distributions)
        point = tuple(int(trial.params[axis.name]) for axis in space.axes)
        row = valid.row(point)
        vain = vain + 1 if row in taken else 0
        moved = row is None or vain > peer.repeats
        if moved:
            row = valid.nearest(point, taken)
        assert row is not None, "fewer than all configs are taken"
        if row not in taken:
            rows.append(row)
            taken.add(row)
            vain = 0
        if moved:
            # With the notes that the sampler left on its own proposal, so that generations go on.
            notes = study.get_trials(deepcopy=False)[trial.number].system_attrs
            study.tell(trial, state=TrialState.FAIL)  # which no sampler looks at
            add(row, notes)
        else:
            value = told(row)
            study.tell(trial, value, state=TrialState.PRUNED if value is None else TrialState.COMPLETE)
    return tuple(rows)
