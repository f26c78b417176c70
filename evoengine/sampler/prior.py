"""What is known of configs before any is tried: the surrogate's mean, as far as it proves right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evoengine.sampler.surrogate import Floats
from evoengine.sampler.valid import Rows, ValidSet

Opinion = Callable[[NDArray[np.int16]], Floats]
"""From points (configs, axes) to how slow each is expected to be, in any unit and from any zero."""

LISTED = 12_000
"""Up to so many feasible configs each is asked about once; of more, those that matter are asked about when they do."""
SCALE_SAMPLE = 500
"""Configs from which middle and width of an opinion are taken."""
DOUBT = 3.0
"""Trials that have shown an opinion to be worth nothing, before the first has shown anything."""


class Prior:
    """Opinions about every feasible config, each in standard deviations from its median."""

    def __init__(self, opinions: Sequence[Opinion], valid: ValidSet, *, seed: int) -> None:
        self._opinions = opinions
        self._valid = valid
        rng = np.random.default_rng([seed, len(valid)])
        sample = self._ask(np.sort(rng.choice(len(valid), min(SCALE_SAMPLE, len(valid)), replace=False)))
        self._middle = np.median(sample, axis=0)
        self._width = np.maximum(sample.std(axis=0), 1e-6)
        self._listed = self._scaled(np.arange(len(valid))) if len(valid) <= LISTED else None
        self._heard: dict[int, Floats] = {}

    def of(self, rows: Rows) -> Floats:
        """One column per opinion: (rows, opinions)."""
        return self._scaled(rows) if self._listed is None else self._listed[rows]

    def of_trials(self, rows: Rows) -> Floats:
        """The same for rows that come again with every trial: each is asked about once, and by itself, so that rounding
        is the same in whatever company it comes."""
        if self._listed is not None:
            return self._listed[rows]
        for row in rows.tolist():
            if row not in self._heard:
                self._heard[row] = self._scaled(np.array([row]))[0]
        return np.array([self._heard[row] for row in rows.tolist()]).reshape(len(rows), len(self._opinions))

    def _scaled(self, rows: Rows) -> Floats:
        return np.asarray((self._ask(rows) - self._middle) / self._width)

    def _ask(self, rows: Rows) -> Floats:
        points = self._valid.at(rows)
        return np.array([opinion(points) for opinion in self._opinions]).reshape(len(self._opinions), len(rows)).T


@dataclass(frozen=True, slots=True)
class Trend:
    """A weighted sum of opinions, 0 on the average of the trials that it was fitted to."""

    centre: Floats
    weights: Floats

    def of(self, opinions: Floats) -> Floats:
        """Opinions (configs, opinions) in the unit of the values that the trend was fitted to: (configs,)."""
        return np.asarray((opinions - self.centre) @ self.weights)


def trend(opinions: Floats, values: Floats) -> Trend:
    """The trend in standardised `values` of trials with `opinions` (trials, opinions): ridge regression, no weight
    negative. An opinion counts as much as it agrees with what was measured; one that proves wrong is not heard, and not
    turned around either."""
    centre = opinions.mean(axis=0)
    x = opinions - centre
    heard = np.ones(x.shape[1], dtype=np.bool_)
    weights = np.zeros(x.shape[1])
    while heard.any():
        some = x[:, heard]
        weights[:] = 0.0
        weights[heard] = np.linalg.solve(some.T @ some + DOUBT * np.eye(some.shape[1]), some.T @ values)
        if weights.min() >= 0.0:
            break
        heard &= weights > 0.0
    return Trend(centre, np.maximum(weights, 0.0))
