"""What runs were worth: per space over seeds, and over several spaces with the spread over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evoengine.recorded.score import CLOSE, MARKS, RandomSearch, judge, mean_and_error
from evoengine.recorded.space import RecordedSpace


@dataclass(frozen=True, slots=True)
class Figures:
    """One run: % of the optimum after each evaluation, score over random, evaluations to 5 % and 1 % (None: never)."""

    percent: NDArray[np.float64]
    score: float
    reached: Mapping[float, int | None]


def figures(space: RecordedSpace, rows: Sequence[int], budget: int, random: RandomSearch) -> Figures:
    """`rows` judged; a search that stopped by itself keeps its best to the end of the budget."""
    rows = [*rows, *([rows[-1]] * (budget - len(rows)))]
    found = judge(space, rows, budget, random)
    percent = 100 * space.optimum / np.minimum.accumulate(space.judged[rows])
    return Figures(percent, 0.0 if found.score is None else found.score, found.evaluations)


def of_space(runs: Sequence[Figures]) -> dict[str, Any]:
    """Means over seeds and standard errors; evaluations to get close are medians, None where half the runs do not."""
    return {
        "runs": len(runs),
        **_over_seeds([[one] for one in runs]),
        **{
            f"median_evaluations_to_{percent_name(close)}": _median([one.reached[close] for one in runs])
            for close in CLOSE
        },
    }


def over_spaces(runs: Mapping[int, Sequence[Figures]]) -> dict[str, Any]:
    """`runs` are, per seed, one of every space: means over spaces, then mean and standard error over seeds."""
    return {"seeds": len(runs), **_over_seeds(list(runs.values()))}


def curve(runs: Mapping[int, Sequence[Figures]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """% of the optimum after each evaluation, as `over_spaces` has it: mean, and standard error (0 for one seed)."""
    each = np.array([np.mean([one.percent for one in ran], axis=0) for ran in runs.values()])
    error = each.std(axis=0, ddof=1) / math.sqrt(len(each)) if len(each) > 1 else np.zeros(each.shape[1])
    return each.mean(axis=0), error


def _over_seeds(runs: Sequence[Sequence[Figures]]) -> dict[str, Any]:
    marks = [mark for mark in MARKS if mark <= len(runs[0][0].percent)]
    return {
        "percent_of_optimum": {
            str(mark): _mean([[float(one.percent[mark - 1]) for one in ran] for ran in runs]) for mark in marks
        },
        "score_over_random": _mean([[one.score for one in ran] for ran in runs]),
        **{
            f"percent_within_{percent_name(close)}": _mean(
                [[100.0 * (one.reached[close] is not None) for one in ran] for ran in runs]
            )
            for close in CLOSE
        },
    }


def _mean(values: Sequence[Sequence[float]]) -> dict[str, float | None]:
    """Of `values` by seed and space: means over spaces, then mean and standard error over seeds."""
    mean, error = mean_and_error([math.fsum(of_seed) / len(of_seed) for of_seed in values])
    return {"mean": round(mean, 4), "standard_error": None if error is None else round(error, 4)}


def _median(counts: Sequence[int | None]) -> float | None:
    median = statistics.median(math.inf if count is None else count for count in counts)
    return median if math.isfinite(median) else None


def percent_name(close: float) -> str:
    return f"{round(100 * close)}_percent"
