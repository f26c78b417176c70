"""What the PTX interpreter says of kernels, on every core."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache

from benchmarks.trust.planted.mutant import TEMPLATE
from evoengine.devices.interpreter import Unsupported
from evoengine.devices.interpreter.trial import Trial
from evoengine.hardware import card
from evoengine.problem import AttentionProblem
from evoengine.space import Values
from evoengine.verdict import Artifact, Estimate, Rejection

Case = tuple[Values, AttentionProblem, Artifact]
Interpreted = Rejection | Estimate | Unsupported
"""A verdict, or the exception at which a search without a GPU stops."""


@cache
def _trial(problem: AttentionProblem) -> Trial:
    """One a process and problem, which keeps its input sets."""
    return Trial(TEMPLATE, problem, card("l4"))


def _judge(values: Values, problem: AttentionProblem, artifact: Artifact) -> Interpreted:
    try:
        return _trial(problem).judge(values, artifact.ptx.read_text(), artifact.resources)
    except Unsupported as unsupported:
        return unsupported


def interpret(cases: Sequence[Case]) -> list[Interpreted]:
    """The interpreter's verdict on each case, in order, under the original template."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=context) as pool:
        return list(pool.map(_judge, *zip(*cases, strict=True)))
