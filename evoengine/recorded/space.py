"""A recorded space: axes, configs and what each of them cost, in the shape that a sampler searches."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evoengine.errors import UserError
from evoengine.recorded.entry import Entry, shown
from evoengine.space import Axis, FeasibleSet, Point, SearchSpace, Values

MAX_AXES = 128
MAX_CHOICES = 1024
"""More values than this is data (a timestamp, a seed), not a parameter that was tuned."""
MAX_WORD = 200
EXACT = 2**53
"""Larger integers are not exact as doubles, in which samplers compute."""

Cell = int | float | str


@dataclass(frozen=True)
class RecordedSpace:
    """Configs in ascending order and their cost, NaN where one failed. Lower is better.

    A time is in microseconds (`unit` is `us`); a rate such as GFLOP/s (`is_rate`) is held as its inverse. Parameters
    that never vary are `constants`. `failures` counts failed configs by reason, `duplicates` entries beyond the first
    for a config, which holds the median of its entries that worked. `cut` says that the file was still open. `template`
    and `problem` are empty but for our own recordings.
    """

    name: str
    source: str
    device: str
    objective: str
    unit: str
    is_rate: bool
    axes: tuple[Axis, ...]
    template: str
    problem: Mapping[str, Any]
    points: list[Point]
    costs: NDArray[np.float64]
    default: Values
    constants: Mapping[str, str]
    failures: Mapping[str, int]
    duplicates: int
    cut: bool

    def __len__(self) -> int:
        return len(self.points)

    @cached_property
    def search_space(self) -> SearchSpace:
        return SearchSpace(self.name, self.axes, (), self.default)

    @cached_property
    def feasible(self) -> FeasibleSet:
        """Every recorded config, failing ones too: that a config fails is for the search to find out."""
        return FeasibleSet(self.points, {}, self.search_space.product)

    @cached_property
    def row_of(self) -> dict[Point, int]:
        return {point: row for row, point in enumerate(self.points)}

    @cached_property
    def optimum(self) -> float:
        return float(np.nanmin(self.costs))

    @cached_property
    def judged(self) -> NDArray[np.float64]:
        """Costs as they count in a score: a failed config is worth as much as the slowest that works."""
        return np.where(np.isnan(self.costs), np.nanmax(self.costs), self.costs)

    def label(self, row: int) -> dict[str, str]:
        """A config as parameter names and words."""
        pairs = zip(self.axes, self.points[row], strict=True)
        return {axis.name: axis.show(axis.choices[index]) for axis, index in pairs}


def axes_of(entries: Sequence[Entry]) -> tuple[tuple[Axis, ...], list[Point], dict[str, str]]:
    """Axes of every parameter that varies, the entries' points, and the constants.

    Whole numbers (also as `16.0` or `"16"`) are their own choices; other numbers are numbered in ascending order; any
    other values, true and false among them, are an unordered axis of words. A missing value is the word `none`.

    Raises:
        UserError: a value is a list or an object, or there are too many parameters or values of one.
    """
    names = list(dict.fromkeys(name for entry in entries for name in entry.values))
    if len(names) > MAX_AXES:
        raise UserError(f"has {len(names)} parameters, at most {MAX_AXES} can be searched")
    axes: list[Axis] = []
    columns: list[list[int]] = []
    constants: dict[str, str] = {}
    for name in names:
        word = shown(name)
        cells = [_cell(word, entry.values.get(name)) for entry in entries]
        axis, index_of = _axis(word, set(cells))
        if len(axis.choices) == 1:
            constants[word] = axis.show(axis.choices[0])
        else:
            axes.append(axis)
            columns.append([index_of[cell] for cell in cells])
    return tuple(axes), list(zip(*columns, strict=True)), constants


def points_on(axes: Sequence[Axis], entries: Iterable[Entry]) -> list[Point]:
    """The entries' points on axes that are known.

    Raises:
        UserError: a value is not among its axis's choices.
    """
    index_of = [{choice: index for index, choice in enumerate(axis.choices)} for axis in axes]
    points = []
    for number, entry in enumerate(entries, 1):
        point = []
        for axis, indices in zip(axes, index_of, strict=True):
            value = entry.values.get(axis.name)
            if type(value) is not int or value not in indices:
                raise UserError(f"config {number} has no choice of axis {shown(axis.name)}")
            point.append(indices[value])
        points.append(tuple(point))
    return points


def centre(axes: Iterable[Axis]) -> Values:
    """The middle choice of every axis: files of others name no default, and their order must not matter."""
    return {axis.name: axis.choices[(len(axis.choices) - 1) // 2] for axis in axes}


def merge(points: Sequence[Point], entries: Sequence[Entry]) -> tuple[list[Point], NDArray[np.float64], dict[str, int]]:
    """Distinct points in ascending order, their costs, and the failed ones by reason.

    Raises:
        UserError: no config works, or only one config is there.
    """
    costs: dict[Point, list[float]] = {}
    reasons: dict[Point, str] = {}
    for point, entry in zip(points, entries, strict=True):
        worked = costs.setdefault(point, [])
        if entry.cost is None:
            reasons[point] = entry.failure
        else:
            worked.append(entry.cost)
    ordered = sorted(costs)
    if len(ordered) < 2:
        raise UserError(f"holds {len(ordered)} config: there is nothing to search")
    merged = np.array([statistics.median(costs[point]) if costs[point] else math.nan for point in ordered])
    failures = Counter(reasons[point] for point in ordered if not costs[point])
    if sum(failures.values()) == len(ordered):
        raise UserError(f"holds {len(ordered)} configs and none that works")
    return ordered, merged, dict(sorted(failures.items()))


def _cell(name: str, value: Any) -> Cell:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "none"
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < EXACT else value if math.isfinite(value) else "nan"
    if isinstance(value, int):
        return value if abs(value) < EXACT else shown(str(value), MAX_WORD)
    if isinstance(value, str) and len(value) <= MAX_WORD:
        whole = re.fullmatch(r"0|-?[1-9][0-9]{0,14}", value)
        return int(value) if whole else shown(value, 10 * MAX_WORD)
    raise UserError(f"parameter {name}: {type(value).__name__} is no value that can be searched")


def _axis(name: str, cells: set[Cell]) -> tuple[Axis, dict[Cell, int]]:
    """The axis that has `cells` as its values, and the index of each."""
    if len(cells) > MAX_CHOICES:
        raise UserError(f"parameter {name} has {len(cells)} values, at most {MAX_CHOICES} can be searched")
    if all(not isinstance(cell, str) for cell in cells):
        numbers = sorted(cells, key=float)
        index_of = {cell: index for index, cell in enumerate(numbers)}
        if all(isinstance(cell, int) for cell in cells):
            return Axis(name, tuple(int(cell) for cell in numbers), name), index_of
        return Axis(name, tuple(range(len(numbers))), name, names=tuple(str(cell) for cell in numbers)), index_of
    words = sorted({str(cell) for cell in cells})
    index_of = {cell: words.index(str(cell)) for cell in cells}
    return Axis(name, tuple(range(len(words))), name, ordered=False, names=tuple(words)), index_of
