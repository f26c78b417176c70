"""The default sampler: elitist evolution that knows the feasible set."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from evoengine.sampler import starts
from evoengine.sampler.encoding import distributions, to_params, to_point
from evoengine.sampler.operators import Member, Target, best, cross, mutate, niches, pick
from evoengine.sampler.valid import ValidSet
from evoengine.space import FeasibleSet, SearchSpace

OPERATOR, GENERATION, PARENTS = "evoengine:operator", "evoengine:generation", "evoengine:parents"
"""System attributes of a trial, so that a study says where each of its configs came from."""

START_SIZE = 16
ELITES = 20
MIN_FINISHED = 4
"""Values needed before anything is bred; until then, starts are spread further."""
DRAWS = 12
"""Children tried for one that is feasible and new as it is, before one is moved to the nearest that is."""


class EvolutionSampler(BaseSampler):
    """Elites, crossover, one-knob mutation and niches over the feasible set; never infeasible, never a repeat.

    Nothing is carried from trial to trial: the random generator of a trial is seeded with (seed, trials before it) and
    the population is read from the study, so a study that is reopened goes on as if it had never been closed.

    Raises:
        UserError: nothing is feasible, or the space is too large (`ValidSet`).
    """

    def __init__(self, space: SearchSpace, feasible: FeasibleSet, *, seed: int) -> None:
        self._space = space
        self._seed = seed
        self._distributions = distributions(space.axes)
        self._rows: dict[tuple[str, int], int | None] = {}
        self.valid = ValidSet(space, feasible)

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
        others = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        taken = {row for other in others if (row := self._row(study, other)) is not None}
        if len(taken) >= len(self.valid):
            raise ValueError(f"all {len(self.valid)} feasible configs have been proposed")
        members = [self._member(other) for other in others if other.state == TrialState.COMPLETE]
        rng = np.random.default_rng([self._seed, len(others)])
        row, target = self._breed(members, taken, rng) if self._grown(members, taken) else self._start(taken, rng)
        attrs: dict[str, Any] = {
            OPERATOR: target.operator,
            GENERATION: 1 + max(parent.generation for parent in target.parents) if target.parents else 0,
            PARENTS: [parent.number for parent in target.parents],
        }
        for key, value in attrs.items():
            study._storage.set_trial_system_attr(trial._trial_id, key, value)
        return to_params(self._space.axes, self.valid.point(row))

    @cached_property
    def _starts(self) -> list[tuple[int, str]]:
        return starts.design(self._space, self.valid, START_SIZE, self._seed)

    def _grown(self, members: list[Member], taken: set[int]) -> bool:
        """Whether the starts are used up and enough of them finished to breed from."""
        return len(members) >= MIN_FINISHED and all(row in taken for row, _ in self._starts)

    def _start(self, taken: set[int], rng: np.random.Generator) -> tuple[int, Target]:
        for row, operator in self._starts:
            if row not in taken:
                return row, Target(self.valid.point(row), operator, ())
        far = next(starts.spread(self.valid, taken, rng), None)
        row = self.valid.draw(taken, rng) if far is None else far  # None: all that was sampled is taken
        return row, Target(self.valid.point(row), "spread", ())

    def _breed(self, members: list[Member], taken: set[int], rng: np.random.Generator) -> tuple[int, Target]:
        """A child that is feasible and new: the first such of a few draws, else the last one moved there."""
        elites = best(members, ELITES)
        others = niches(members, self._space.axes)
        for _ in range(DRAWS):
            target = self._target(elites, others, rng)
            row = self.valid.row(target.point)
            if row is not None and row not in taken:
                return row, target
        row = self.valid.nearest(target.point, taken, target.keep)
        if row is None:  # no free config has the choice that the mutation was about
            row = self.valid.nearest(target.point, taken)
        assert row is not None, "the caller checked that a config is free"
        return row, target

    def _target(self, elites: list[Member], others: list[Member], rng: np.random.Generator) -> Target:
        axes = self._space.axes
        draw = rng.random()
        if draw < 0.5:
            first, second = pick(elites, rng), pick(elites, rng)
            if first is not second:
                return cross(first, second, axes, rng)
        elif draw < 0.65 and others:
            return mutate(others[int(rng.integers(len(others)))], axes, "niche", rng)
        return mutate(pick(elites, rng), axes, "mutation", rng)

    def _row(self, study: Study, trial: FrozenTrial) -> int | None:
        """The trial's row, None outside the feasible set; a trial keeps its parameters, so it is looked up once."""
        key = (study.study_name, trial.number)
        if key not in self._rows:
            self._rows[key] = self.valid.row(to_point(self._space.axes, trial.params))
        return self._rows[key]

    def _member(self, trial: FrozenTrial) -> Member:
        assert trial.value is not None, "a COMPLETE trial has a value"
        point = to_point(self._space.axes, trial.params)
        return Member(trial.number, point, trial.system_attrs.get(GENERATION, 0), trial.value)
