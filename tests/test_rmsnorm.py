"""The second shipped template, the one that docs/your-kernel.md walks through: every choice is right and alive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from interpreted import compile_ptx

from evoengine.devices.interpreter.trial import Trial
from evoengine.dtypes import ROUNDING
from evoengine.errors import UserError
from evoengine.gates import Ceilings, hardware_rules, static_gate
from evoengine.hardware import card
from evoengine.space import Values, load_space
from evoengine.template import Template, load_template, shipped
from evoengine.verdict import Estimate, Gate, Rejection, ResourceUsage

FOLDER = shipped("kernel_templates") / "rmsnorm"
TEMPLATE = load_template(FOLDER)
SPACE = load_space(shipped("search_spaces") / "rmsnorm.py")
PROBLEM = TEMPLATE.module.PROBLEM(rows=64, hidden=520)  # type: ignore[call-arg]  # 520: no width divides into its steps
L4 = card("l4")
CHOICES = [(axis.name, choice) for axis in SPACE for choice in axis.choices]


def judge(template: Template, values: Values) -> Estimate | Rejection:
    usage = ResourceUsage(64, 0, 0, 0, 0, 0)
    return Trial(template, PROBLEM, L4).judge(values, compile_ptx(template, values, PROBLEM), usage)


def refusal(values: Values) -> Rejection | None:
    hardware = hardware_rules(TEMPLATE, tuple(axis.name for axis in SPACE), Ceilings())
    return static_gate(SPACE, hardware, values, PROBLEM, L4)


@pytest.mark.parametrize(("axis", "choice"), CHOICES)
def test_every_choice_is_right(axis: str, choice: int) -> None:
    values = {**SPACE.default, axis: choice}
    if refusal(values) is not None:
        values["VECTOR"] = 2  # 520 columns are too few for 16 warps of wider loads
    if axis == "WARPS" and choice == 16:
        assert refusal(values) is not None
        return

    assert refusal(values) is None
    verdict = judge(TEMPLATE, values)
    assert isinstance(verdict, Estimate), verdict.reason


def test_every_knob_changes_the_code() -> None:
    codes = {}
    for axis, choice in CHOICES:
        codes.setdefault(axis, set()).add(compile_ptx(TEMPLATE, {**SPACE.default, axis: choice}, PROBLEM))

    assert {axis.name: len(axis.choices) for axis in SPACE} == {axis: len(found) for axis, found in codes.items()}


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("* scale *", "* scale * 1.01f *"),
        ("sum / EVO_HIDDEN", "sum / (EVO_HIDDEN - 1)"),
        ("if (row >= rows || column", "if (column"),
        ("    __syncthreads();\n", ""),
        ("offset = 16", "offset = 8"),
    ],
)
def test_a_planted_bug_is_caught(tmp_path: Path, right: str, wrong: str) -> None:
    source = TEMPLATE.kernel.read_text()
    folder = tmp_path / "rmsnorm"
    folder.mkdir()
    (folder / "template.py").write_bytes((FOLDER / "template.py").read_bytes())
    (folder / "kernel.cu").write_text(source.replace(right, wrong))
    assert right in source
    verdict = judge(load_template(folder), {**SPACE.default, "ROWS": 2})

    assert isinstance(verdict, Rejection)
    assert verdict.gate in (Gate.CORRECTNESS, Gate.RUNTIME)


def test_the_reference_is_the_formula() -> None:
    inputs = TEMPLATE.module.inputs(PROBLEM, 3)
    truth = TEMPLATE.module.reference(PROBLEM, inputs)["y"]
    baseline = TEMPLATE.module.baseline(PROBLEM, inputs)["y"]
    row = inputs["x"][5].astype(np.float64)

    np.testing.assert_allclose(inputs["w"] * row / np.sqrt((row @ row) / row.size + 1e-6), truth[5], rtol=1e-12, atol=0)
    assert 0 < np.abs(baseline / truth - 1).max() < 4 * ROUNDING["fp16"]


@pytest.mark.parametrize("fields", [{"rows": 0}, {"hidden": 12}, {"hidden": 8}, {"hidden": 2**17}])
def test_a_shape_out_of_range_is_refused(fields: dict[str, int]) -> None:
    with pytest.raises(UserError, match="must be"):
        TEMPLATE.module.PROBLEM(**fields)
