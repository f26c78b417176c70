"""Genetic operators: pure functions from evaluated configs and a random generator to the target of a new one.

A target need not be feasible; the sampler settles it on the nearest free member of the feasible set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evoengine.space import Axis, Point

SMALL_AXIS = 4
"""An axis with at most this many choices is a switch: its every choice keeps a niche."""


@dataclass(frozen=True, slots=True)
class Member:
    """An evaluated config: trial number, generation and value in microseconds."""

    number: int
    point: Point
    generation: int
    value: float


@dataclass(frozen=True, slots=True)
class Target:
    """Where an operator wants to go. `keep` is the axis whose new choice is the point of the exercise."""

    point: Point
    operator: str
    parents: tuple[Member, ...]
    keep: int | None = None


def best(members: Sequence[Member], count: int) -> list[Member]:
    """The `count` fastest, fastest first; the earlier trial wins a tie."""
    return sorted(members, key=lambda member: (member.value, member.number))[:count]


def niches(members: Sequence[Member], axes: Sequence[Axis]) -> list[Member]:
    """The fastest member for each choice of each switch, without the fastest of all: what a switch that looks bad on
    average still has to offer."""
    ranked = best(members, len(members))
    found: dict[int, Member] = {}
    for at, axis in enumerate(axes):
        if 2 <= len(axis.choices) <= SMALL_AXIS:
            held: set[int] = set()
            for member in ranked:
                if member.point[at] not in held:
                    held.add(member.point[at])
                    found[member.number] = member
    found.pop(ranked[0].number, None)
    return best(list(found.values()), len(found))


def pick(elites: Sequence[Member], rng: np.random.Generator) -> Member:
    """A parent: the square of a uniform draw prefers low ranks (the first quarter is taken half of the time)."""
    return elites[int(len(elites) * rng.random() ** 2)]


def mutate(parent: Member, axes: Sequence[Axis], operator: str, rng: np.random.Generator) -> Target:
    """One knob of `parent` moved one step (to any other choice where its choices have no order)."""
    movable = [at for at, axis in enumerate(axes) if len(axis.choices) > 1]
    if not movable:
        return Target(parent.point, operator, (parent,))
    at = movable[int(rng.integers(len(movable)))]
    return Target(_moved(parent.point, at, axes[at], rng), operator, (parent,), keep=at)


def cross(first: Member, second: Member, axes: Sequence[Axis], rng: np.random.Generator) -> Target:
    """Uniform crossover; in one of three children a knob is mutated as well."""
    mask = rng.random(len(axes)) < 0.5
    point = tuple(a if take else b for a, b, take in zip(first.point, second.point, mask, strict=True))
    if rng.random() < 1 / 3:
        at = int(rng.integers(len(axes)))
        point = _moved(point, at, axes[at], rng)
    return Target(point, "crossover", (first, second))


def _moved(point: Point, at: int, axis: Axis, rng: np.random.Generator) -> Point:
    choices = axis.neighbours(point[at])
    if not choices:
        return point
    return (*point[:at], choices[int(rng.integers(len(choices)))], *point[at + 1 :])
