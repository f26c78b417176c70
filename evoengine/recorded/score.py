"""What a search of a recorded space was worth, against the optimum and against random search, whose average is exact.

A failed config costs an evaluation and counts as the slowest config that works, for random search and for the search
that is judged: so random search scores 0 on average, and both have a value before anything has worked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evoengine.recorded.space import RecordedSpace

MARKS = (50, 100, 200)
"""Evaluations at which the share of the optimum is read off."""
CLOSE = (0.05, 0.01)
"""A search is done when it is this close to the optimum."""
NEGLIGIBLE = 1e-20
"""Chances under this are dropped: times the largest spread known (114x the optimum) they are below rounding."""
LEVEL = 1e-9
"""Where random search is expected this close to the optimum, there is nothing left to score."""

Curve = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RandomSearch:
    """Random search without repeats on a space, exactly: expected best cost and optimum / best after 1, 2... draws.

    `draws[c]` is the median number of draws to come within c of the optimum, `within[c]` the chance to have done so at
    the end of the budget.
    """

    best: Curve
    share: Curve
    draws: dict[float, int]
    within: dict[float, float]


@dataclass(frozen=True, slots=True)
class Judgement:
    """A search by its true costs.

    `best` is the lowest so far, None before anything worked; `evaluations[c]` how many it took to come within c of the
    optimum, None if it did not; `share` optimum / best at each of `MARKS` in the budget; `score` the mean over all
    evaluations of (random's best - best) / (random's best - optimum), None where random search is at the optimum.
    """

    best: tuple[float | None, ...]
    evaluations: dict[float, int | None]
    share: dict[int, float]
    score: float | None


def random_search(space: RecordedSpace, budget: int) -> RandomSearch:
    """The expectation of the best of k draws is sum over i of t_i C(n-i, k-1) / C(n, k) for sorted costs t."""
    costs = np.sort(space.judged)
    hits = {close: int(np.count_nonzero(_reached(costs, space.optimum, close))) for close in CLOSE}
    return RandomSearch(
        expected_best(costs, budget),
        expected_best(space.optimum / costs, budget),
        {close: _median_draws(len(costs), count) for close, count in hits.items()},
        {close: 1 - _missed(len(costs), count, budget) for close, count in hits.items()},
    )


def expected_best(ranked: Curve, budget: int) -> Curve:
    """Expected value of the best-ranked of k draws without replacement from `ranked` (best first), for k = 1..budget.

    With S_i the chance that k draws miss the i best, C(n-i, k) / C(n, k), the sum is t_1 + sum of S_i (t_{i+1} - t_i):
    terms of one sign, and S_i goes from k to k + 1 by the factor (n-i-k) / (n-k), so that no binomial is ever formed.
    """
    n = len(ranked)
    steps = np.diff(ranked)
    place = np.arange(1, n, dtype=np.float64)
    missed = np.ones(n - 1)
    curve = np.empty(min(budget, n))
    for k in range(len(curve)):
        missed *= np.maximum(n - place - k, 0.0) / (n - k)
        kept = int(np.count_nonzero(missed > NEGLIGIBLE))  # falls with the place
        missed, place, steps = missed[:kept], place[:kept], steps[:kept]
        curve[k] = ranked[0] + float(np.sum(missed * steps))
    return curve


def judge(space: RecordedSpace, rows: Sequence[int], budget: int, random: RandomSearch) -> Judgement:
    """What evaluating `rows` in this order found; a search that ran out of configs keeps its best to the end."""
    curve = np.minimum.accumulate(space.judged[list(rows)])
    found = np.logical_or.accumulate(~np.isnan(space.costs[list(rows)]))
    reached = {close: np.flatnonzero(found & _reached(curve, space.optimum, close)) for close in CLOSE}
    length = min(len(curve), len(random.best))
    room = random.best[:length] - space.optimum
    scored = room > LEVEL * space.optimum
    gains = (random.best[:length] - curve[:length])[scored] / room[scored]
    return Judgement(
        tuple(float(cost) if any_found else None for cost, any_found in zip(curve, found, strict=True)),
        {close: int(at[0]) + 1 if len(at) else None for close, at in reached.items()},
        share_at(space.optimum / curve, budget),
        float(np.mean(gains)) if len(gains) else None,
    )


def share_at(share: Curve, budget: int) -> dict[int, float]:
    """A curve of optimum / best at the marks within the budget."""
    return {mark: float(share[min(mark, len(share)) - 1]) for mark in MARKS if mark <= budget}


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error, which one value alone has not."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def _reached(costs: Curve, optimum: float, close: float) -> NDArray[np.bool_]:
    return costs <= optimum * (1 + close)


def _missed(n: int, hits: int, draws: int) -> float:
    """The chance that so many draws without replacement from n hold none of the hits."""
    if draws > n - hits:
        return 0.0
    return math.prod((n - hits - k) / (n - k) for k in range(draws))


def _median_draws(n: int, hits: int) -> int:
    """The least number of draws that hold a hit with a chance of one half or more."""
    missed, draws = 1.0, 0
    while missed > 0.5:
        missed *= (n - hits - draws) / (n - draws)
        draws += 1
    return draws
