"""What a proposal takes after so many trials in so large a space, in a process of its own."""

from __future__ import annotations

import json
import statistics
import sys
import time

from benchmarks.growth.memory import peak_mb
from benchmarks.growth.spaces import latency_us, space
from evoengine.hardware import card
from evoengine.problem import AttentionProblem
from evoengine.sampler import Seen
from evoengine.sampler.proposer import Proposer

PROPOSALS = 24
"""Measured one at a time, each told before the next: with 10,000 trials behind them one falls on a new fit."""


def measure(size: int, trials: int, tied: bool) -> dict[str, object]:
    """Milliseconds and megabytes."""
    grown = space(size, tied=tied)
    started = time.perf_counter()
    feasible = grown.feasible(AttentionProblem(), card("l4"))
    listed = time.perf_counter()
    draws = Proposer(grown, feasible, sampler="random", seed=7)
    points = [one.point for one in draws.propose(trials)]
    history = [Seen(number, point, latency_us(point), "done", "random") for number, point in enumerate(points)]
    begun = time.perf_counter()
    proposer = Proposer(grown, feasible, sampler="evolution", seed=7)
    proposer.observe(history)
    (first,) = proposer.propose(1)
    resumed = time.perf_counter()
    taken = []
    for number in range(trials, trials + PROPOSALS):
        proposer.observe([Seen(number, first.point, latency_us(first.point), "done", first.operator)])
        asked = time.perf_counter()
        (first,) = proposer.propose(1)
        taken.append(1e3 * (time.perf_counter() - asked))
    return {
        "feasible": len(feasible.points),
        "tied": tied,
        "trials": trials,
        "list_ms": 1e3 * (listed - started),
        "resume_ms": 1e3 * (resumed - begun),
        "propose_ms": statistics.median(taken),
        "propose_mean_ms": statistics.fmean(taken),
        "propose_max_ms": max(taken),
        "peak_mb": peak_mb(),
    }


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "tied")))
