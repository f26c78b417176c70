"""Optuna's own samplers by name, seeded afresh for every proposal so that none of them carries a random state."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
from optuna.samplers import BaseSampler, CmaEsSampler, NSGAIISampler, TPESampler

from evoengine.errors import UserError

RESUMED_ATTRS = ("NSGAIISampler:generation",)
"""System attributes that a sampler must find again after a resume. CMA-ES keeps a pickle there: it stays in memory, and a
resumed search starts CMA-ES anew from the best config."""

POPULATION = 20
"""NSGA-II's default of 50 leaves four generations to a budget of 200; 20 leaves ten."""


def stock_sampler(name: str, seed: int, trials: int, start: dict[str, Any]) -> BaseSampler:
    """The sampler `name` for the proposal that follows `trials` others; CMA-ES starts its first population at `start`.

    Raises:
        UserError: CMA-ES needs the package cmaes.
    """
    fresh = int(np.random.SeedSequence([seed, trials]).generate_state(1)[0])
    if name == "tpe":
        return TPESampler(seed=fresh, multivariate=True, constant_liar=True)
    if name == "nsga2":
        return NSGAIISampler(seed=fresh, population_size=POPULATION)
    assert name == "cmaes", name
    if importlib.util.find_spec("cmaes") is None:
        raise UserError("sampler cmaes needs the package cmaes: pip install cmaes")
    return CmaEsSampler(seed=fresh, x0=start, warn_independent_sampling=False)
