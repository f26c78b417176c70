"""What the surrogate sees of a config: a row of numbers in 0..1 per config, computed axis by axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evoengine.space import Axis

Floats = NDArray[np.float64]

POWER_OF_TWO_FROM = 5
"""Choices an axis needs before the power of two that divides a value says more than its index does."""


class Features:
    """Columns of an ordered axis: the index of its choice and, where there are enough choices, the power of two that
    divides the value (warp multiples, vector widths and memory banks follow it). Of an unordered axis: one per choice.
    """

    def __init__(self, axes: Sequence[Axis]) -> None:
        self._tables = [_table(axis) for axis in axes]
        self.columns = sum(table.shape[1] for table in self._tables)

    def of(self, points: NDArray[np.int16]) -> Floats:
        """Features of `points` (configs, axes): (configs, columns)."""
        return np.hstack([table[points[:, at]] for at, table in enumerate(self._tables)])


def _table(axis: Axis) -> Floats:
    """Features of every choice: (choices, columns)."""
    count = len(axis.choices)
    if count == 1:
        return np.empty((1, 0))
    if not axis.ordered and count > 2:
        return np.eye(count)
    columns = [np.arange(count) / (count - 1)]
    if axis.ordered and count >= POWER_OF_TWO_FROM and min(axis.choices) > 0:
        power = np.array([(value & -value).bit_length() - 1 for value in axis.choices], dtype=np.float64)
        if 1 < len(set(power.tolist())) < count:
            columns.append(power / power.max())
    return np.stack(columns, axis=1)
