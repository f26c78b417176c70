"""What may vary in kernel_templates/rmsnorm."""

from __future__ import annotations

from evoengine.hardware import DeviceLimits
from evoengine.problem import Problem
from evoengine.space import Axis, Rule, SearchSpace, Values


def row_filled(values: Values, problem: Problem, limits: DeviceLimits) -> str | None:
    hidden = problem.hidden  # type: ignore[attr-defined]
    lanes = 32 * values["WARPS"]
    if lanes * values["VECTOR"] <= hidden:
        return None
    return f"{lanes} threads of {values['VECTOR']} halves for {hidden} columns: some would never read"


def row_kept(values: Values, problem: Problem, limits: DeviceLimits) -> str | None:
    hidden = problem.hidden  # type: ignore[attr-defined]
    registers = -(-hidden // (64 * values["WARPS"])) + 32  # two halves each, and 32 for everything else
    if not values["KEEP"] or registers <= limits.registers_per_thread:
        return None
    return f"{hidden} columns in {values['WARPS']} warps take {registers} registers a thread: certain to spill"


SPACE = SearchSpace(
    name="rmsnorm",
    axes=(
        Axis("WARPS", (1, 2, 4, 8, 16), "w", about="warps that share a row"),
        Axis("ROWS", (1, 2, 4, 8), "r", about="rows of a CTA"),
        Axis("VECTOR", (2, 4, 8), "v", about="halves a load: 4, 8 or 16 bytes"),
        Axis("KEEP", (0, 1), "k", about="keep the row in registers, or read it again to scale it"),
    ),
    rules=(
        Rule("row_filled", ("WARPS", "VECTOR"), row_filled),
        Rule("row_kept", ("WARPS", "KEEP"), row_kept),
    ),
    default=dict(WARPS=4, ROWS=1, VECTOR=2, KEEP=0),
)
