"""The feasible set as arrays: membership, nearest member and distances without a Python loop over configs."""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from evoengine.errors import UserError
from evoengine.feasible import Combinations, Group
from evoengine.space import FeasibleSet, Point, SearchSpace

Rows = NDArray[np.intp]


class _Group:
    """Some axes, every choice of them that is allowed, and the place of each among these.

    `matrix` has a row for each and a column for each of `axes`. A choice's code is its product with `strides`; `codes`
    are ascending, and the row of each is its place there, or what `order` has in that place.
    """

    def __init__(
        self,
        axes: Sequence[int],
        strides: Sequence[int],
        codes: NDArray[np.int64],
        matrix: NDArray[np.int16],
        order: Rows | None = None,
    ) -> None:
        self.axes = np.array(axes, dtype=np.intp)
        # Column-major: distances walk one axis at a time.
        self.matrix = np.asfortranarray(matrix)
        self._strides = np.array(strides, dtype=np.int64)
        self._codes = codes
        self._order = order

    def __len__(self) -> int:
        return len(self.matrix)

    def rows(self, points: NDArray[np.int64]) -> Rows:
        """The row of each of `points`, which have all axes of the space; -1 where there is none."""
        codes = points[:, self.axes] @ self._strides
        at = np.minimum(np.searchsorted(self._codes, codes), len(self) - 1)
        return np.where(self._codes[at] == codes, at if self._order is None else self._order[at], -1)


class ValidSet:
    """Every feasible point of a space; a point is named by its row.

    Rows of a set that is listed follow the list; those of `Combinations` count through its groups, the last fastest.

    Raises:
        UserError: nothing is feasible, or the product space of a listed set has 2**63 points or more (a point is a
            64-bit code here).
    """

    def __init__(self, space: SearchSpace, feasible: FeasibleSet) -> None:
        points = feasible.points
        if not points:
            space.nearest(space.default, feasible)  # raises, and says which rule refused most
        self.axes = space.axes
        self.sizes = tuple(len(axis.choices) for axis in space.axes)
        if isinstance(points, Combinations):
            self._groups = [_tied(group) for group in points.groups]
        elif space.product >= 2**63:
            raise UserError(f"search space {space.name} has {space.product} points, over 2**63: drop some choices")
        else:
            self._groups = [_listed(points, self.sizes)]
        self._steps = [_steps(len(axis.choices), axis.ordered) for axis in space.axes]

    def __len__(self) -> int:
        return math.prod(len(group) for group in self._groups)

    def at(self, rows: Rows) -> NDArray[np.int16]:
        """The points in `rows`: (rows, axes)."""
        points = np.empty((len(rows), len(self.sizes)), dtype=np.int16, order="F")
        for group in reversed(self._groups):
            rows, own = np.divmod(rows, len(group))
            points[:, group.axes] = group.matrix[own]
        return points

    def point(self, row: int) -> Point:
        return tuple(self.at(np.array([row]))[0].tolist())

    def row(self, point: Point) -> int | None:
        """The row of `point`, None when it is not feasible."""
        row = int(self.rows([point])[0])
        return None if row < 0 else row

    def rows(self, points: Sequence[Point]) -> Rows:
        """The row of each of `points`, -1 where it is not feasible."""
        table = np.array(points, dtype=np.int64).reshape(len(points), len(self.sizes))
        rows = np.zeros(len(points), dtype=np.intp)
        inside = np.ones(len(points), dtype=np.bool_)
        for group in self._groups:
            own = group.rows(table)
            rows = rows * len(group) + own
            inside &= own >= 0
        return np.where(inside, rows, -1)

    def distances(self, point: Point, points: NDArray[np.int16]) -> NDArray[np.float64]:
        """`SearchSpace.distance` from `point` to each of `points` (points, axes)."""
        total = np.zeros(len(points), dtype=np.float64)
        for axis, index in enumerate(point):
            total += self._steps[axis][index][points[:, axis]]
        return total

    def nearest(self, point: Point, taken: Collection[int]) -> int | None:
        """The row closest to `point` that is not `taken`, the lowest among equals; None when all are.

        Rows are visited by distance: first the closest of every group, then one place further in one group at a time.
        """
        ranked = [self._ranked(group, point, len(taken) + 1) for group in self._groups]
        ahead = [self._visit(ranked, (0,) * len(ranked))]
        queued = {ahead[0][2]}
        while ahead:
            _, row, places = heapq.heappop(ahead)
            if row not in taken:
                return row
            for at, (rows, _) in enumerate(ranked):
                after = (*places[:at], places[at] + 1, *places[at + 1 :])
                if after[at] < len(rows) and after not in queued:
                    queued.add(after)
                    heapq.heappush(ahead, self._visit(ranked, after))
        return None

    def _ranked(self, group: _Group, point: Point, count: int) -> tuple[Rows, NDArray[np.float64]]:
        """The group's `count` rows closest to `point`, and all that are as close as the last, with their distances."""
        total = np.zeros(len(group), dtype=np.float64)
        for column, axis in enumerate(group.axes):
            total += self._steps[axis][point[axis]][group.matrix[:, column]]
        count = min(count, len(group))
        near = np.flatnonzero(total <= np.partition(total, count - 1)[count - 1])
        rows = near[np.argsort(total[near], kind="stable")]
        return rows, total[rows]

    def _visit(
        self, ranked: Sequence[tuple[Rows, NDArray[np.float64]]], places: tuple[int, ...]
    ) -> tuple[float, int, tuple[int, ...]]:
        """Distance, row and places of the combination that has each group's row at its place in the ranking."""
        total, row = 0.0, 0
        for group, (rows, distances), place in zip(self._groups, ranked, places, strict=True):
            total += float(distances[place])
            row = row * len(group) + int(rows[place])
        return total, row, places

    def draw(self, taken: set[int], rng: np.random.Generator) -> int:
        """A row that is not taken, uniformly; the caller knows that there is one."""
        for _ in range(8):
            row = int(rng.integers(len(self)))
            if row not in taken:
                return row
        free = np.setdiff1d(np.arange(len(self)), np.fromiter(taken, dtype=np.intp, count=len(taken)))
        return int(free[rng.integers(len(free))])


def _tied(group: Group) -> _Group:
    """The members of a group in its order, which is that of their codes: they are not sorted again."""
    codes = np.frombuffer(group.codes, dtype=np.int64)  # all are below 2**63
    columns = [codes // stride % size for stride, size in zip(group.strides, group.sizes, strict=True)]
    return _Group(group.axes, group.strides, codes, np.array(columns, dtype=np.int16).T)


def _listed(points: Sequence[Point], sizes: Sequence[int]) -> _Group:
    """Whole points, in the order of the list."""
    matrix = np.array(points, dtype=np.int16).reshape(len(points), len(sizes))
    strides = [math.prod(sizes[at + 1 :]) for at in range(len(sizes))]
    codes = matrix.astype(np.int64) @ np.array(strides, dtype=np.int64)
    order = np.argsort(codes, kind="stable")
    return _Group(range(len(sizes)), strides, codes[order], matrix, order)


def _steps(size: int, ordered: bool) -> NDArray[np.float64]:
    """Distance between every two choices of one axis, as in `SearchSpace.distance`."""
    apart = np.abs(np.subtract.outer(np.arange(size), np.arange(size))).astype(np.float64)
    return apart / max(size - 1, 1) if ordered else np.sign(apart)
