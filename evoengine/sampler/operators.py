"""Genetic operators: from evaluated configs to the feasible ones that mutation and crossover make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evoengine.sampler.valid import ValidSet
from evoengine.space import Point

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


def offspring(members: Sequence[Member], valid: ValidSet, rng: np.random.Generator) -> dict[int, Child]:
    """Feasible children by row: mutations and crossovers of the fastest.

    A config that several operators reach is the child of the first.
    """
    elites = best(members, CROSSED)
    made = [(point, Child("mutation", (parent,))) for parent in elites[:MUTATED] for point in _mutants(parent, valid)]
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
