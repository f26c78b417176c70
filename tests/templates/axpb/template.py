"""The host's side of axpb: a right kernel and fifteen wrong ones that differ in one macro."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from evoengine.dtypes import Arrays, References
from evoengine.space import Values
from evoengine.template import Argument, Launch, Tensor, Work

ENTRY = "evo_axpb"
A, B = 1.5, 0.25
COLUMNS = 32
BUGS = (
    "none",
    "writes nothing",
    "last row unwritten",
    "writes out of bounds",
    "changes its input",
    "differs from launch to launch",
    "never ends",
    "illegal address",
    "wrong by 0.1 %",
    "reads uninitialised shared memory",
    "wrong after 100 launches",
    "asks for too much shared memory",
    "traps",
    "misaligned address",
    "waits for ever at a barrier",
    "wants much local memory",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AxpbProblem:
    POSITIONAL: ClassVar[tuple[str, ...]] = ("rows",)

    rows: int = 4096

    @property
    def label(self) -> str:
        return f"R{self.rows}"

    @property
    def flops(self) -> int:
        return 2 * self.rows * COLUMNS

    @property
    def bytes_moved(self) -> int:
        return 8 * self.rows * COLUMNS


PROBLEM = AxpbProblem


def defines(values: Values, problem: AxpbProblem) -> dict[str, int]:
    return {"EVO_BUG": values["BUG"], "EVO_WORK": values["WORK"]}


def launch(values: Values, problem: AxpbProblem) -> Launch:
    smem_bytes = 2**20 if BUGS[values["BUG"]] == "asks for too much shared memory" else 1024
    return Launch((-(-problem.rows * COLUMNS // 256), 1, 1), 256, smem_bytes)


def tensors(problem: AxpbProblem) -> list[Tensor]:
    shape = (problem.rows, COLUMNS)
    return [Tensor("x", "input", shape, "fp32"), Tensor("y", "output", shape, "fp32")]


def arguments(values: Values, problem: AxpbProblem) -> list[Argument]:
    return [
        Argument("tensor", "x"),
        Argument("tensor", "y"),
        Argument("float32", A),
        Argument("float32", B),
        Argument("int32", problem.rows * COLUMNS),
    ]


def inputs(problem: AxpbProblem, seed: int) -> Arrays:
    return {"x": np.random.default_rng(seed).standard_normal((problem.rows, COLUMNS), dtype=np.float32)}


def reference(problem: AxpbProblem, inputs: Arrays) -> References:
    return {"y": A * inputs["x"].astype(np.float64) + B}


def baseline(problem: AxpbProblem, inputs: Arrays) -> Arrays:
    return {"y": np.float32(A) * inputs["x"] + np.float32(B)}


def check_problems(values: Values, problem: AxpbProblem) -> list[AxpbProblem]:
    return [AxpbProblem(rows=33)]


def small_problems(values: Values, problem: AxpbProblem) -> list[AxpbProblem]:
    return [AxpbProblem(rows=33)]


def work(values: Values, problem: AxpbProblem) -> Work:
    return Work(0.0, 0.0, 8.0 * 256, 2048.0, 1.0, 8)
