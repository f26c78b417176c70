"""The host's side of merge: column sums in parts, with scratch for the parts and a counter of CTAs that are done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from evoengine.dtypes import Arrays, References
from evoengine.space import Values
from evoengine.template import Argument, Launch, Tensor, Work

ENTRY = "evo_merge"
COLUMNS, CTAS = 64, 4
BUGS = (
    "none",
    "leaves its counter",
    "a part is never written",
    "counts before all has been written",
    "one CTA is always the last",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeProblem:
    POSITIONAL: ClassVar[tuple[str, ...]] = ("rows",)

    rows: int = 24

    @property
    def label(self) -> str:
        return f"R{self.rows}"

    @property
    def flops(self) -> int:
        return self.rows * COLUMNS

    @property
    def bytes_moved(self) -> int:
        return 4 * self.rows * COLUMNS


PROBLEM = MergeProblem


def defines(values: Values, problem: MergeProblem) -> dict[str, int]:
    return {"EVO_BUG": values["BUG"]}


def launch(values: Values, problem: MergeProblem) -> Launch:
    return Launch((CTAS, 1, 1), COLUMNS, 0)


def tensors(problem: MergeProblem) -> list[Tensor]:
    return [
        Tensor("x", "input", (problem.rows, COLUMNS), "fp32"),
        Tensor("parts", "scratch", (CTAS, COLUMNS), "fp32"),
        Tensor("count", "scratch", (1,), "int32"),
        Tensor("y", "output", (1, COLUMNS), "fp32"),
    ]


def arguments(values: Values, problem: MergeProblem) -> list[Argument]:
    return [*(Argument("tensor", tensor.name) for tensor in tensors(problem)), Argument("int32", problem.rows)]


def inputs(problem: MergeProblem, seed: int) -> Arrays:
    return {"x": np.random.default_rng(seed).standard_normal((problem.rows, COLUMNS), dtype=np.float32)}


def reference(problem: MergeProblem, inputs: Arrays) -> References:
    return {"y": inputs["x"].astype(np.float64).sum(axis=0, keepdims=True)}


def baseline(problem: MergeProblem, inputs: Arrays) -> Arrays:
    """Row after row, the order in which rounding errors grow fastest."""
    return {"y": np.add.accumulate(inputs["x"], axis=0)[-1:]}


def check_problems(values: Values, problem: MergeProblem) -> list[MergeProblem]:
    return [MergeProblem(rows=7)]


def small_problems(values: Values, problem: MergeProblem) -> list[MergeProblem]:
    return [MergeProblem(rows=24), MergeProblem(rows=7)]


def work(values: Values, problem: MergeProblem) -> Work:
    return Work(0.0, 0.0, 4.0 * problem.rows * COLUMNS / CTAS, 0.0, 1.0, 2)
