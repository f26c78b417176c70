"""What the search believes about configs that were not tried, rebuilt from the trials that were."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evoengine.sampler.acquisition import log_improvement
from evoengine.sampler.features import Features
from evoengine.sampler.prior import Prior, trend
from evoengine.sampler.surrogate import Floats, Posterior, fit
from evoengine.sampler.valid import Rows, ValidSet

EXACT_POOL = 12_000
"""Up to so many feasible configs, each of them is judged at every step (3 ms at 200 trials on one core) ..."""
SAMPLED_POOL = 8_000
"""... of more, a random sample that changes with every fit, and the offspring that the sampler brings along."""
MEMORY = 400
"""Trials the process is fitted to at most: half of them the fastest, the others evenly from the rest. The cost of a fit
grows with the third power."""
FITTED = 200
"""Of these the trials that hyperparameters are fitted to, evenly: a fit to 400 takes 0.24 s."""
FIT_GROWTH, FIT_LATEST = 1.15, 64
"""Hyperparameters are fitted afresh after 15 % more trials, or 64."""


@dataclass(frozen=True, slots=True)
class History:
    """Rows of the trials that are done, their values (microseconds, NaN when rejected), and rows of those that run."""

    rows: Rows
    values: Floats
    running: Rows


@dataclass(frozen=True, slots=True)
class Scale:
    """Standardised values of a history, and the way back: `mean` and `spread` before the last step, the history's
    `median` log time, and its `reach` from there to the best."""

    values: Floats
    mean: float
    spread: float
    median: float
    reach: float

    @property
    def unit(self) -> float:
        """What one unit of the values is worth in log time among the faster half."""
        return self.spread * self.reach

    def microseconds(self, values: Floats) -> Floats:
        """Standardised values as times; nothing is slower than the slowest of the history."""
        z = np.minimum(values, self.values.max()) * self.spread + self.mean
        return np.asarray(np.exp(np.where(z > 0.0, np.expm1(np.maximum(z, 0.0)), z) * self.reach + self.median))


def standardise(values: Floats) -> Scale:
    """Log times in units of the distance from median to best, the slower half compressed, then mean 0 and variance 1.

    The slowest configs of a space are up to 100 times slower than the best; uncompressed they would set the scale, and
    the process would have nothing to say about the fast ones. A rejection is told as the slowest that ran.
    """
    ran = np.isfinite(values)
    logs = np.log(values[ran])
    median = float(np.median(logs))
    reach = max(median - float(logs.min()), 1e-6)
    z = (logs - median) / reach
    z = np.where(z > 0.0, np.log1p(np.maximum(z, 0.0)), z)
    told = np.full(len(values), z.max())
    told[ran] = z
    spread = max(float(told.std()), 1e-9)
    mean = float(told.mean())
    return Scale((told - mean) / spread, mean, spread, median, reach)


class Model:
    """Gaussian process over the feasible set, around what `prior` knows of it.

    What it says follows from the history alone. Configs are taken in one order (finished before running, each by trial
    number), so that rounding is the same whether they came one by one or all at once. The rows `always` are in the pool
    whatever the sample.
    """

    def __init__(
        self,
        features: Features,
        valid: ValidSet,
        prior: Prior | None = None,
        *,
        seed: int,
        always: Rows | None = None,
    ) -> None:
        self._features = features
        self._valid = valid
        self._prior = prior or Prior([], valid, seed=seed)
        self._seed = seed
        self._always = np.empty(0, dtype=np.intp) if always is None else always
        self._fitted: tuple[int, bytes, bytes] = (0, b"", b"")
        self._order: list[int] = []
        self._posterior: Posterior

    def learn(self, history: History) -> None:
        """Take in `history`; at least two of its values are finite."""
        first = _last_fit(len(history.rows))
        if np.isfinite(history.values[:first]).sum() < 2:  # nearly all of the first trials were rejected
            first = len(history.rows)
        fitted = (first, history.rows[:first].tobytes(), history.values[:first].tobytes())
        if fitted != self._fitted:
            self._fit(history, first)
            self._fitted, self._order = fitted, []
        later = [*history.rows[first:].tolist(), *history.running.tolist()]
        same = next(
            (at for at, (old, new) in enumerate(zip(self._order, later, strict=False)) if old != new), len(self._order)
        )
        same = min(same, len(later))
        self._posterior.forget(len(self._kept) + same)
        for row in later[same:]:
            self._posterior.append(self._at(np.array([row]))[0])
        self._order = later
        told = np.r_[self._kept, first : len(history.rows)]
        self._scale = standardise(history.values[told])
        opinions = self._prior.of_trials(history.rows[told])
        self._trend = trend(opinions, self._scale.values)
        self._weights = self._posterior.weights(self._scale.values - self._trend.of(opinions))
        self._best = float(self._scale.values[np.isfinite(history.values[told])].min())

    def over_pool(self) -> tuple[Rows, Floats]:
        """Rows of the pool and the logarithm of the improvement expected of each."""
        return self.pool, log_improvement(*self._believed(), self._best)

    def over(self, rows: Rows) -> Floats:
        """The logarithm of the improvement expected of `rows`."""
        mean, variance = self._posterior.at(self._at(rows), self._weights)
        return log_improvement(mean + self._trend.of(self._prior.of(rows)), variance, self._best)

    def imagine(self, rng: np.random.Generator) -> Floats:
        """A time in microseconds for every config of the pool, drawn from what is believed of each by itself."""
        mean, variance = self._believed()
        return self._scale.microseconds(mean + np.sqrt(np.maximum(variance, 0.0)) * rng.standard_normal(len(mean)))

    def saving(self, promise: float) -> float:
        """A logarithm of an expected improvement as a share of the best time.

        Exact to first order: among the faster half, values are linear in log time.
        """
        return float(-np.expm1(-np.exp(promise) * self._scale.unit))

    def _believed(self) -> tuple[Floats, Floats]:
        """Mean and variance over the pool, standardised."""
        mean, variance = self._posterior.on_pool(self._weights)
        return mean + self._trend.of(self._pool_opinions), variance

    def _fit(self, history: History, first: int) -> None:
        self._kept = _memorable(history.values[:first])
        rows = history.rows[self._kept]
        x, y = self._at(rows), standardise(history.values[self._kept]).values
        opinions = self._prior.of_trials(rows)
        some = np.linspace(0, len(rows) - 1, min(len(rows), FITTED)).astype(np.intp)
        hyper = fit(x[some], (y - trend(opinions, y).of(opinions))[some])
        count = len(self._valid)
        if count <= EXACT_POOL:
            self.pool = np.arange(count)
        else:
            sample = np.random.default_rng([self._seed, first]).choice(count, SAMPLED_POOL, replace=False)
            self.pool = np.union1d(sample, self._always)
        self._pool_opinions = self._prior.of(self.pool)
        self._posterior = Posterior(x, hyper, self._at(self.pool))

    def _at(self, rows: Rows) -> Floats:
        return self._features.of(self._valid.at(rows))


def _last_fit(trials: int) -> int:
    """The number of trials at the last fit: a fixed ladder, so that a resumed search stands on the same rung."""
    rung = 2
    while (after := min(max(rung + 1, int(rung * FIT_GROWTH)), rung + FIT_LATEST)) <= trials:
        rung = after
    return min(rung, trials)


def _memorable(values: Floats) -> Rows:
    """Positions of the trials to learn from, in order."""
    if len(values) <= MEMORY:
        return np.arange(len(values))
    ranked = np.argsort(np.where(np.isfinite(values), values, np.inf), kind="stable")
    rest = np.sort(ranked[MEMORY // 2 :])
    even = rest[np.linspace(0, len(rest) - 1, MEMORY - MEMORY // 2).astype(np.intp)]
    return np.sort(np.r_[ranked[: MEMORY // 2], even])
