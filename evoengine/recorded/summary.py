"""Searches of a recorded space as one JSON document: what `--json` prints and what the tables are drawn from."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from evoengine.recorded.replay import Trace
from evoengine.recorded.score import (
    CLOSE,
    MARKS,
    Judgement,
    RandomSearch,
    judge,
    mean_and_error,
    random_search,
    share_at,
)
from evoengine.recorded.space import RecordedSpace


def summarise(space: RecordedSpace, traces: Sequence[Trace], budget: int) -> dict[str, Any]:
    """`space`, exact `random` search, every one of `runs`, and `over_runs` means with their standard errors.

    Costs are true ones in `space.unit`, whatever the sampler was told. `picked` follows the config that measured best
    so far, which is what a search without a final run would hand over: under noise it trails `best_so_far`.
    `gap_percent` is how far that one is from the optimum at the end, `random_gap_percent` how far random search is
    expected to be after as many evaluations. `converged` says why a run stopped before its budget was spent.
    """
    random = random_search(space, budget)
    judged = [judge(space, trace.rows, budget, random) for trace in traces]
    runs = [_run(space, trace, one, budget, random) for trace, one in zip(traces, judged, strict=True)]
    return {
        "space": describe(space),
        "budget": budget,
        "random": _random(random, budget),
        "runs": runs,
        "over_runs": _over_runs(runs, judged, budget),
    }


def describe(space: RecordedSpace) -> dict[str, Any]:
    """What was recorded, JSON-ready."""
    return {
        "name": space.name,
        "source": space.source,
        "device": space.device,
        "objective": space.objective,
        "unit": space.unit,
        "is_rate": space.is_rate,
        "axes": {axis.name: [axis.show(choice) for choice in axis.choices] for axis in space.axes},
        "constants": dict(space.constants),
        "product": space.search_space.product,
        "configs": len(space),
        "failures": dict(space.failures),
        "duplicates": space.duplicates,
        "cut": space.cut,
        "optimum": space.optimum,
        "optimum_config": space.label(int(np.nanargmin(space.costs))),
    }


def _run(space: RecordedSpace, trace: Trace, one: Judgement, budget: int, random: RandomSearch) -> dict[str, Any]:
    picked = [None if row is None else float(space.costs[row]) for row in trace.picked]
    worst = float(np.nanmax(space.costs))
    found = sorted((row for row in trace.rows if not np.isnan(space.costs[row])), key=lambda row: space.costs[row])
    share = np.array([space.optimum / (worst if cost is None else cost) for cost in picked])
    handed = worst if picked[-1] is None else picked[-1]
    return {
        "seed": trace.seed,
        "evaluations": len(trace.rows),
        "converged": None if trace.converged is None else asdict(trace.converged),
        "gap_percent": 100 * (handed / space.optimum - 1),
        "random_gap_percent": 100 * (float(random.best[len(trace.rows) - 1]) / space.optimum - 1),
        "failed": sum(value is None for value in trace.told),
        "free": dict(trace.free),
        "best_so_far": list(one.best),
        "best_config": space.label(found[0]) if found else None,
        **{f"evaluations_to_{_percent(close)}": count for close, count in one.evaluations.items()},
        "percent_of_optimum": _percents(one.share),
        "score_over_random": one.score,
        "picked": picked,
        "picked_percent_of_optimum": _percents(share_at(share, budget)),
    }


def _random(random: RandomSearch, budget: int) -> dict[str, Any]:
    return {
        "best_so_far": [float(cost) for cost in random.best],
        "percent_of_optimum": _percents(share_at(random.share, budget)),
        **{f"median_evaluations_to_{_percent(close)}": draws for close, draws in random.draws.items()},
        **{f"within_{_percent(close)}": chance for close, chance in random.within.items()},
    }


def _over_runs(runs: Sequence[dict[str, Any]], judged: Sequence[Judgement], budget: int) -> dict[str, Any]:
    marks = [str(mark) for mark in MARKS if mark <= budget]
    scores = [one.score for one in judged if one.score is not None]
    return {
        "converged": sum(run["converged"] is not None for run in runs),
        "median_evaluations": statistics.median(run["evaluations"] for run in runs),
        "median_gap_percent": statistics.median(run["gap_percent"] for run in runs),
        "gap_percent": _mean([run["gap_percent"] for run in runs]),
        "random_gap_percent": _mean([run["random_gap_percent"] for run in runs]),
        "score_over_random": _mean(scores) if scores else None,
        **{
            name: {mark: _mean([run[name][mark] for run in runs]) for mark in marks}
            for name in ("percent_of_optimum", "picked_percent_of_optimum")
        },
        **{
            f"within_{_percent(close)}": sum(one.evaluations[close] is not None for one in judged) / len(judged)
            for close in CLOSE
        },
        **{
            f"median_evaluations_to_{_percent(close)}": _median([one.evaluations[close] for one in judged])
            for close in CLOSE
        },
    }


def _median(counts: Sequence[int | None]) -> float | None:
    """A run that did not get there counts as never; None where that is the median."""
    median = statistics.median(math.inf if count is None else count for count in counts)
    return median if math.isfinite(median) else None


def _mean(values: Sequence[float]) -> dict[str, float | None]:
    mean, error = mean_and_error(values)
    return {"mean": mean, "standard_error": error}


def _percents(share: dict[int, float]) -> dict[str, float]:
    return {str(mark): 100 * value for mark, value in share.items()}


def _percent(close: float) -> str:
    return f"{round(100 * close)}_percent"
