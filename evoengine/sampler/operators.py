"""Genetic operators: from evaluated configs to the feasible ones that mutation and crossover make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evoengine.sampler.valid import ValidSet
from evoengine.space import Axis, Point

SMALL_AXIS = 4
"""An axis with at most this many choices is a switch: its every choice keeps a niche."""
MUTATED = 3
"""Fastest members of which every one-knob mutation is made."""
CROSSED = 6
"""Fastest members that are crossed with each other."""
CROSSOVERS = 40


@dataclass(frozen=True, slots=True)
class Member:
    """An evaluated config: trial number, generation and value in microseconds."""

    number: int
    point: Point
    generation: int
    value: float


@dataclass(frozen=True, slots=True)
class Child:
    """Where a feasible config comes from."""

    operator: str
    parents: tuple[Member, ...]


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


def offspring(members: Sequence[Member], valid: ValidSet, rng: np.random.Generator) -> dict[int, Child]:
    """Feasible children by row: mutations of the fastest and of one niche, and crossovers of the fastest.

    A config that several operators reach is the child of the first.
    """
    elites = best(members, CROSSED)
    others = niches(members, valid.axes)
    made = [(point, Child("mutation", (parent,))) for parent in elites[:MUTATED] for point in _mutants(parent, valid)]
    if others:
        parent = others[int(rng.integers(len(others)))]
        made += [(point, Child("niche", (parent,))) for point in _mutants(parent, valid)]
    if len(elites) > 1:
        for _ in range(CROSSOVERS):
            first, second = rng.choice(len(elites), 2, replace=False)
            made.append(_crossover(elites[first], elites[second], valid, rng))
    children: dict[int, Child] = {}
    for row, (_, child) in zip(valid.rows([point for point, _ in made]), made, strict=True):
        if row >= 0:
            children.setdefault(int(row), child)
    return children


def _mutants(parent: Member, valid: ValidSet) -> list[Point]:
    """One knob of `parent` at each of its other choices."""
    point = parent.point
    return [
        (*point[:at], index, *point[at + 1 :])
        for at, size in enumerate(valid.sizes)
        for index in range(size)
        if index != point[at]
    ]


def _crossover(first: Member, second: Member, valid: ValidSet, rng: np.random.Generator) -> tuple[Point, Child]:
    """Each knob from either parent; in one of two children a knob is drawn afresh as well."""
    mask = rng.random(len(valid.sizes)) < 0.5
    point = [a if take else b for a, b, take in zip(first.point, second.point, mask, strict=True)]
    if rng.random() < 0.5:
        at = int(rng.integers(len(point)))
        point[at] = int(rng.integers(valid.sizes[at]))
    return tuple(point), Child("crossover", (first, second))
