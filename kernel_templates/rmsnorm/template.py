"""The host's side of rmsnorm: what is computed, what a config launches, what is right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from evoengine.dtypes import Arrays, References, rounded
from evoengine.errors import UserError
from evoengine.space import Values
from evoengine.template import Argument, Launch, Tensor, Work

ENTRY = "evo_rmsnorm"
EPSILON = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class RmsNormProblem:
    """y = w * x / sqrt(mean(x^2) + 1e-6) for each row of an fp16 matrix (rows, hidden).

    Raises:
        UserError: a field is out of range.
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("rows", "hidden")

    rows: int = 4096
    hidden: int = 4096

    def __post_init__(self) -> None:
        if not 1 <= self.rows <= 2**24:
            raise UserError(f"rows={self.rows}: must be from 1 to {2**24}")
        if not 64 <= self.hidden <= 2**16 or self.hidden % 8:  # 8 halves are the widest load, 16 bytes
            raise UserError(f"hidden={self.hidden}: must be a multiple of 8 from 64 to {2**16}")

    @property
    def label(self) -> str:
        return f"R{self.rows}_H{self.hidden}_fp16"

    @property
    def flops(self) -> int:
        return 4 * self.rows * self.hidden

    @property
    def bytes_moved(self) -> int:
        return 2 * (2 * self.rows + 1) * self.hidden


PROBLEM = RmsNormProblem


def defines(values: Values, problem: RmsNormProblem) -> dict[str, int]:
    return {**{f"EVO_{name}": value for name, value in values.items()}, "EVO_HIDDEN": problem.hidden}


def launch(values: Values, problem: RmsNormProblem) -> Launch:
    return Launch((-(-problem.rows // values["ROWS"]), 1, 1), 32 * values["WARPS"] * values["ROWS"], 0)


def grid(values: Values) -> tuple[tuple[str, int, int], ...]:
    """For exported headers: grid dimension as (field, tile, times)."""
    return (("rows", values["ROWS"], 1),)


def tensors(problem: RmsNormProblem) -> list[Tensor]:
    shape = (problem.rows, problem.hidden)
    return [
        Tensor("x", "input", shape, "fp16"),
        Tensor("w", "input", (problem.hidden,), "fp16"),
        Tensor("y", "output", shape, "fp16"),
    ]


def arguments(values: Values, problem: RmsNormProblem) -> list[Argument]:
    pointers = [Argument("tensor", tensor.name) for tensor in tensors(problem)]
    return [*pointers, Argument("int32", problem.rows), Argument("float32", EPSILON)]


def inputs(problem: RmsNormProblem, seed: int) -> Arrays:
    random = np.random.default_rng(seed)
    x = random.standard_normal((problem.rows, problem.hidden), dtype=np.float32)
    w = 1.0 + 0.1 * random.standard_normal(problem.hidden, dtype=np.float32)
    return {"x": rounded(x, "fp16"), "w": rounded(w, "fp16")}


def reference(problem: RmsNormProblem, inputs: Arrays) -> References:
    x = inputs["x"].astype(np.float64)
    return {"y": x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + EPSILON) * inputs["w"]}


def baseline(problem: RmsNormProblem, inputs: Arrays) -> Arrays:
    """As a layer written in PyTorch does it: normalised in fp32, rounded to fp16, times the weight in fp16."""
    x = inputs["x"]
    scale = 1.0 / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + np.float32(EPSILON))
    return {"y": rounded(rounded(x * scale, "fp16") * inputs["w"], "fp16")}


def check_problems(values: Values, problem: RmsNormProblem) -> list[RmsNormProblem]:
    """A last CTA with one row."""
    return [RmsNormProblem(rows=2 * values["ROWS"] + 1, hidden=problem.hidden)]


def small_problems(values: Values, problem: RmsNormProblem) -> list[RmsNormProblem]:
    return [RmsNormProblem(rows=values["ROWS"] + 1, hidden=problem.hidden)]


def work(values: Values, problem: RmsNormProblem) -> Work:
    row_bytes = 2.0 * problem.hidden
    steps = -(-problem.hidden // (32 * values["WARPS"] * values["VECTOR"]))
    return Work(
        tensor_flops=0.0,
        exponentials=0.0,
        l2_bytes=values["ROWS"] * row_bytes * (4 - values["KEEP"]),
        smem_bytes=0.0,
        steps=float(steps),
        compute_warps=values["WARPS"] * values["ROWS"],
        loads_ahead=float(steps),
    )
