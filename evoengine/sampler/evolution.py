"""The default sampler: evolution that knows the feasible set and asks a surrogate which child to try."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from evoengine.sampler import starts
from evoengine.sampler.encoding import distributions, to_params
from evoengine.sampler.features import Features
from evoengine.sampler.model import Model
from evoengine.sampler.operators import Child, Member, offspring
from evoengine.sampler.prior import Prior
from evoengine.sampler.source import Source
from evoengine.sampler.surrogate import Floats
from evoengine.sampler.transfer import Transfer
from evoengine.sampler.trials import GENERATION, Trials
from evoengine.sampler.valid import Rows, ValidSet
from evoengine.space import FeasibleSet, SearchSpace

OPERATOR, PARENTS = "evoengine:operator", "evoengine:parents"
EXPECTED_GAIN = "evoengine:expected_gain"
"""System attributes of a trial, so that a study says where each of its configs came from and what it promised."""

START_SIZE = 8
MIN_FINISHED = 4
"""Values needed before a model means anything; until then, starts are spread further."""


class EvolutionSampler(BaseSampler):
    """Starts, then the config of which a Gaussian process expects most: of all feasible ones where they can be listed
    at every step, else of a random sample and of the elites' offspring. Never infeasible, never a repeat. What
    `sources` measured elsewhere gives the first starts and the mean of the process, as far as it proves right.

    Nothing is carried from trial to trial: random generators are seeded with (seed, trials before) and all else is read
    from the study, so a study that is reopened goes on as if it had never been closed.

    Raises:
        UserError: nothing is feasible, or the space is too large (`ValidSet`).
    """

    def __init__(self, space: SearchSpace, feasible: FeasibleSet, *, seed: int, sources: Sequence[Source] = ()) -> None:
        self._space = space
        self._seed = seed
        self._distributions = distributions(space.axes)
        self.valid = ValidSet(space, feasible)
        self._read: tuple[str, Trials] = ("", Trials(space.axes, self.valid))
        self._sources = sources

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._distributions

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        raise ValueError(f"{param_name} with {param_distribution} is not an axis of search space {self._space.name}")

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Parameters of the next config.

        Raises:
            ValueError: every feasible config is already a trial of the study.
        """
        known = self._known(study.study_name, study.get_trials(deepcopy=False)[: trial.number])
        taken = known.taken
        if len(taken) >= len(self.valid):
            raise ValueError(f"all {len(self.valid)} feasible configs have been proposed")
        rng = np.random.default_rng([self._seed, trial.number])
        if self._can_model(known.members, taken):
            self._model.learn(known.history())
            row, child, promise = self._most_promising(known.members, taken, rng)
            gain = None if promise is None else self._model.saving(promise)
        else:
            row, child = self._start(taken, rng)
            gain = None
        attrs: dict[str, Any] = {
            OPERATOR: child.operator,
            GENERATION: 1 + max(parent.generation for parent in child.parents) if child.parents else 0,
            PARENTS: [parent.number for parent in child.parents],
            EXPECTED_GAIN: gain,
        }
        for key, value in attrs.items():
            study._storage.set_trial_system_attr(trial._trial_id, key, value)
        return to_params(self._space.axes, self.valid.point(row))

    def _known(self, study: str, before: list[FrozenTrial]) -> Trials:
        """What is known of the trials before."""
        if study != self._read[0]:
            self._read = study, Trials(self._space.axes, self.valid)
        self._read[1].read(before)
        return self._read[1]

    def prepare(self) -> None:
        """Make what only a model needs, which the starts then do not wait for: 0.5 s with a source."""
        _ = self._model

    @cached_property
    def _model(self) -> Model:
        features = Features(self._space.axes)
        prior = Prior([Transfer(source, features) for source in self._sources], self.valid, seed=self._seed)
        told = self.valid.rows([point for source in self._sources for point in source.points])
        return Model(features, self.valid, prior, seed=self._seed, always=told[told >= 0])

    @cached_property
    def _starts(self) -> list[tuple[int, str]]:
        return starts.design(self._space, self.valid, START_SIZE, self._seed, self._sources)

    def _can_model(self, members: list[Member], taken: set[int]) -> bool:
        return len(members) >= MIN_FINISHED and all(row in taken for row, _ in self._starts)

    def _start(self, taken: set[int], rng: np.random.Generator) -> tuple[int, Child]:
        for row, operator in self._starts:
            if row not in taken:
                return row, Child(operator, ())
        far = next(starts.spread(self.valid, taken, rng), None)
        row = self.valid.draw(taken, rng) if far is None else far  # None: all that was sampled is taken
        return row, Child("spread", ())

    def _most_promising(
        self, members: list[Member], taken: set[int], rng: np.random.Generator
    ) -> tuple[int, Child, float | None]:
        """The free config with the largest expected improvement, by the operator that leads to it, and the logarithm of
        that improvement; None where all of the pool is taken and the config is drawn."""
        children = offspring(members, self.valid, rng)
        pool, promise = self._free_pool(taken)
        at = int(promise.argmax())
        row, most = int(pool[at]), float(promise[at])
        if len(pool) < len(self.valid):
            free = [child for child in children if child not in taken]
            if free and (ours := self._model.over(np.array(free))).max() > most:
                row, most = free[int(ours.argmax())], float(ours.max())
        if most == -np.inf:
            return self.valid.draw(taken, rng), Child("model", ()), None
        return row, children.get(row, Child("model", ())), most

    def _free_pool(self, taken: set[int]) -> tuple[Rows, Floats]:
        """Rows of the model's pool and the logarithm of what is expected of each, -inf where taken."""
        pool, promise = self._model.over_pool()
        return pool, np.where(np.isin(pool, np.fromiter(taken, dtype=np.intp, count=len(taken))), -np.inf, promise)
