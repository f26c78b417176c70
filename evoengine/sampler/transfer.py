"""From the trials of another study to how slow it lets expect any config to be."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evoengine.sampler.features import Features
from evoengine.sampler.model import standardise
from evoengine.sampler.source import Source
from evoengine.sampler.surrogate import JITTER, Floats, fit, kernel


class Transfer:
    """The mean of a Gaussian process over a source's trials, and of a config that is among them what was measured."""

    def __init__(self, source: Source, features: Features) -> None:
        values = np.array([np.nan if value is None else value for value in source.values])
        self._features = features
        self._x = features.of(np.array(source.points, dtype=np.int16))
        told = standardise(values).values
        self._hyper = fit(self._x, told)
        noise = (self._hyper.noise + JITTER) * np.eye(len(told))
        self._weights = np.linalg.solve(kernel(self._x, self._x, self._hyper) + noise, told)
        self._told = dict(zip(source.points, told.tolist(), strict=True))

    def __call__(self, points: NDArray[np.int16]) -> Floats:
        mean = kernel(self._features.of(points), self._x, self._hyper) @ self._weights
        told = [self._told.get(tuple(point), np.nan) for point in points.tolist()]
        return np.where(np.isnan(told), mean, told)
