"""The first configs of a search: those known to be good, here or elsewhere, then some spread over the feasible set."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import chain, islice, zip_longest

import numpy as np

from evoengine.sampler.source import Source
from evoengine.sampler.valid import ValidSet
from evoengine.space import SearchSpace

SPREAD_SAMPLE = 1000
"""Configs among which the next spread point is looked for: a max-min design over more costs time and changes little.
At most half of a small feasible set, or every seed would start alike."""

TRANSFERRED = 4
"""Configs that are taken over from sources, the best of each in turn."""


def transferred(sources: Sequence[Source], valid: ValidSet) -> list[tuple[int, str]]:
    """Rows of the sources' best configs (nearest feasible, no repeats), with their operator names."""
    ranked = zip_longest(*([(point, source.operator) for point in source.best(TRANSFERRED)] for source in sources))
    rows: dict[int, str] = {}
    for point, operator in filter(None, chain.from_iterable(ranked)):
        row = valid.nearest(point, ())
        assert row is not None, "a ValidSet is not empty"
        rows.setdefault(row, operator)
    return list(rows.items())[:TRANSFERRED]


def known(space: SearchSpace, valid: ValidSet) -> list[tuple[int, str]]:
    """Rows of the default and of the hand-picked starts (nearest feasible, no repeats), with their operator names."""
    rows: dict[int, str] = {}
    for values, operator in [(space.default, "default"), *((start, "start") for start in space.starts)]:
        row = valid.nearest(space.point(values), ())
        assert row is not None, "a ValidSet is not empty"
        rows.setdefault(row, operator)
    return list(rows.items())


def spread(valid: ValidSet, seen: Collection[int], rng: np.random.Generator) -> Iterator[int]:
    """Unseen rows, each the farthest of a random sample from `seen` and all rows before it (max-min design)."""
    taken = set(seen)
    sample = np.sort(rng.choice(len(valid), min(SPREAD_SAMPLE, -(-len(valid) // 2)), replace=False))
    sample = sample[~np.isin(sample, np.fromiter(taken, dtype=np.intp, count=len(taken)))]
    points = valid.at(sample)
    gap = np.full(len(sample), np.inf, dtype=np.float64)
    for row in sorted(taken):
        gap = np.minimum(gap, valid.distances(valid.point(row), points))
    while len(sample):
        at = int(np.argmax(gap))
        row = int(sample[at])
        yield row
        gap = np.minimum(gap, valid.distances(valid.point(row), points))
        sample, points, gap = np.delete(sample, at), np.delete(points, at, axis=0), np.delete(gap, at)


def design(
    space: SearchSpace, valid: ValidSet, size: int, seed: int, sources: Sequence[Source] = ()
) -> list[tuple[int, str]]:
    """The known good configs and the sources' best, filled up to `size` by spread ones: rows and operator names, the
    same for equal seeds."""
    rows = dict(known(space, valid))
    for row, operator in transferred(sources, valid):
        rows.setdefault(row, operator)
    extra = spread(valid, rows, np.random.default_rng([seed]))
    return list(rows.items()) + [(row, "spread") for row in islice(extra, max(size - len(rows), 0))]
