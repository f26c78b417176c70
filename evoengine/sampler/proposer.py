"""Proposals from any sampler, out of an Optuna study in memory that mirrors the one in the database.

Asking in memory costs 2 ms a trial, asking through a database 65 to 450 (a transaction a parameter), and what a stock
sampler proposes in vain (infeasible configs, repeats) never reaches the database.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from threadpoolctl import threadpool_limits

from evoengine.errors import UserError
from evoengine.sampler import INFORMED, Proposal, Seen, check_sampler, starts
from evoengine.sampler.encoding import distributions, to_params, to_point
from evoengine.sampler.evolution import EXPECTED_GAIN, OPERATOR, PARENTS, EvolutionSampler
from evoengine.sampler.source import Source
from evoengine.sampler.stock import POPULATION, RESUMED_ATTRS, stock_sampler
from evoengine.sampler.trials import GENERATION
from evoengine.sampler.valid import ValidSet
from evoengine.space import FeasibleSet, Point, SearchSpace

BLAS_THREADS = 1
"""Of the surrogate's linear algebra. Builds keep every core busy, and threads that wait for each other at each step of
a factorisation of 400 rows then take 16 s for what one does in 0.6 s (2 busy cores). Equal sums everywhere, too."""
TRIES = 3
"""Proposals of a stock sampler that may be in vain before the last one is moved to the nearest free config."""


class Proposer:
    """Distinct, feasible, untried configs by any sampler of `SAMPLERS`.

    Everything but the stock samplers' own memory of vain proposals is rebuilt by `observe`, so a search goes on after a
    resume. `free` counts what cost nothing: `infeasible` and `repeat` proposals, and those `snapped` to a free config.
    `sources` are other studies' trials to start from; only `evolution` knows how.
    `random` draws uniformly from the feasible set, which Optuna's random sampler reaches only by rejection.

    Raises:
        UserError: no such sampler, or one that cannot use sources; nothing is feasible, the space is too large, or
            cmaes is not installed.
    """

    def __init__(
        self,
        space: SearchSpace,
        feasible: FeasibleSet,
        *,
        sampler: str,
        seed: int,
        sources: Sequence[Source] = (),
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # one line on stderr for each study and trial otherwise
        self.name = check_sampler(sampler)
        if sources and sampler not in INFORMED:
            raise UserError(f"sampler {sampler} cannot use a warm start: only {', '.join(INFORMED)} can")
        self.free: Counter[str] = Counter()
        self._axes = space.axes
        self._seed = seed
        self._ordinal = sampler == "cmaes"  # CMA-ES leaves categorical axes to random sampling
        self._distributions = distributions(space.axes, ordinal=self._ordinal)
        with threadpool_limits(BLAS_THREADS, "blas"):
            self._evolution = (
                EvolutionSampler(space, feasible, seed=seed, sources=sources) if sampler == "evolution" else None
            )
        self._valid = self._evolution.valid if self._evolution else ValidSet(space, feasible)
        self._starts: list[tuple[int, str]] = []
        if sampler in ("tpe", "nsga2"):
            self._starts = starts.design(space, self._valid, POPULATION, seed)
        elif sampler == "cmaes":  # spread starts would tell it nothing: it learns from its own populations
            self._starts = starts.known(space, self._valid)
        self._seen: dict[int, Seen] = {}
        self._asked = 0
        self._clear()
        if sampler == "cmaes":
            stock_sampler(sampler, seed, [])  # now, and not after the starts, is the time to miss a package

    def prepare(self) -> None:
        """Do beforehand what proposals need once verdicts are known: in an idle moment, or the first of them does."""
        if self._evolution is not None:
            with threadpool_limits(BLAS_THREADS, "blas"):
                self._evolution.prepare()

    def observe(self, seen: Iterable[Seen]) -> None:
        """Take in new or changed trials; what is known already changes nothing."""
        fresh = sorted((one for one in seen if self._seen.get(one.number) != one), key=lambda one: one.number)
        finished = [one for one in fresh if one.number in self._seen and self._seen[one.number].state == "done"]
        self._seen.update({one.number: one for one in fresh})
        if finished:  # Optuna does not let a finished trial change
            known = {one.point for one in self._seen.values()}
            pending = [point for point in self._trial_at if point not in known]
            self._clear()
            for number in sorted(self._seen):
                self._mirror_trial(self._seen[number])
            for point in pending:
                self._add(point, {})
        else:
            for one in fresh:
                self._mirror_trial(one)

    def ask(self, seen: Iterable[Seen], n: int) -> None:
        """`Proposing`: made when the answer is asked for."""
        self.observe(seen)
        self._asked = n

    def answer(self, *, wait: bool) -> list[Proposal]:
        """`Proposing`: made now, whether it is waited for or not."""
        return self.propose(self._asked)

    def close(self) -> None:
        """`Proposing`: nothing was begun."""

    def propose(self, n: int) -> list[Proposal]:
        """`n` proposals, fewer when the feasible set holds no more untried configs."""
        with threadpool_limits(BLAS_THREADS, "blas"):
            return [self._next() for _ in range(min(n, len(self._valid) - len(self._taken)))]

    def _clear(self) -> None:
        self._study = optuna.create_study(direction="minimize", sampler=self._evolution)
        self._trial_at: dict[Point, int] = {}
        self._number_of: dict[int, int] = {}
        self._taken: set[int] = set()

    def _mirror_trial(self, one: Seen) -> None:
        if one.point in self._trial_at:
            if one.state == "done":
                self._tell(self._trial_at[one.point], one.value)
        else:
            attrs = {OPERATOR: one.operator, GENERATION: one.generation, **one.system_attrs}
            self._add(one.point, attrs, _finished(one.value) if one.state == "done" else TrialState.RUNNING, one.value)
        self._number_of[self._trial_at[one.point]] = one.number

    def _tell(self, trial: int, value: float | None) -> None:
        self._study.tell(trial, value, state=_finished(value))

    def _next(self) -> Proposal:
        if self._evolution is not None:
            trial = self._study.ask(self._distributions)
            point = self._accept(trial.number, to_point(self._axes, trial.params))
            attrs = self._trials()[trial.number].system_attrs
            parents = tuple(self._number_of[parent] for parent in attrs[PARENTS])
            gain = attrs[EXPECTED_GAIN]
            return Proposal(point, attrs[OPERATOR], attrs[GENERATION], parents, expected_gain=gain)
        if self.name == "random":
            rng = np.random.default_rng([self._seed, len(self._trial_at)])
            return Proposal(self._add(self._valid.point(self._valid.draw(self._taken, rng)), {}), "random")
        for row, operator in self._starts:
            if row not in self._taken:
                generation = dict.fromkeys(RESUMED_ATTRS, 0) if self.name == "nsga2" else {}
                return Proposal(self._add(self._valid.point(row), generation), operator, system_attrs=generation)
        return self._ask_stock()

    def _ask_stock(self) -> Proposal:
        operator = self.name
        for _ in range(TRIES):
            self._study.sampler = stock_sampler(self.name, self._seed, self._trials())
            with np.errstate(over="ignore"):  # the step size of CMA-ES overflows to its upper limit on snapped configs
                trial = self._study.ask(self._distributions)
            point = to_point(self._axes, trial.params, ordinal=self._ordinal)
            if self._valid.row(point) is None:
                self.free["infeasible"] += 1
                self._tell(trial.number, None)
            elif point in self._trial_at:
                self.free["repeat"] += 1
                self._tell(trial.number, self._trials()[self._trial_at[point]].value)
            else:
                attrs = self._trials()[trial.number].system_attrs
                self._accept(trial.number, point)
                break
        else:
            self.free["snapped"] += 1
            operator += "+snap"
            row = self._valid.nearest(point, self._taken)
            assert row is not None, "propose() asks only while a config is free"
            attrs = self._trials()[trial.number].system_attrs
            point = self._add(self._valid.point(row), attrs)
        kept = {key: attrs[key] for key in RESUMED_ATTRS if key in attrs}
        return Proposal(point, operator, next(iter(kept.values()), 0), system_attrs=kept)

    def _trials(self) -> list[optuna.trial.FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _add(
        self,
        point: Point,
        attrs: Mapping[str, Any],
        state: TrialState = TrialState.RUNNING,
        value: float | None = None,
    ) -> Point:
        """A trial of the mirror that no sampler was asked for."""
        self._study.add_trial(
            FrozenTrial(
                number=-1,
                trial_id=-1,
                state=state,
                value=value,
                datetime_start=datetime.now(),
                datetime_complete=datetime.now() if state.is_finished() else None,
                params=to_params(self._axes, point, ordinal=self._ordinal),
                distributions=self._distributions,
                user_attrs={},
                system_attrs=dict(attrs),
                intermediate_values={},
            )
        )
        return self._accept(len(self._trials()) - 1, point)

    def _accept(self, trial: int, point: Point) -> Point:
        self._trial_at[point] = trial
        row = self._valid.row(point)
        if row is not None:
            self._taken.add(row)
        return point


def _finished(value: float | None) -> TrialState:
    """A rejection is PRUNED: samplers ignore FAIL and would propose the same region again."""
    return TrialState.PRUNED if value is None else TrialState.COMPLETE
