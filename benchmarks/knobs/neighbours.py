"""The neighbours of a config: every other choice of every axis, alone where the rules allow it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from evoengine.question import Question
from evoengine.space import Broken, Config, Values

MAX_ALSO = 2
"""Other axes that a neighbour may change: with more its ratio says little of the axis."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """The control with `axis` at `choice`. `broken` is the rule that forbids just that, `also` what changed besides.

    `config` is None where no config with at most MAX_ALSO other changes keeps the rules. `steps` is the distance along
    the axis in choices, and one for every axis in `also`.
    """

    axis: str
    choice: int
    config: Config | None
    also: Mapping[str, int]
    broken: Broken | None
    steps: int


def neighbours(question: Question, control: Config) -> Iterator[Neighbour]:
    """Every other choice of every axis, in the order of the space."""
    space, values = question.space, control.values
    for axis in space:
        own = axis.choices.index(values[axis.name])
        for index, choice in enumerate(axis.choices):
            if index == own:
                continue
            changed = {**values, axis.name: choice}
            broken = space.broken(changed, question.problem, question.limits, question.hardware)
            also = {} if broken is None else _repair(question, changed, axis.name)
            config = None if also is None else space.config({**changed, **also})
            steps = abs(index - own) + len(also or {})
            yield Neighbour(axis.name, choice, config, also or {}, broken, steps)


def _repair(question: Question, values: Values, fixed: str) -> dict[str, int] | None:
    """The fewest changes to axes other than `fixed` that keep every rule; of several the nearest."""
    space = question.space
    others = [axis for axis in space if axis.name != fixed]
    target = space.point(values)

    def distance(also: Values) -> tuple[float, tuple[int, ...]]:
        point = space.point({**values, **also})
        return space.distance(point, target), point

    for count in range(1, MAX_ALSO + 1):
        found = []
        for axes in itertools.combinations(others, count):
            rest = [[(axis.name, choice) for choice in axis.choices if choice != values[axis.name]] for axis in axes]
            changes = [dict(choices) for choices in itertools.product(*rest)]
            found += [also for also in changes if question.static_gate({**values, **also}) is None]
        if found:
            return min(found, key=distance)
    return None
