"""The host's side of unseen: right outputs, and what only compute-sanitizer can find behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from evoengine.dtypes import Arrays, References
from evoengine.space import Values
from evoengine.template import Argument, Launch, Tensor, Work

ENTRY = "evo_unseen"
BUGS = (
    "none",
    "reads out of bounds",
    "reads what nobody wrote",
    "lacks a barrier",
    "none, with a named barrier",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnseenProblem:
    POSITIONAL: ClassVar[tuple[str, ...]] = ("n",)

    n: int = 4096

    @property
    def label(self) -> str:
        return f"N{self.n}"

    @property
    def flops(self) -> int:
        return self.n

    @property
    def bytes_moved(self) -> int:
        return 8 * self.n


PROBLEM = UnseenProblem


def defines(values: Values, problem: UnseenProblem) -> dict[str, int]:
    return {"EVO_BUG": values["BUG"]}


def launch(values: Values, problem: UnseenProblem) -> Launch:
    return Launch((-(-problem.n // 256), 1, 1), 256, 0)


def tensors(problem: UnseenProblem) -> list[Tensor]:
    return [Tensor("x", "input", (problem.n,), "fp32"), Tensor("y", "output", (problem.n,), "fp32")]


def arguments(values: Values, problem: UnseenProblem) -> list[Argument]:
    return [Argument("tensor", "x"), Argument("tensor", "y"), Argument("int32", problem.n)]


def inputs(problem: UnseenProblem, seed: int) -> Arrays:
    return {"x": np.random.default_rng(seed).standard_normal(problem.n, dtype=np.float32)}


def reference(problem: UnseenProblem, inputs: Arrays) -> References:
    return {"y": 2.0 * inputs["x"].astype(np.float64)}


def baseline(problem: UnseenProblem, inputs: Arrays) -> Arrays:
    return {"y": np.float32(2.0) * inputs["x"]}


def check_problems(values: Values, problem: UnseenProblem) -> list[UnseenProblem]:
    return [UnseenProblem(n=problem.n - 1)]


def small_problems(values: Values, problem: UnseenProblem) -> list[UnseenProblem]:
    return [UnseenProblem(n=1000), UnseenProblem(n=256)]


def work(values: Values, problem: UnseenProblem) -> Work:
    return Work(0.0, 0.0, 8.0 * 256, 2048.0, 1.0, 8)
