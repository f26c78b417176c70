"""What may vary: axes, rules with reasons, configs, and the enumeration of the feasible set."""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from evoengine.errors import UserError, did_you_mean
from evoengine.feasible import Combinations, Group, tied
from evoengine.hardware import DeviceLimits
from evoengine.listing import listed, rules_of
from evoengine.problem import Problem

Values = Mapping[str, int]
Check = Callable[[Values, Problem, DeviceLimits], str | None]
Point = tuple[int, ...]
"""A config as choice indices, one per axis in axis order."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One knob: the macro `EVO_<name>`, its integer choices and whether their order means anything.

    `names` gives unordered choices a word each, for tables (`LAYOUT` 2 is shown as `xor`).
    """

    name: str
    choices: tuple[int, ...]
    short: str
    ordered: bool = True
    names: tuple[str, ...] = ()
    about: str = ""

    def __post_init__(self) -> None:
        if not self.choices or len(set(self.choices)) != len(self.choices):
            raise UserError(f"axis {self.name}: choices {self.choices} must be distinct and not empty")
        if self.names and len(self.names) != len(self.choices):
            raise UserError(f"axis {self.name}: {len(self.names)} names for {len(self.choices)} choices")

    def show(self, value: int) -> str:
        """The word for `value` in tables: its name where it has one, the number otherwise."""
        return self.names[self.choices.index(value)] if self.names else str(value)

    def steps(self, i: int, j: int) -> float:
        """Between two choices, as a share of the axis; 1 for unequal ones where order means nothing."""
        return abs(i - j) / max(len(self.choices) - 1, 1) if self.ordered else float(i != j)

    def neighbours(self, index: int) -> tuple[int, ...]:
        """Choice indices one step away; every other choice when the axis has no order."""
        if not self.ordered:
            return tuple(i for i in range(len(self.choices)) if i != index)
        return tuple(i for i in (index - 1, index + 1) if 0 <= i < len(self.choices))


@dataclass(frozen=True, slots=True)
class Rule:
    """A reason for which a config cannot be built or run.

    `check` returns None where the rule holds, else one line with the numbers that break it. `axes` names every axis
    it reads: enumeration prunes as soon as all of them are set.
    """

    id: str
    axes: tuple[str, ...]
    check: Check


@dataclass(frozen=True, slots=True)
class Broken:
    """A rule that a config breaks, with the numbers."""

    rule: str
    reason: str


@dataclass(frozen=True, slots=True)
class Config:
    """One point of a search space. Equal values are equal configs, whatever the label says."""

    items: tuple[tuple[str, int], ...]
    label: str = field(compare=False)

    @property
    def values(self) -> dict[str, int]:
        return dict(self.items)

    @property
    def digest(self) -> str:
        """16 hex digits over the sorted axis values."""
        text = ",".join(f"{name}={value}" for name, value in sorted(self.items))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class FeasibleSet:
    """Every config that breaks no rule; and by rule, how many product points it was the first to take out."""

    points: Sequence[Point]
    rejected: dict[str, int]
    product: int

    def used(self, axis: int) -> list[int]:
        """The choices of the axis in this place that some feasible config makes, ascending."""
        points = self.points
        return points.used(axis) if isinstance(points, Combinations) else sorted({point[axis] for point in points})


@dataclass(frozen=True)
class SearchSpace:
    """Axes, rules, the default config and a few hand-picked starts.

    Raises:
        UserError: the default or a start names an unknown axis or choice.
    """

    name: str
    axes: tuple[Axis, ...]
    rules: tuple[Rule, ...]
    default: Values
    starts: tuple[Values, ...] = ()
    source_digest: str = ""

    def __post_init__(self) -> None:
        names = [axis.name for axis in self.axes]
        if len(set(names)) != len(names):
            raise UserError(f"search space {self.name}: axis names {names} are not distinct")
        for rule in self.rules:
            for axis_name in rule.axes:
                if axis_name not in names:
                    raise UserError(f"search space {self.name}: rule {rule.id} reads unknown axis {axis_name}")
        for values in (self.default, *self.starts):
            self.point(values)

    @cached_property
    def digest(self) -> str:
        """12 hex digits over axes, rule ids, default and the source file (rules are code)."""
        parts = [self.name, self.source_digest, repr(sorted(self.default.items()))]
        parts += [repr((a.name, a.choices, a.ordered)) for a in self.axes] + [rule.id for rule in self.rules]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]

    @property
    def product(self) -> int:
        return math.prod(len(axis.choices) for axis in self.axes)

    def axis(self, name: str) -> Axis:
        for axis in self.axes:
            if axis.name == name:
                return axis
        names = [axis.name for axis in self.axes]
        raise UserError(f"unknown axis {name!r}: {did_you_mean(name, names)}known are {', '.join(names)}")

    def point(self, values: Values) -> Point:
        """`values` as choice indices.

        Raises:
            UserError: an axis is missing or unknown, or a value is not among its choices.
        """
        unknown = set(values) - {axis.name for axis in self.axes}
        if unknown:
            self.axis(sorted(unknown)[0])
        point = []
        for axis in self.axes:
            if axis.name not in values:
                raise UserError(f"config lacks axis {axis.name}")
            if values[axis.name] not in axis.choices:
                raise UserError(f"{axis.name}={values[axis.name]} is not among its choices {axis.choices}")
            point.append(axis.choices.index(values[axis.name]))
        return tuple(point)

    def config(self, values: Values) -> Config:
        """`values` as a Config, axes in the space's order, labelled `wm_4.bn_64...`."""
        return self.config_at(self.point(values))

    def config_at(self, point: Point) -> Config:
        pairs = [(axis, axis.choices[i]) for axis, i in zip(self.axes, point, strict=True)]
        label = ".".join(f"{axis.short}_{axis.show(value)}" for axis, value in pairs)
        return Config(tuple((axis.name, value) for axis, value in pairs), label)

    def broken(
        self, values: Values, problem: Problem, limits: DeviceLimits, hardware: Sequence[Rule] = ()
    ) -> Broken | None:
        """The first rule that `values` breaks, the space's own before the hardware's.

        Raises:
            UserError: a rule fails.
        """
        with rules_of(self.name):
            for rule in (*self.rules, *hardware):
                reason = rule.check(values, problem, limits)
                if reason is not None:
                    return Broken(rule.id, reason)
        return None

    def feasible(self, problem: Problem, limits: DeviceLimits, hardware: Sequence[Rule] = ()) -> FeasibleSet:
        """Every config that no rule refuses. Groups of axes that no rule ties together are listed apart.

        Raises:
            UserError: a group is too large to be listed, or a rule fails.
        """
        rules = (*self.rules, *hardware)
        places = {axis.name: at for at, axis in enumerate(self.axes)}
        reads = [[places[name] for name in rule.axes] for rule in rules]
        rejected = {rule.id: 0 for rule in rules}
        groups: list[Group] = []
        before, after = 1, self.product
        for axes in tied(len(self.axes), reads):
            ours = [rule for rule, read in zip(rules, reads, strict=True) if (*read, 0)[0] in axes]
            after //= math.prod(len(self.axes[at].choices) for at in axes)
            group, refused = listed(self.name, {at: self.axes[at] for at in axes}, ours, problem, limits)
            for rule, count in refused.items():  # of the points that earlier groups left over
                rejected[rule] += before * count * after
            groups.append(group)
            before *= len(group)
        if before >= 2**63:
            raise UserError(f"search space {self.name} has {before} feasible configs, over 2**63: drop some choices")
        return FeasibleSet(Combinations(groups), rejected, self.product)

    def distance(self, a: Point, b: Point) -> float:
        """Sum over axes of the steps between two points, as a share of the axis; 1 for unequal unordered choices."""
        return sum(axis.steps(i, j) for axis, i, j in zip(self.axes, a, b, strict=True))

    def nearest(self, values: Values, feasible: FeasibleSet) -> Config:
        """The feasible config closest to `values`; `values` itself where it is feasible.

        Raises:
            UserError: nothing is feasible.
        """
        if not feasible.points:
            worst = max(feasible.rejected, key=lambda rule: feasible.rejected[rule], default="none")
            raise UserError(
                f"no config of {self.name} is feasible for this problem and device (most were refused by rule "
                f"{worst}): relax the limits or choose another shape"
            )
        target = self.point(values)
        if target in feasible.points:  # usually; what follows visits every member of every group
            return self.config_at(target)
        if isinstance(feasible.points, Combinations):
            return self.config_at(feasible.points.cheapest(lambda axis, i: self.axes[axis].steps(i, target[axis])))
        return self.config_at(min(feasible.points, key=lambda point: (self.distance(point, target), point)))

    def __iter__(self) -> Iterator[Axis]:
        return iter(self.axes)


def load_space(path: Path) -> SearchSpace:
    """Run a search-space file and return its `SPACE`. The file is code: run only files you trust.

    Raises:
        UserError: no such .py file, it fails to run, or it defines no `SPACE`.
    """
    if not path.is_file() or path.suffix != ".py":
        why = "is not a .py file" if path.exists() else "does not exist"
        raise UserError(f"search space {path} {why}: give the path of a Python file that defines SPACE")
    spec = importlib.util.spec_from_file_location(f"evoengine_space_{path.stem}", path)
    assert spec is not None and spec.loader is not None, "a .py path always has a loader"
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"search space {path} does not run: {type(error).__name__}: {error}") from error
    space = getattr(module, "SPACE", None)
    if not isinstance(space, SearchSpace):
        raise UserError(f"search space {path} defines no SPACE of type evoengine.space.SearchSpace")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return SearchSpace(space.name, space.axes, space.rules, space.default, space.starts, digest)
