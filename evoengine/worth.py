"""What a search was worth: how soon it had its best, what random search would have found, and which knobs mattered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evoengine.archive.records import Record
from evoengine.convergence import Converged, converged, timer_noise
from evoengine.recorded.score import expected_best
from evoengine.sampler import Seen
from evoengine.sampler.hindsight import imagined_times, importance, top_share
from evoengine.space import Axis, FeasibleSet, SearchSpace
from evoengine.verdict import Measurement, is_paid

Floats = NDArray[np.float64]
Searched = Callable[[], tuple[SearchSpace, FeasibleSet]]
"""What was searched, when it is asked for: to enumerate the attention space takes over a second."""

CLOSE = (5, 1)
"""Percent of the search's best within which it is as good as found."""
LEAST_RANDOM = 8
"""Random draws under which they say nothing of random search."""
LEAST_TRIALS = 20
"""Trials with a value under which weights of knobs are chance."""
UNSURE = 0.05
CURVE_POINTS = 48
"""Of random search's expectation over the evaluations, evenly spread on a logarithmic axis."""
IMAGINED = 16
"""Draws from the model; their mean then moves by under 1 % from seed to seed."""
MODEL_ERROR = (0.93, 1.08)
"""Exact expectation over the model's in 95 % of converged searches of recorded spaces, judged as soon as they have
converged; half are within 1.0 %, and 95 % within 3 % after 200 evaluations (studies/LOG.md)."""


def worth(
    records: Sequence[Record],
    elites: int,
    axes: Sequence[Axis],
    searched: Searched | None,
    seed: int,
) -> dict[str, Any] | None:
    """What is known in hindsight, JSON-ready; None where no config has a time.

    Times are medians of the search itself, measured or (`measured` is False) estimated: one scale for all trials, which
    the final run's times are not. `evaluations` are those paid for, and `evaluations_to_N_percent` counts them, in the
    order of proposal, up to the first within N % of the best. `searched` is None where the space has changed since.
    """
    measured = any(isinstance(one.verdict, Measurement) for one in records)
    trials = [one.seen(measures=measured) for one in records]
    done = [one for one in trials if one.state == "done"]
    paid = {one.number for one in records if is_paid(one.verdict, one.twin_of)}
    counted = [one for one in done if one.number in paid]
    best = min((one for one in counted if one.value is not None), key=_time, default=None)
    if best is None:
        return None
    end = converged(trials, timer_noise(one.verdict for one in records if one.verdict and one.twin_of is None))
    return {
        "measured": measured,
        "best_us": best.value,
        "best_trial": best.number,
        "evaluations": len(counted),
        **{f"evaluations_to_{close}_percent": _reached(counted, _time(best) * (1 + close / 100)) for close in CLOSE},
        **per_elite(len(counted), elites),
        "converged": None if end is None else asdict(end),
        "random": random_search(counted, searched, end, seed, measured=measured),
        "knobs": knobs(axes, [one for one in done if one.value is not None]),
    }


def per_elite(evaluations: int, elites: int) -> dict[str, Any]:
    """What `worth` says of confirmed configs."""
    return {"elites": elites, "evaluations_per_elite": evaluations / elites if elites else None}


def random_search(
    counted: Sequence[Seen], searched: Searched | None, end: Converged | None, seed: int, *, measured: bool
) -> dict[str, Any]:
    """What random search is expected to find in as many `evaluations`, and how we know: `basis`.

    `draws`: from the study's own random draws. `best_us` is the bootstrap's expectation, of no more evaluations than
    there are draws, since nobody knows what later ones would have found. A percentile bootstrap of a minimum is no
    interval (at 95 % it holds the truth in half of all cases), so `best_us_95` has an upper end alone, which is exact
    for every distribution of times (`_surely`). Space-filling starts are no random draws: they sit at the edges.

    `model`: nothing was drawn at random, but the search has converged, so its surrogate knows the fast part of the
    space; `best_us_95` spans the errors that such models had on recorded spaces (`MODEL_ERROR`). A model of a search
    that has not converged is no basis: after 60 evaluations it is wrong by up to a half. Nor is one of estimates: what
    they would be elsewhere can be computed, and many are equal.

    None: neither can be had, and `reason` says why.

    `curve` is the expectation after fewer evaluations, as (evaluations, microseconds); its end is `best_us`.
    """
    drawn = [one for one in counted if one.operator == "random"]
    said: dict[str, Any] = {"draws": len(drawn), "evaluations": len(counted), "basis": None}
    said |= {"best_us": None, "best_us_95": None, "curve": []}
    if len(drawn) >= LEAST_RANDOM and any(one.value is not None for one in drawn):
        slowest = max(_time(one) for one in counted if one.value is not None)
        times = np.sort([slowest if one.value is None else one.value for one in drawn])
        count = min(len(counted), len(times))
        curve = [[k, _bootstrapped(times, k)] for k in _spread(count)]
        figures = {"best_us": curve[-1][1], "best_us_95": [None, _surely(times, count)], "curve": curve}
        return {**said, "basis": "draws", "evaluations": count, **figures}
    why = f"{len(drawn)} of its configs were drawn at random, at least {LEAST_RANDOM} are needed"
    if not measured:
        return {**said, "reason": f"{why}, and a model of estimates says nothing of a card"}
    if end is None:
        return {**said, "reason": f"{why}, and its model is not to be asked before the search has converged"}
    if searched is None:
        return {**said, "reason": f"{why}, and the space has changed since, so its model cannot be asked"}
    space, feasible = searched()
    imagined = imagined_times(space, feasible, counted, seed=seed, count=IMAGINED)
    ranked = np.mean([np.sort(times) for times in imagined], axis=0)  # what is expected of them is linear in the times
    mean = expected_best(ranked, len(counted))  # of as many as are imagined at most
    curve = [[k, float(mean[k - 1])] for k in _spread(len(mean))]
    best = curve[-1][1]
    figures = {"best_us": best, "best_us_95": [best * factor for factor in MODEL_ERROR], "curve": curve}
    return {**said, "basis": "model", "evaluations": len(mean), **figures}


def knobs(axes: Sequence[Axis], timed: Sequence[Seen]) -> dict[str, Any]:
    """The weight of every knob, the largest first, over the trials that have a time."""
    said: dict[str, Any] = {"evaluator": "PED-ANOVA", "trials": len(timed), "importance": []}
    if len(timed) < LEAST_TRIALS:
        return {**said, "reason": f"{len(timed)} configs have a time, at least {LEAST_TRIALS} are needed"}
    if len({one.value for one in timed}) == 1:
        return {**said, "reason": "every config has the same time"}
    found = importance(axes, timed)
    ranked = [{"knob": name, "weight": weight} for name, weight in found.items()]
    return {**said, "top_share": top_share(len(timed)), "importance": ranked}


def _spread(count: int) -> list[int]:
    """Evaluations from 1 to `count` at which a curve is drawn."""
    return sorted({round(k) for k in np.geomspace(1, count, CURVE_POINTS)})


def _bootstrapped(times: Floats, count: int) -> float:
    """Expected best of `count` draws with repeats from `times` (ascending): the bootstrap's mean in closed form.

    The i-th fastest of n is the best of k draws with chance ((n-i+1)/n)^k - ((n-i)/n)^k.
    """
    n = len(times)
    left = ((n - np.arange(n + 1)) / n) ** count
    return float(times @ (left[:-1] - left[1:]))


def _surely(times: Floats, count: int) -> float:
    """The time that `count` more draws would reach with 95 % certainty, given `times` (ascending) of n draws before.

    All of the new ones miss the j-th fastest only if the j fastest of n + k exchangeable draws are old: with chance
    n/(n+k) (n-1)/(n+k-1) ... j times. The least such j is taken, and the slowest where there is none.
    """
    n, missed = len(times), 1.0
    for at, time in enumerate(times):
        missed *= (n - at) / (n + count - at)
        if missed <= UNSURE:
            return float(time)
    return float(times[-1])


def _reached(counted: Sequence[Seen], time_us: float) -> int:
    """How many evaluations it took to be at `time_us` or under."""
    return 1 + next(at for at, one in enumerate(counted) if one.value is not None and one.value <= time_us)


def _time(one: Seen) -> float:
    assert one.value is not None, "only trials with a value are compared"
    return one.value
