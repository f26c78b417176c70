"""compute-sanitizer and Nsight Compute for real, on kernels whose faults are known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from evoengine.bottleneck import Figures, diagnose
from evoengine.build import Builder, BuildRequest
from evoengine.devices.cuda import CudaDevice, find_gpu, ncu
from evoengine.devices.cuda.bare import Job
from evoengine.devices.cuda.probe import find_uuid
from evoengine.devices.cuda.sanitizer import PROGRAM, TOOLS, Report, Sanitizer, Tool
from evoengine.devices.cuda.watched import find_tool
from evoengine.errors import UserError
from evoengine.hardware import DeviceLimits
from evoengine.problem import problem_fields
from evoengine.space import Config, Values, load_space
from evoengine.template import load_template, shipped
from evoengine.verdict import Artifact, Candidate, Gate, Rejection

pytestmark = pytest.mark.gpu

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
needs_ncu = pytest.mark.skipif(find_tool(ncu.PROGRAM) is None, reason=f"no {ncu.PROGRAM} on PATH")
needs_sanitizer = pytest.mark.skipif(find_tool(PROGRAM) is None, reason=f"no {PROGRAM} on PATH")

ATTENTION: dict[str, dict[str, int]] = {
    "default": {},
    "named barriers": {"PRODUCER_WARPS": 2, "WARPS_KV": 2, "BLOCK_N": 128},
    "mbarriers": {"PRODUCER_WARPS": 2, "MBARRIER": 1, "UNROLL": 1, "SUM_MMA": 1},
    "split": {"SPLIT_KV": 4, "LATE_LOADS": 0, "OVERLAP": 1},
}
"""Right kernels, one for each way in which threads and CTAs wait for each other."""
UNSEEN: tuple[tuple[Tool, str], ...] = (
    *((tool, "none") for tool in TOOLS),
    ("memcheck", "reads out of bounds"),
    ("initcheck", "reads what nobody wrote"),
    ("racecheck", "lacks a barrier"),
    ("synccheck", "none, with a named barrier"),
)
AT_ONCE = 4
"""Tools at a time: each spends most of its seconds starting up."""


class Kernels:
    """One template's kernels."""

    def __init__(self, folder: Path, limits: DeviceLimits) -> None:
        self.template = load_template(folder)
        self.problem = self.template.module.PROBLEM()
        self._builder = Builder(self.template, limits.arch)

    def values(self, bug: str, work: int = 1) -> dict[str, int]:
        bugs: tuple[str, ...] = self.template.module.BUGS  # type: ignore[attr-defined]
        return {"BUG": bugs.index(bug), "WORK": work}

    def build(self, values: Values) -> Artifact:
        module = self.template.module
        defines, launch = module.defines(values, self.problem), module.launch(values, self.problem)
        (built,) = self._builder.build([BuildRequest(defines, launch.smem_bytes)])
        assert isinstance(built, Artifact), built
        return built

    def check(self, tool: Tool, values: Values, built: Artifact) -> Report:
        executable = find_tool(PROGRAM)
        assert executable is not None, "skipped without"
        problems = self.template.module.small_problems(values, self.problem)
        return Sanitizer(executable, self.template, 0, 1).check(
            tool, built.cubin, values, problems, built.ptx.read_text()
        )

    def profile(self, values: Values) -> Figures:
        executable = find_tool(ncu.PROGRAM)
        assert executable is not None, "skipped without"
        cubin, fields = str(self.build(values).cubin), [problem_fields(self.problem)]
        job = Job(str(self.template.folder), cubin, dict(values), fields, 0, 1, ncu.WARM_UP + 1)
        try:
            found, _ = ncu.profile(executable, job)
        except UserError as error:
            pytest.skip(str(error))
        return found


@pytest.fixture(scope="module")
def limits() -> DeviceLimits:
    found = find_gpu()
    assert found is not None, "marked gpu: skipped where there is none"
    return found


@pytest.fixture(scope="module")
def axpb(limits: DeviceLimits) -> Kernels:
    return Kernels(TEMPLATES / "axpb", limits)


@pytest.fixture(scope="module")
def attention(limits: DeviceLimits) -> Kernels:
    return Kernels(shipped("kernel_templates") / "attention", limits)


def attention_values(kind: str) -> Values:
    return {**load_space(shipped("search_spaces") / "attention.py").default, **ATTENTION[kind]}


Reports = Mapping[tuple[Tool, str], "Future[Report]"]


@pytest.fixture(scope="module")
def reports(axpb: Kernels, attention: Kernels, limits: DeviceLimits) -> Iterator[Reports]:
    """What every tool says of every kernel, several at a time."""
    unseen = Kernels(TEMPLATES / "unseen", limits)
    asked = [(tool, bug, unseen, unseen.values(bug)) for tool, bug in UNSEEN]
    asked.append(("memcheck", "writes out of bounds", axpb, axpb.values("writes out of bounds")))
    asked += [(tool, kind, attention, attention_values(kind)) for kind in ATTENTION for tool in TOOLS]
    built = [(tool, name, kernels, values, kernels.build(values)) for tool, name, kernels, values in asked]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {
            (tool, name): pool.submit(kernels.check, tool, values, artifact)
            for tool, name, kernels, values, artifact in built
        }


def test_a_card_has_a_uuid_of_its_own() -> None:
    found = find_uuid(0)

    assert found is not None
    assert found.startswith("GPU-")
    assert None is find_uuid(99)


@needs_sanitizer
@pytest.mark.parametrize("tool", TOOLS)
def test_a_right_kernel_is_clean(reports: Reports, tool: Tool) -> None:
    found = reports[tool, "none"].result()

    assert f"{tool}: clean" == found.line
    assert ("N1000", "N256") == found.problems


@needs_sanitizer
@pytest.mark.parametrize("kind", ATTENTION)
@pytest.mark.parametrize("tool", TOOLS)
def test_no_right_attention_kernel_is_rejected(reports: Reports, tool: Tool, kind: str) -> None:
    found = reports[tool, kind].result()

    assert None is found.rejection(), found.line
    assert "" == found.unfinished
    assert found.clean or found.doubt, found.line


@needs_sanitizer
@pytest.mark.parametrize(
    ("tool", "bug", "gate", "words"),
    [
        (
            "memcheck",
            "reads out of bounds",
            Gate.RUNTIME,
            ("read of size 4", "evo_unseen", "past the end of x of N1000"),
        ),
        ("initcheck", "reads what nobody wrote", Gate.CORRECTNESS, ("evo_unseen", "of y of N1000")),
        ("racecheck", "lacks a barrier", Gate.CORRECTNESS, ("Race reported", "evo_unseen")),
        ("memcheck", "writes out of bounds", Gate.RUNTIME, ("write of size 4", "0 B past the end of y of R33")),
    ],
)
def test_what_no_output_shows_is_found(
    reports: Reports, tool: Tool, bug: str, gate: Gate, words: tuple[str, ...]
) -> None:
    found = reports[tool, bug].result()
    rejection = found.rejection()

    assert rejection is not None, found
    assert gate == rejection.gate
    assert [] == [word for word in words if word not in rejection.reason], rejection.reason


@needs_sanitizer
def test_what_synccheck_says_of_a_named_barrier_is_no_verdict(reports: Reports) -> None:
    found = reports["synccheck", "none, with a named barrier"].result()

    assert "" != found.doubt
    assert None is found.rejection()
    assert "" == found.unfinished


@needs_sanitizer
def test_the_first_fault_of_a_run_is_explained(axpb: Kernels, limits: DeviceLimits) -> None:
    def work(bug: str, number: int) -> tuple[Candidate, Artifact]:
        values = axpb.values(bug)
        return Candidate(number, Config(tuple(values.items()), bug), "random"), axpb.build(values)

    with CudaDevice(axpb.template, axpb.problem, limits, seed=5) as device:
        device.start(axpb.values("none"), axpb.build(axpb.values("none")))
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


@needs_ncu
def test_every_figure_of_an_attention_kernel_is_counted(attention: Kernels) -> None:
    found = attention.profile(attention_values("default"))

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
    found = axpb.profile(axpb.values("none", work=4000))

    assert 0 == found.tensor_pct
    assert found.dram_pct is not None
    assert found.issue_pct is not None
    assert found.dram_pct < 20 < found.issue_pct
