"""The feasible set without a list of it: axes that no rule ties together vary freely, so only the ties are listed.

Of attention's 19 axes rules tie 17 together, and the list is a quarter of the feasible set. A space whose axes fall
into several such groups may hold 10^8 feasible configs and more.
"""

from __future__ import annotations

import itertools
import math
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from evoengine.space import Point


class Group:
    """Axes that rules tie together (or one that no rule reads), and every choice of them that breaks none.

    `axes` are their places in the space, ascending. A member is a number in the mixed radix of `sizes`; `codes` are the
    members, ascending, which is the order of their points.
    """

    def __init__(self, axes: tuple[int, ...], sizes: tuple[int, ...], codes: array[int]) -> None:
        self.axes = axes
        self.sizes = sizes
        self.codes = codes
        self.strides = tuple(math.prod(sizes[at + 1 :]) for at in range(len(sizes)))

    def __len__(self) -> int:
        return len(self.codes)

    def indices(self, row: int) -> Point:
        """The choices of the member in `row`, one per axis of the group."""
        code = self.codes[row]
        return tuple(code // stride % size for stride, size in zip(self.strides, self.sizes, strict=True))

    def row(self, point: Point) -> int | None:
        """Where the choices that `point`, one of the whole space, makes for this group are listed."""
        code = sum(point[axis] * stride for axis, stride in zip(self.axes, self.strides, strict=True))
        at = bisect_left(self.codes, code)
        return at if at < len(self.codes) and self.codes[at] == code else None


class Combinations(Sequence["Point"]):
    """Every member of one group beside every member of the others; the last group varies fastest."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = tuple(groups)
        self._width = sum(len(group.axes) for group in groups)
        self._length = math.prod(len(group) for group in groups)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, at: int) -> Point: ...
    @overload
    def __getitem__(self, at: slice) -> list[Point]: ...
    def __getitem__(self, at: int | slice) -> Point | list[Point]:
        if isinstance(at, slice):
            return [self._point(row) for row in range(*at.indices(self._length))]
        return self._point(range(self._length)[at])

    def __contains__(self, point: object) -> bool:
        return isinstance(point, tuple) and all(group.row(point) is not None for group in self.groups)

    def __iter__(self) -> Iterator[Point]:
        places = [axis for group in self.groups for axis in group.axes]
        order = sorted(range(self._width), key=places.__getitem__)
        listed = [[group.indices(row) for row in range(len(group))] for group in self.groups]
        for parts in itertools.product(*listed):  # a sixth of the time of `_point` for each row
            found = tuple(itertools.chain.from_iterable(parts))
            yield tuple(map(found.__getitem__, order))

    def _point(self, row: int) -> Point:
        point = [0] * self._width
        for group in reversed(self.groups):
            row, own = divmod(row, len(group))
            for axis, index in zip(group.axes, group.indices(own), strict=True):
                point[axis] = index
        return tuple(point)

    def used(self, axis: int) -> list[int]:
        """The choices of an axis that some member makes, ascending."""
        (group,) = (group for group in self.groups if axis in group.axes)
        at = group.axes.index(axis)
        stride, size = group.strides[at], group.sizes[at]
        return sorted({code // stride % size for code in group.codes}) if self._length else []

    def cheapest(self, cost: Callable[[int, int], float]) -> Point:
        """The member with the least sum of `cost(axis, index)`, the lowest point among equals; there is a member."""
        point = [0] * self._width
        for group in self.groups:
            costs = [
                ([cost(axis, index) for index in range(size)], stride, size)
                for axis, stride, size in zip(group.axes, group.strides, group.sizes, strict=True)
            ]
            row = min(range(len(group)), key=lambda row: _total(costs, group.codes[row]))
            for axis, index in zip(group.axes, group.indices(row), strict=True):
                point[axis] = index
        return tuple(point)


def _total(costs: Sequence[tuple[list[float], int, int]], code: int) -> float:
    return sum(table[code // stride % size] for table, stride, size in costs)


def tied(width: int, ties: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """The axes 0 to `width` - 1 in groups, such that all axes of a tie are in one: ascending, by the first of each."""
    group_of = list(range(width))
    for tie in ties:
        joined = {group_of[axis] for axis in tie}
        group_of = [min(joined) if group in joined else group for group in group_of]
    return [tuple(axis for axis in range(width) if group_of[axis] == group) for group in sorted(set(group_of))]
