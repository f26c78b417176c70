"""Mistakes in template.py: each is told as such, in one line that names the function and what it may give."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from command_line import JOBS, QUESTION, SCALE, make_template, start
from interpreted import compile_ptx

from evoengine.cli import main
from evoengine.declared import DTYPES, KINDS
from evoengine.devices.interpreter import InterpreterDevice
from evoengine.devices.interpreter.trial import Trial
from evoengine.dtypes import BITS, ROUNDING
from evoengine.errors import EvoengineError, TemplateError, UserError
from evoengine.hardware import card
from evoengine.space import Config
from evoengine.template import load_template
from evoengine.verdict import Artifact, Candidate, ResourceUsage

VALUES = {"THREADS": 64, "ITEMS": 2}
RESOURCES = ResourceUsage(32, 0, 0, 0, 256, 0)
REFERENCE = 'ALPHA * inputs["x"].astype(np.float64)'
SMALL = "return [ScaleProblem(n=100)]"
OUTPUT = '"output", (problem.n,), "fp32"'
NO_DTYPE = (
    OUTPUT,
    '"output", (problem.n,), "float32"',
    "output y has the dtype 'float32': must be one of fp16, bf16, fp32",
)
NO_KIND = (
    'Argument("int32", problem.n)',
    'Argument("int", problem.n)',
    "argument 4, {n}, is of kind 'int': must be one of tensor, int32, float32",
)


@pytest.fixture(scope="module")
def ptx() -> str:
    template = load_template(SCALE)
    return compile_ptx(template, VALUES, template.module.PROBLEM())


def mistaken(folder: Path, right: str, wrong: str) -> Path:
    """A template named `mine` that is right but for this."""
    host = make_template(folder) / "template.py" if not folder.exists() else folder / "template.py"
    text = host.read_text()
    assert 1 == text.count(right)
    host.write_text(text.replace(right, wrong))
    return folder


def refused(folder: Path, ptx: str) -> EvoengineError:
    template = load_template(folder)
    with pytest.raises(EvoengineError) as caught:
        Trial(template, template.module.PROBLEM(), card("l4")).judge(VALUES, ptx, RESOURCES)
    return caught.value


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        (REFERENCE, 'ALPHA * inputs["X"]', "mine/template.py:66: reference fails: KeyError: 'X'"),
        (SMALL, "return [ScaleProblem(m=100)]", r"mine/template.py:78: small_problems fails: TypeError: .*'m'"),
        (SMALL, "return []", "mine/template.py: small_problems gives none for this config: .*"),
        ("inputs: Arrays) -> References", ") -> References", "mine/template.py: reference fails: TypeError: .*"),
        # the line is that of the helper, the name that of the member that called it
        (
            f'return {{"y": {REFERENCE}}}',
            "return truth()\n\n\ndef truth() -> None:\n    1 // 0",
            "mine/template.py:70: reference fails: ZeroDivisionError: .*",
        ),
    ],
)
def test_what_fails_in_it_is_told_with_its_line(tmp_path: Path, ptx: str, right: str, wrong: str, told: str) -> None:
    error = refused(mistaken(tmp_path / "mine", right, wrong), ptx)

    assert isinstance(error, TemplateError)
    assert re.fullmatch(told, str(error)), error


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        (NO_DTYPE[0], NO_DTYPE[1], f"tensors: {NO_DTYPE[2]}"),
        (
            OUTPUT,
            OUTPUT.replace("fp32", "int32"),
            "tensors: output y has the dtype 'int32': must be one of fp16, bf16, fp32",
        ),
        (
            OUTPUT,
            OUTPUT.replace("output", "out"),
            "tensors: y has the role 'out': must be one of input, output, scratch",
        ),
        (NO_KIND[0], NO_KIND[1], f"arguments: {NO_KIND[2].format(n=100)}"),
        (
            'Argument("tensor", "y")',
            'Argument("tensor", "z")',
            "arguments: argument 2 is the tensor 'z': must be one of x, y",
        ),
        ('Argument("float32", ALPHA),', "", "arguments gives 3, but evo_scale in kernel.cu has 4 parameters"),
        (NO_KIND[0], f"{NO_KIND[0]}, {NO_KIND[0]}", "arguments gives 5, but evo_scale in kernel.cu has 4 parameters"),
        (
            REFERENCE,
            'np.float32(ALPHA) * inputs["x"]',
            "reference gives y in float32: must be float64, which is the truth here",
        ),
        (REFERENCE, f"({REFERENCE})[:, None]", "reference gives y of shape (100, 1): its tensor has (100,)"),
        (f'{{"y": {REFERENCE}', f'{{"Y": {REFERENCE}', "reference does not give the output y"),
        ('{"y": np.float32', '{"Y": np.float32', "baseline does not give the output y"),
        ('{"x": np.random', '{"X": np.random', "inputs does not give the input x"),
    ],
)
def test_what_it_gives_and_may_not_is_told(tmp_path: Path, ptx: str, right: str, wrong: str, told: str) -> None:
    error = refused(mistaken(tmp_path / "mine", right, wrong), ptx)

    assert isinstance(error, TemplateError)
    assert f"mine/template.py: {told}" == str(error)


@pytest.mark.parametrize(
    ("right", "wrong", "kind", "told"),
    [
        (REFERENCE, 'ALPHA * inputs["X"]', TemplateError, "mine/template.py:66: reference fails: KeyError: 'X'"),
        (
            "np.float32(ALPHA) * inputs",
            "np.float32(np.nan) * inputs",
            UserError,
            "the baseline of y is not finite at N100",
        ),
    ],
)
def test_a_workers_error_arrives_as_it_was(
    tmp_path: Path, ptx: str, right: str, wrong: str, kind: type[EvoengineError], told: str
) -> None:
    template = load_template(mistaken(tmp_path / "mine", right, wrong))
    (tmp_path / "kernel.ptx").write_text(ptx)
    artifact = Artifact("digest", tmp_path, "0" * 64, RESOURCES, 0.1, "nvrtc 13.0", "sm_89")
    candidate = Candidate(-1, Config(tuple(VALUES.items()), "t_64"), "start")
    device = InterpreterDevice(template, template.module.PROBLEM(), card("l4"), jobs=1)
    try:
        with pytest.raises(EvoengineError) as caught:
            list(device.judge([(candidate, artifact)]))
    finally:
        device.close()

    assert kind is type(caught.value)
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


def test_a_search_ends_with_that_line(folder: Path) -> None:
    mistaken(folder / "mine", REFERENCE, 'ALPHA * inputs["X"]')
    search = start(folder, "search", *QUESTION, *JOBS, "--budget", "2", "--quiet")
    _, said = search.communicate(timeout=120)

    assert 1 == search.returncode
    assert "evoengine: mine/template.py:66: reference fails: KeyError: 'X'\n" == said


@pytest.mark.parametrize(
    ("mistake", "who"), [(NO_DTYPE, "tensors"), (NO_KIND, "arguments")], ids=["a dtype", "a kind of argument"]
)
def test_what_does_not_exist_is_told_before_anything_is_built(
    folder: Path, capsys: pytest.CaptureFixture[str], mistake: tuple[str, str, str], who: str
) -> None:
    """Whether or not there is a card."""
    mistaken(folder / "mine", *mistake[:2])

    assert 1 == main(["space", *QUESTION])
    assert f"evoengine: mine/template.py: {who}: {mistake[2].format(n=1000)}\n" == capsys.readouterr().err


def test_the_names_are_those_that_can_be_read_and_are_documented() -> None:
    assert tuple(ROUNDING) == DTYPES["input"] == DTYPES["output"]
    assert tuple(BITS) == DTYPES["scratch"]
    told = (Path(__file__).parent.parent / "docs" / "your-kernel.md").read_text()
    assert [] == [name for name in (*BITS, *KINDS, *DTYPES) if f"`{name}`" not in told]
