"""Optuna's own samplers by name, seeded afresh for every proposal so that none of them carries a random state."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence

import numpy as np
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, NSGAIISampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from evoengine.errors import UserError

RESUMED_ATTRS = ("NSGAIISampler:generation",)
"""System attributes that a sampler must find again after a resume. CMA-ES would keep a pickle: that stays in memory."""

POPULATION = 20
"""NSGA-II's default of 50 leaves four generations to a budget of 200; 20 leaves ten."""

WARM_START = 10
"""Completed trials that CMA-ES needs to start from: it takes the best tenth of them."""


def stock_sampler(name: str, seed: int, trials: Sequence[FrozenTrial]) -> BaseSampler:
    """The sampler `name` for the proposal that follows `trials`.

    CMA-ES starts its first population at the best of the trials that it did not propose itself (after a resume: all).

    Raises:
        UserError: CMA-ES needs the package cmaes.
    """
    fresh = int(np.random.SeedSequence([seed, len(trials)]).generate_state(1)[0])
    if name == "tpe":
        return TPESampler(seed=fresh, multivariate=True, constant_liar=True)
    if name == "nsga2":
        return NSGAIISampler(seed=fresh, population_size=POPULATION)
    assert name == "cmaes", name
    if importlib.util.find_spec("cmaes") is None:
        raise UserError("sampler cmaes needs the package cmaes: pip install cmaes")
    foreign = [t for t in trials if t.state == TrialState.COMPLETE and "cmawm:generation" not in t.system_attrs]
    # "with margin" (Hamano et al. 2022) keeps the variance of an integer axis from collapsing onto one choice, where
    # plain CMA-ES ends in a singular covariance.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return CmaEsSampler(
            seed=fresh,
            with_margin=True,
            source_trials=foreign if len(foreign) >= WARM_START else None,
            warn_independent_sampling=False,
        )
