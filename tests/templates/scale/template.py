"""The host's side of scale: a template that compiles in 30 ms, for tests of everything around a kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from evoengine.dtypes import Arrays, References
from evoengine.space import Values
from evoengine.template import Argument, Launch, Tensor, Work

ENTRY = "evo_scale"
ALPHA = 2.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleProblem:
    POSITIONAL: ClassVar[tuple[str, ...]] = ("n",)

    n: int = 1000

    @property
    def label(self) -> str:
        return f"N{self.n}"

    @property
    def flops(self) -> int:
        return self.n

    @property
    def bytes_moved(self) -> int:
        return 8 * self.n


PROBLEM = ScaleProblem


def defines(values: Values, problem: ScaleProblem) -> dict[str, int]:
    return {"EVO_THREADS": values["THREADS"], "EVO_ITEMS": values["ITEMS"]}


def launch(values: Values, problem: ScaleProblem) -> Launch:
    return Launch((-(-problem.n // (values["THREADS"] * values["ITEMS"])), 1, 1), values["THREADS"], 0)


def tensors(problem: ScaleProblem) -> list[Tensor]:
    return [Tensor("x", "input", (problem.n,), "fp32"), Tensor("y", "output", (problem.n,), "fp32")]


def arguments(values: Values, problem: ScaleProblem) -> list[Argument]:
    return [
        Argument("tensor", "x"),
        Argument("tensor", "y"),
        Argument("float32", ALPHA),
        Argument("int32", problem.n),
    ]


def inputs(problem: ScaleProblem, seed: int) -> Arrays:
    return {"x": np.random.default_rng(seed).standard_normal(problem.n, dtype=np.float32)}


def reference(problem: ScaleProblem, inputs: Arrays) -> References:
    return {"y": ALPHA * inputs["x"].astype(np.float64)}


def baseline(problem: ScaleProblem, inputs: Arrays) -> Arrays:
    return {"y": np.float32(ALPHA) * inputs["x"]}


def check_problems(values: Values, problem: ScaleProblem) -> list[ScaleProblem]:
    return [ScaleProblem(n=problem.n + 1)]


def small_problems(values: Values, problem: ScaleProblem) -> list[ScaleProblem]:
    return [ScaleProblem(n=100)]


def work(values: Values, problem: ScaleProblem) -> Work:
    return Work(
        0.0, 0.0, 8.0 * values["THREADS"] * values["ITEMS"], 0.0, float(values["ITEMS"]), values["THREADS"] // 32
    )
