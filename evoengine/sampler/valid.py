"""The feasible set as arrays: membership, nearest member and distances without a Python loop over configs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from evoengine.errors import UserError
from evoengine.space import FeasibleSet, Point, SearchSpace

Rows = NDArray[np.intp]


class ValidSet:
    """Every feasible point of a space; a point is named by its row.

    Raises:
        UserError: nothing is feasible, or the product space has 2**63 points or more (a point is a 64-bit code here).
    """

    def __init__(self, space: SearchSpace, feasible: FeasibleSet) -> None:
        points = feasible.points
        if not points:
            space.nearest(space.default, feasible)  # raises, and says which rule refused most
        if space.product >= 2**63:
            raise UserError(f"search space {space.name} has {space.product} points, over 2**63: drop some choices")
        self.axes = space.axes
        self.sizes = tuple(len(axis.choices) for axis in space.axes)
        # Column-major: distances walk one axis at a time.
        self.matrix = np.asfortranarray(np.array(points, dtype=np.int16).reshape(len(points), len(self.sizes)))
        strides = [1]
        for size in self.sizes[:0:-1]:
            strides.insert(0, strides[0] * size)
        self._strides = np.array(strides, dtype=np.int64)
        codes = self.matrix.astype(np.int64) @ self._strides
        self._order = np.argsort(codes)
        self._codes = codes[self._order]
        self._steps = [_steps(len(axis.choices), axis.ordered) for axis in space.axes]

    def __len__(self) -> int:
        return len(self.matrix)

    def point(self, row: int) -> Point:
        return tuple(int(index) for index in self.matrix[row])

    def row(self, point: Point) -> int | None:
        """The row of `point`, None when it is not feasible."""
        code = int(np.dot(np.array(point, dtype=np.int64), self._strides))
        at = int(np.searchsorted(self._codes, code))
        return int(self._order[at]) if at < len(self._codes) and self._codes[at] == code else None

    def rows(self, points: Sequence[Point]) -> Rows:
        """The row of each of `points`, -1 where it is not feasible."""
        codes = np.array(points, dtype=np.int64).reshape(len(points), len(self.sizes)) @ self._strides
        at = np.minimum(np.searchsorted(self._codes, codes), len(self) - 1)
        return np.where(self._codes[at] == codes, self._order[at], -1)

    def distance(self, point: Point, among: Rows | None = None) -> NDArray[np.float64]:
        """`SearchSpace.distance` from `point` to every row, or to the rows `among`."""
        total = np.zeros(len(self) if among is None else len(among), dtype=np.float64)
        for axis, index in enumerate(point):
            column = self.matrix[:, axis]
            total += self._steps[axis][index][column if among is None else column[among]]
        return total

    def nearest(self, point: Point, taken: Iterable[int], keep: int | None = None) -> int | None:
        """The row closest to `point` that is not `taken`; of those that share its choice on axis `keep`, if given.

        None when there is no such row. Ties go to the lowest row.
        """
        total = self.distance(point)
        total[list(taken)] = np.inf
        if keep is not None:
            total[self.matrix[:, keep] != point[keep]] = np.inf
        row = int(np.argmin(total))
        return row if total[row] < np.inf else None

    def draw(self, taken: set[int], rng: np.random.Generator) -> int:
        """A row that is not taken, uniformly; the caller knows that there is one."""
        for _ in range(8):
            row = int(rng.integers(len(self)))
            if row not in taken:
                return row
        free = np.setdiff1d(np.arange(len(self)), np.fromiter(taken, dtype=np.intp, count=len(taken)))
        return int(free[rng.integers(len(free))])


def _steps(size: int, ordered: bool) -> NDArray[np.float64]:
    """Distance between every two choices of one axis, as in `SearchSpace.distance`."""
    apart = np.abs(np.subtract.outer(np.arange(size), np.arange(size))).astype(np.float64)
    return apart / max(size - 1, 1) if ordered else np.sign(apart)
