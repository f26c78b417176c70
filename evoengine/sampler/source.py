"""What a search is told before it begins: another search's measurements, or estimates."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from evoengine.space import Axis, Point

KEPT = 400
"""Configs of a source that are kept with a study: half of them the fastest, the others evenly from the rest. As many as
the surrogate is fitted to; more would be stored and read with every study and never looked at."""


@dataclass(frozen=True, slots=True)
class Source:
    """Configs that were tried elsewhere, as points of the space that is searched now, and what came out.

    `values` are in microseconds, None where the config was rejected. `device` and `problem` are for the reader;
    `operator` is where a config comes from that is tried because it is the best of the source.
    """

    name: str
    device: str
    problem: str
    points: tuple[Point, ...]
    values: tuple[float | None, ...]
    operator: str = "transfer"

    @property
    def digest(self) -> str:
        """12 hex digits over configs and values: what a search that was started from them depends on."""
        text = json.dumps([self.points, self.values])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def known(self) -> int:
        """Configs that have a value."""
        return sum(value is not None for value in self.values)

    def best(self, count: int) -> list[Point]:
        """The `count` fastest configs, the fastest first; the earlier one wins a tie."""
        ranked = sorted((value, at) for at, value in enumerate(self.values) if value is not None)
        return [self.points[at] for _, at in ranked[:count]]

    def about(self) -> dict[str, Any]:
        """What a result says of it."""
        return {
            "name": self.name,
            "device": self.device,
            "problem": self.problem,
            "configs": len(self.points),
            "known": self.known,
            "digest": self.digest,
        }

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def make_source(
    name: str,
    device: str,
    problem: str,
    trials: Iterable[tuple[Point, float | None]],
    *,
    theirs: Sequence[Axis],
    ours: Sequence[Axis],
    their_constants: Mapping[str, str] = MappingProxyType({}),
    our_constants: Mapping[str, str] = MappingProxyType({}),
    operator: str = "transfer",
) -> Source | None:
    """A source from the trials of a space with axes `theirs`, on `ours`: by names of axes and words for choices.

    A knob that only one side varies is a constant of the other, by its word. A config with a choice that is not among
    ours is left out. None where the knobs have other names, or where no config that has a value is left.
    """
    if {*(axis.name for axis in theirs), *their_constants} != {*(axis.name for axis in ours), *our_constants}:
        return None
    words_of = {axis.name: [axis.show(choice) for choice in axis.choices] for axis in theirs}
    words_of |= {name: [word] for name, word in their_constants.items()}
    index_of = {axis.name: {axis.show(choice): index for index, choice in enumerate(axis.choices)} for axis in ours}
    index_of |= {name: {word: 0} for name, word in our_constants.items()}
    column = {name: at for at, name in enumerate(words_of)}
    # Our index for each of theirs, -1 where that is not ours: a fifth of the time of words for each of 10,000 trials.
    moves = [(column[name], [known.get(word, -1) for word in words_of[name]]) for name, known in index_of.items()]
    constants = (0,) * len(their_constants)
    moved = []
    for theirs_at, value in trials:
        choices = (*theirs_at, *constants)
        point = tuple([table[choices[at]] for at, table in moves])
        if min(point) >= 0:
            moved.append((point[: len(ours)], value))
    kept = _memorable(moved)
    if all(value is None for _, value in kept):
        return None
    return Source(name, device, problem, tuple(point for point, _ in kept), tuple(value for _, value in kept), operator)


def _memorable(trials: list[tuple[Point, float | None]]) -> list[tuple[Point, float | None]]:
    """At most `KEPT` of the trials, in their order."""
    if len(trials) <= KEPT:
        return trials
    ranked = sorted(range(len(trials)), key=lambda at: (math.inf if (value := trials[at][1]) is None else value, at))
    rest = sorted(ranked[KEPT // 2 :])
    count = KEPT - KEPT // 2
    even = [rest[step * (len(rest) - 1) // (count - 1)] for step in range(count)]
    return [trials[at] for at in sorted(ranked[: KEPT // 2] + even)]
