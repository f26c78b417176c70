"""What one replayed search was worth, and what many were: the figures that the benchmarks of the sampler share."""

from __future__ import annotations

import math
import multiprocessing
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

from evoengine.recorded.replay import Trace
from evoengine.recorded.score import RandomSearch, judge, mean_and_error
from evoengine.recorded.space import RecordedSpace

BUDGET = 200

Figures = Mapping[str, float]
Task = TypeVar("Task")
Result = TypeVar("Result")


def in_processes(work: Callable[[Task], Result], tasks: Iterable[Task], jobs: int) -> Iterator[Result]:
    """The result of every task in order, `jobs` at a time, each in a process with one BLAS thread."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read by numpy when a new process imports it
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, tasks)


def figures(space: RecordedSpace, random: RandomSearch, trace: Trace) -> dict[str, float]:
    """One search, judged by true costs of the config that measured best; `to_1` infinite where it never was so near."""
    rows = [trace.rows[0] if row is None else row for row in trace.picked]
    found = judge(space, rows, BUDGET, random)
    assert found.score is not None, "no recorded space is flat"
    return {
        **{f"at_{mark}": 100 * share for mark, share in found.share.items()},
        "score": found.score,
        **{f"within_{100 * close:.0f}": 100.0 * (at is not None) for close, at in found.evaluations.items()},
        "to_1": float(found.evaluations[0.01] or math.inf),
    }


def spread(runs: Sequence[Sequence[Figures]]) -> dict[str, Any]:
    """Mean and standard error over seeds of the mean over spaces; `runs` are per seed, then per space. Of `to_1`, the
    evaluations to within 1 %, the median over all; null where half of the searches came not so close."""
    table: dict[str, Any] = {}
    for name in (name for name in runs[0][0] if name != "to_1"):
        mean, error = mean_and_error([math.fsum(one[name] for one in seed) / len(seed) for seed in runs])
        table[name] = [round(mean, 3), round(error or 0.0, 3)]
    median = statistics.median(one["to_1"] for seed in runs for one in seed)
    return {**table, "median_to_1": median if math.isfinite(median) else None}
