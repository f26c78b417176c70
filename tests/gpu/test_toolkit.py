"""compute-sanitizer and Nsight Compute for real, on kernels whose faults are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from evoengine.bottleneck import Figures, diagnose
from evoengine.build import Builder, BuildRequest
from evoengine.devices.cuda import CudaDevice, find_gpu, ncu
from evoengine.devices.cuda.bare import Job
from evoengine.devices.cuda.sanitizer import PROGRAM, TOOLS, Report, Sanitizer, Tool
from evoengine.devices.cuda.watched import find_tool
from evoengine.errors import UserError
from evoengine.hardware import DeviceLimits
from evoengine.problem import Problem, problem_fields
from evoengine.space import Config, Values, load_space
from evoengine.template import Template, load_template, shipped
from evoengine.verdict import Artifact, Candidate, Gate, Rejection

pytestmark = pytest.mark.gpu

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
needs_ncu = pytest.mark.skipif(find_tool(ncu.PROGRAM) is None, reason=f"no {ncu.PROGRAM} on PATH")
needs_sanitizer = pytest.mark.skipif(find_tool(PROGRAM) is None, reason=f"no {PROGRAM} on PATH")


@pytest.fixture(scope="module")
def limits() -> DeviceLimits:
    found = find_gpu()
    assert found is not None, "marked gpu: skipped where there is none"
    return found


class Kernels:
    """A template's kernels by the name of their bug."""

    def __init__(self, name: str, limits: DeviceLimits) -> None:
        self.template: Template = load_template(TEMPLATES / name)
        self.problem = self.template.module.PROBLEM()
        self._builder = Builder(self.template, limits.arch)

    def values(self, bug: str) -> dict[str, int]:
        bugs: tuple[str, ...] = self.template.module.BUGS  # type: ignore[attr-defined]
        return {"BUG": bugs.index(bug), "WORK": 1}

    def build(self, bug: str, work: int = 1) -> Artifact:
        module, values = self.template.module, {**self.values(bug), "WORK": work}
        defines, launch = module.defines(values, self.problem), module.launch(values, self.problem)
        (built,) = self._builder.build([BuildRequest(defines, launch.smem_bytes)])
        assert isinstance(built, Artifact), built
        return built

    def check(self, tool: Tool, bug: str) -> Report:
        executable = find_tool(PROGRAM)
        assert executable is not None, "skipped without"
        built, values = self.build(bug), self.values(bug)
        problems = self.template.module.small_problems(values, self.problem)
        return Sanitizer(executable, self.template, 0, 1).check(
            tool, built.cubin, values, problems, built.ptx.read_text()
        )


@pytest.fixture(scope="module")
def unseen(limits: DeviceLimits) -> Kernels:
    return Kernels("unseen", limits)


@pytest.fixture(scope="module")
def axpb(limits: DeviceLimits) -> Kernels:
    return Kernels("axpb", limits)


@needs_sanitizer
@pytest.mark.parametrize("tool", TOOLS)
def test_a_right_kernel_is_clean(unseen: Kernels, tool: Tool) -> None:
    found = unseen.check(tool, "none")

    assert f"{tool}: clean" == found.line
    assert ("N1000", "N256") == found.problems


@needs_sanitizer
@pytest.mark.parametrize(
    ("bug", "tool", "gate", "words"),
    [
        (
            "reads out of bounds",
            "memcheck",
            Gate.RUNTIME,
            ("read of size 4", "evo_unseen", "past the end of x of N1000"),
        ),
        ("reads what nobody wrote", "initcheck", Gate.CORRECTNESS, ("evo_unseen", "of y of N1000")),
        ("lacks a barrier", "racecheck", Gate.CORRECTNESS, ("Race reported", "evo_unseen")),
    ],
)
def test_what_no_output_shows_is_found(
    unseen: Kernels, bug: str, tool: Tool, gate: Gate, words: tuple[str, ...]
) -> None:
    found = unseen.check(tool, bug)
    rejection = found.rejection()

    assert rejection is not None, found
    assert gate == rejection.gate
    assert [] == [word for word in words if word not in rejection.reason], rejection.reason


@needs_sanitizer
def test_what_synccheck_says_of_a_named_barrier_is_no_verdict(unseen: Kernels) -> None:
    found = unseen.check("synccheck", "none, with a named barrier")

    assert "" != found.doubt
    assert None is found.rejection()
    assert "" == found.unfinished


@needs_sanitizer
def test_a_store_beyond_a_buffer_is_found_in_the_padding(axpb: Kernels) -> None:
    found = axpb.check("memcheck", "writes out of bounds")

    assert "write of size 4" in found.line
    assert "0 B past the end of y of R33" in found.line


@needs_sanitizer
def test_the_first_fault_of_a_run_is_explained(axpb: Kernels, limits: DeviceLimits) -> None:
    def work(bug: str, number: int) -> tuple[Candidate, Artifact]:
        return Candidate(number, Config(tuple(axpb.values(bug).items()), bug), "random"), axpb.build(bug)

    with CudaDevice(axpb.template, axpb.problem, limits, seed=5) as device:
        device.start(axpb.values("none"), axpb.build("none"))
        bugs = ("illegal address", "none", "misaligned address")
        verdicts = [verdict for _, verdict in device.judge([work(bug, n) for n, bug in enumerate(bugs, 1)])]

    illegal, _, misaligned = verdicts
    assert isinstance(illegal, Rejection)
    assert isinstance(misaligned, Rejection)
    first = illegal.evidence["memcheck"]["findings"][0]
    assert "write of size 4" in first["title"]
    assert "evo_axpb" in first["where"]
    assert "out of bounds" in first["address"]
    second = misaligned.evidence["memcheck"]["findings"][0]
    assert "write of size 8" in second["title"]
    assert "misaligned, byte 4 of y of R4096" in second["address"]


def profiled(template: Template, problem: Problem, values: Values, artifact: Artifact) -> Figures:
    executable = find_tool(ncu.PROGRAM)
    assert executable is not None, "skipped without"
    fields = [problem_fields(problem)]
    job = Job(str(template.folder), str(artifact.cubin), dict(values), fields, 0, 1, ncu.WARM_UP + 1)
    try:
        found, _ = ncu.profile(executable, job)
    except UserError as error:
        pytest.skip(str(error))
    return found


@needs_ncu
def test_every_figure_of_an_attention_kernel_is_counted(limits: DeviceLimits) -> None:
    template = load_template(shipped("kernel_templates") / "attention")
    values = load_space(shipped("search_spaces") / "attention.py").default
    problem = template.module.PROBLEM()
    with Builder(template, limits.arch) as builder:
        defines, launch = template.module.defines(values, problem), template.module.launch(values, problem)
        (built,) = builder.build([BuildRequest(defines, launch.smem_bytes)])
    assert isinstance(built, Artifact), built
    found = profiled(template, problem, values, built)

    percentages = {name: getattr(found, name) for name in Figures.__dataclass_fields__ if name.endswith("_pct")}
    assert [] == [name for name, value in percentages.items() if value is None or not 0 <= value <= 101], percentages
    assert 1 < percentages["tensor_pct"], "it is made of mma instructions"
    assert found.waves is not None
    assert found.bank_conflicts is not None
    assert found.bank_conflicts < 0.2, "the swizzle keeps ldmatrix free of them"
    assert {"long_scoreboard", "barrier", "wait", "selected"} <= found.stalls.keys()
    assert "\n" not in diagnose(found)


@needs_ncu
def test_a_chain_of_dependent_multiply_adds_uses_no_tensor_pipe(axpb: Kernels) -> None:
    values = {**axpb.values("none"), "WORK": 4000}
    found = profiled(axpb.template, axpb.problem, values, axpb.build("none", 4000))

    assert 0 == found.tensor_pct
    assert found.dram_pct is not None
    assert found.issue_pct is not None
    assert found.dram_pct < 20 < found.issue_pct
