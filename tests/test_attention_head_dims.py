"""Every head_dim of the attention template: right in the interpreter, and read from shared memory without conflicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from interpreted import compile_ptx

from evoengine.devices.interpreter import collectives
from evoengine.devices.interpreter.trial import Trial
from evoengine.gates import Ceilings, hardware_rules, static_gate
from evoengine.hardware import card
from evoengine.problem import AttentionProblem
from evoengine.space import Values, load_space
from evoengine.template import load_template, shipped
from evoengine.verdict import Estimate, ResourceUsage

TEMPLATE = load_template(shipped("kernel_templates") / "attention")
SPACE = load_space(shipped("search_spaces") / "attention.py")
HARDWARE = hardware_rules(TEMPLATE, tuple(axis.name for axis in SPACE), Ceilings())
L4 = card("l4")
ONE_WARP = {**SPACE.default, "WARPS_M": 1, "BLOCK_N": 16, "STAGES": 1}

CASES: list[tuple[int, Values, bool]] = [
    (32, ONE_WARP, True),
    # 12 chunks a row and 32 or 64 loaders: a thread is back in its column after three copies
    (96, {**ONE_WARP, "PRODUCER_WARPS": 2}, False),
    (96, {**ONE_WARP, "PRODUCER_WARPS": 1, "BLOCK_N": 32, "WARPS_KV": 2}, True),
    (256, {**ONE_WARP, "Q_IN_REGS": 0}, False),
]


@pytest.fixture
def matrices(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray[Any, Any]]:
    """Shared addresses that ldmatrix is given, eight rows of a matrix to a line, as the interpreter meets them."""
    seen: list[np.ndarray[Any, Any]] = []
    locate = collectives.locate

    def recorded(state: Any, space: str, addresses: Any, *rest: Any) -> Any:
        seen.append(np.asarray(addresses).reshape(-1, 8))
        return locate(state, space, addresses, *rest)

    monkeypatch.setattr(collectives, "locate", recorded)
    return seen


@pytest.mark.parametrize(("head_dim", "values", "causal"), CASES)
def test_a_head_dim_is_right_and_its_rows_spread_over_the_banks(
    matrices: list[np.ndarray[Any, Any]], head_dim: int, values: Values, causal: bool
) -> None:
    problem = AttentionProblem(head_dim=head_dim, causal=causal)
    verdict = Trial(TEMPLATE, problem, L4).judge(
        values, compile_ptx(TEMPLATE, values, problem), ResourceUsage(128, 0, 0, 0, 0, 0)
    )
    columns = np.concatenate(matrices) // 16 % 8  # 16 bytes are four banks of 32
    worst = max(int(np.bincount(row, minlength=8).max()) for row in np.unique(np.sort(columns), axis=0))

    assert isinstance(verdict, Estimate), verdict.reason
    assert static_gate(SPACE, HARDWARE, values, problem, L4) is None
    assert 1 == worst
