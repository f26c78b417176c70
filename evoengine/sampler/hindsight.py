"""What a finished search knows beyond its best config: which knobs mattered, and how fast untried configs may be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import optuna
from threadpoolctl import threadpool_limits

from evoengine.sampler import Seen
from evoengine.sampler.encoding import distributions, to_params
from evoengine.sampler.features import Features
from evoengine.sampler.model import History, Model
from evoengine.sampler.proposer import BLAS_THREADS
from evoengine.sampler.surrogate import Floats
from evoengine.sampler.valid import ValidSet
from evoengine.space import Axis, FeasibleSet, SearchSpace

TOP = 0.1
"""Importance is that of getting into the fastest tenth ..."""
LEAST_TOP = 5
"""... or among the fastest five: fewer make it unstable (Optuna's advice on the evaluator)."""


def top_share(trials: int) -> float:
    """The share of the trials that counts as fast."""
    return max(TOP, LEAST_TOP / trials)


def importance(axes: Sequence[Axis], trials: Sequence[Seen]) -> dict[str, float]:
    """The weight of each axis with more than one choice, the largest first, sum 1, over trials that have a value.

    PED-ANOVA (Watanabe et al. 2023): how differently a knob is distributed among the fastest and among all trials. Of
    Optuna's evaluators the one that does without scikit-learn.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize")
    known = distributions(axes)
    for one in trials:
        trial = optuna.trial.create_trial(value=one.value, params=to_params(axes, one.point), distributions=known)
        trial.distributions = known  # create_trial has copied them
        study.add_trial(trial)
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=top_share(len(trials)))
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def imagined_times(
    space: SearchSpace, feasible: FeasibleSet, trials: Sequence[Seen], *, seed: int, count: int
) -> list[Floats]:
    """`count` times over the feasible set (a sample of it where it is large), each what the surrogate, fitted to all
    finished trials, believes possible. A rejected config counts as the slowest that ran. Microseconds."""
    valid = ValidSet(space, feasible)
    rows = valid.rows([one.point for one in trials])
    values = np.array([np.nan if one.value is None else one.value for one in trials])
    model = Model(Features(space.axes), valid, seed=seed)
    rng = np.random.default_rng([seed])
    with threadpool_limits(BLAS_THREADS, "blas"):
        model.learn(History(rows[rows >= 0], values[rows >= 0], np.array([], dtype=np.intp)))
        return [model.imagine(rng) for _ in range(count)]
