"""The CUDA device on a real card: planted bugs meet the right gate, and times are what an independent clock says."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

from evoengine.build import Builder, BuildRequest
from evoengine.devices.cuda import CudaDevice, Final, device, find_gpu
from evoengine.errors import TemplateError, UserError
from evoengine.hardware import DeviceLimits
from evoengine.problem import AttentionProblem, parse_shape
from evoengine.space import Config, load_space
from evoengine.template import Template, load_template, shipped
from evoengine.verdict import Artifact, Candidate, Gate, Measurement, Rejection, Verdict

pytestmark = pytest.mark.gpu

AXPB = Path(__file__).resolve().parent.parent / "templates" / "axpb"
WORK = 4000
"""Dependent multiply-adds a thread: 4 cycles each makes some 10 us."""


@pytest.fixture(scope="module")
def limits() -> DeviceLimits:
    found = find_gpu()
    assert found is not None, "marked gpu: skipped where there is none"
    return found


@pytest.fixture(scope="module")
def template() -> Template:
    return load_template(AXPB)


@pytest.fixture(scope="module")
def builder(template: Template, limits: DeviceLimits) -> Iterator[Builder]:
    with Builder(template, limits.arch) as made:
        yield made


Work = tuple[Candidate, Artifact]


class Bench:
    """A started device, and candidates by the name of their bug."""

    def __init__(self, template: Template, limits: DeviceLimits, builder: Builder) -> None:
        self.template = template
        self.builder = builder
        self.problem = template.module.PROBLEM()
        self.device = CudaDevice(template, self.problem, limits, seed=11)
        default, artifact = self.candidate("none")
        self.setup = self.device.start(default.config.values, artifact)

    def candidate(self, bug: str, work: int = WORK, number: int = 1) -> Work:
        bugs: tuple[str, ...] = self.template.module.BUGS  # type: ignore[attr-defined]
        config = Config((("BUG", bugs.index(bug)), ("WORK", work)), f"bug_{bug}.work_{work}")
        module = self.template.module
        request = BuildRequest(
            module.defines(config.values, self.problem), module.launch(config.values, self.problem).smem_bytes
        )
        (built,) = self.builder.build([request])
        assert isinstance(built, Artifact), built
        return Candidate(number, config, "random"), built

    def judge(self, *work: Work) -> list[Verdict]:
        return [verdict for _, verdict in self.device.judge(work)]


@pytest.fixture(scope="module")
def bench(template: Template, limits: DeviceLimits, builder: Builder) -> Iterator[Bench]:
    made = Bench(template, limits, builder)
    yield made
    made.device.close()


def test_limits_are_those_of_a_real_card(limits: DeviceLimits) -> None:
    assert limits.name.startswith("NVIDIA") or "GeForce" in limits.name
    assert (8, 0) <= limits.compute_capability
    assert 48 * 1024 < limits.smem_per_block < limits.smem_per_sm <= 512 * 1024
    assert limits.smem_per_block + limits.smem_reserved_per_block == limits.smem_per_sm
    assert 65536 == limits.registers_per_sm
    assert 1024 == limits.threads_per_block
    assert limits.threads_per_sm in (1024, 1536, 2048)
    assert limits.ctas_per_sm in (16, 24, 32)
    assert 1 <= limits.sms <= 1000
    assert 2**20 <= limits.l2_bytes <= 2**30
    assert 500 <= limits.clock_mhz <= 4000
    assert 100 <= limits.dram_gbps <= 20_000
    assert 10 <= limits.tensor_tflops <= 5000


def test_there_is_no_hundredth_card() -> None:
    assert find_gpu(99) is None


def test_set_up_proves_and_times_the_default(bench: Bench) -> None:
    control = bench.setup.control

    assert 0.98 < control.ratio < 1.02, "the default against itself"
    assert control.noise < 0.05
    assert 0 < bench.setup.control_us < 1000
    assert ["timed", "check"] == [check.input_set for check in control.checks]
    assert () == bench.setup.baselines, "PyTorch has no function for this problem"
    environment = bench.setup.environment
    assert environment["uuid"].startswith("GPU-")
    assert 0 < environment["event_quantum_us"] < 10
    assert environment["cuda_driver"] >= 12000


@pytest.mark.parametrize(
    ("bug", "gate", "reason"),
    [
        ("writes nothing", Gate.CORRECTNESS, "131072 output words were never written"),
        ("last row unwritten", Gate.CORRECTNESS, "32 output words were never written"),
        ("writes out of bounds", Gate.CORRECTNESS, "guard words outside a buffer"),
        ("changes its input", Gate.CORRECTNESS, "changed its inputs"),
        ("differs from launch to launch", Gate.CORRECTNESS, "repeats differ bit for bit"),
        ("wrong by 0.1 %", Gate.CORRECTNESS, "error"),
        ("reads uninitialised shared memory", Gate.CORRECTNESS, "repeats differ bit for bit"),
        ("wrong after 100 launches", Gate.CORRECTNESS, "after timing"),
        ("illegal address", Gate.RUNTIME, "CUDA_ERROR_ILLEGAL_ADDRESS"),
        ("misaligned address", Gate.RUNTIME, "CUDA_ERROR_MISALIGNED_ADDRESS"),
        ("traps", Gate.RUNTIME, "CUDA_ERROR_"),
    ],
)
def test_a_planted_bug_meets_its_gate_and_the_next_candidate_is_unaffected(
    bench: Bench, bug: str, gate: Gate, reason: str
) -> None:
    verdict, following = bench.judge(bench.candidate(bug), bench.candidate("none", number=2))

    assert isinstance(verdict, Rejection)
    assert gate == verdict.gate
    assert reason in verdict.reason
    if "uninitialised" in bug:
        assert 0 < verdict.checks[-1].nonfinite, "shared memory was scrubbed with NaN before the first launch"
    assert isinstance(following, Measurement)
    assert 0.95 < following.ratio < 1.05


def test_a_launch_that_the_driver_refuses_is_a_verdict(bench: Bench) -> None:
    candidate, artifact = bench.candidate("none")
    bugs: tuple[str, ...] = bench.template.module.BUGS  # type: ignore[attr-defined]
    values = (("BUG", bugs.index("asks for too much shared memory")), ("WORK", WORK))
    greedy = Candidate(1, Config(values, "greedy"), "random")
    verdict, following = bench.judge((greedy, artifact), (candidate, artifact))

    assert isinstance(verdict, Rejection)
    assert Gate.RUNTIME == verdict.gate
    assert "CUDA_ERROR_INVALID_VALUE from cuFuncSetAttribute" == verdict.reason
    assert isinstance(following, Measurement)


def test_a_kernel_that_never_ends_is_killed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.device, "_job_seconds", 3.0)
    verdict, following = bench.judge(bench.candidate("never ends"), bench.candidate("none", number=2))

    assert isinstance(verdict, Rejection)
    assert Gate.TIMEOUT == verdict.gate
    assert isinstance(following, Measurement)


def test_a_broken_default_is_the_templates_fault(
    bench: Bench, template: Template, limits: DeviceLimits, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # a lock file of its own: `bench` holds the card
    wrong, artifact = bench.candidate("wrong by 0.1 %")
    with (
        CudaDevice(template, bench.problem, limits, seed=1) as other,
        pytest.raises(TemplateError, match="default config"),
    ):
        other.start(wrong.config.values, artifact)


def test_a_second_evoengine_is_turned_away(bench: Bench, template: Template, limits: DeviceLimits) -> None:
    default, artifact = bench.candidate("none")
    with (
        CudaDevice(template, bench.problem, limits, seed=1) as other,
        pytest.raises(UserError, match=f"process {os.getpid()}"),
    ):
        other.start(default.config.values, artifact)


def test_twice_the_work_takes_nearly_twice_as_long(bench: Bench) -> None:
    single, double = bench.judge(bench.candidate("none"), bench.candidate("none", 2 * WORK, number=2))

    assert isinstance(single, Measurement)
    assert isinstance(double, Measurement)
    assert 1.5 < double.median_us / single.median_us < 2.1


def test_a_far_slower_kernel_is_given_few_windows(bench: Bench) -> None:
    (verdict,) = bench.judge(bench.candidate("none", 4 * WORK))

    assert isinstance(verdict, Measurement)
    assert "beaten" == verdict.stopped
    assert 3.0 < verdict.ratio < 4.2


def test_finals_time_all_in_one_fresh_process_and_drop_who_fails(bench: Bench) -> None:
    work = [
        bench.candidate("none", WORK // 2, number=1),
        bench.candidate("illegal address", number=2),
        bench.candidate("none", WORK, number=3),
    ]
    finals = bench.device.finals(work, seed=5)
    faster, failed, same = (outcome for _, outcome in finals.finalists)

    assert isinstance(faster, Final)
    assert faster.ratio_high < 0.8
    assert len(faster.windows_us) >= 50
    assert isinstance(failed, Rejection)
    assert Gate.RUNTIME == failed.gate
    assert isinstance(same, Final)
    assert 0.98 < same.ratio < 1.02
    assert same.ratio_low <= same.ratio <= same.ratio_high
    assert 250 == faster.checks[0].repeats
    assert bench.setup.control.checks[0].seed != faster.checks[0].seed, "not the inputs that the search has seen"


@pytest.mark.filterwarnings("default")  # what torch warns of on this machine is not ours
def test_windows_agree_with_an_independent_loop_of_launches(bench: Bench) -> None:
    """Events around a loop of plain launches, in this process: kernels long enough to hide the host's part."""
    import torch

    from evoengine.devices.cuda.driver import Kernel, pack

    candidate, artifact = bench.candidate("none", 40 * WORK)
    (verdict,) = bench.judge((candidate, artifact))
    assert isinstance(verdict, Measurement)

    torch.cuda.init()
    x = torch.randn(bench.problem.rows, 32, device="cuda")
    y = torch.empty_like(x)
    kernel = Kernel(artifact.cubin.read_bytes(), bench.template.module.ENTRY)
    launch = bench.template.module.launch(candidate.config.values, bench.problem)
    parameters = pack(
        [
            ("pointer", x.data_ptr()),
            ("pointer", y.data_ptr()),
            ("float32", 1.5),
            ("float32", 0.25),
            ("int32", x.numel()),
        ]
    )
    stream = torch.cuda.current_stream().cuda_stream
    times = []
    for _ in range(7):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        kernel.launch(launch, parameters, stream)
        start.record()
        for _ in range(50):
            kernel.launch(launch, parameters, stream)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / 50)
    kernel.unload()

    assert torch.allclose(y, 1.5 * x + 0.25, atol=1e-6)  # one rounding there, two here: it shows near zero
    assert statistics.median(times) == pytest.approx(statistics.median(verdict.windows_us), rel=0.1)


@pytest.mark.parametrize("shape", ["1,8,512,64", "2,8,300,128,causal,dtype=bf16,kv_heads=2"])
def test_attention_is_timed_beside_every_sdpa_backend_that_runs(
    limits: DeviceLimits, shape: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # a lock file of its own: `bench` may hold the card
    attention = load_template(shipped("kernel_templates") / "attention")
    space = load_space(shipped("search_spaces") / "attention.py")
    problem = parse_shape(AttentionProblem, shape)
    values = space.default
    smem_bytes = attention.module.launch(values, problem).smem_bytes
    with Builder(attention, limits.arch) as builder:
        (artifact,) = builder.build([BuildRequest(attention.module.defines(values, problem), smem_bytes)])
    assert isinstance(artifact, Artifact), artifact
    candidate = Candidate(1, space.config(values), "default")

    with CudaDevice(attention, problem, limits, seed=3) as made:
        setup = made.start(values, artifact)
        ((_, verdict),) = made.judge([(candidate, artifact)])
        finals = made.finals([(candidate, artifact)], seed=4)

    timed = {baseline.name for baseline in setup.baselines}
    assert {"sdpa", "sdpa_flash", "sdpa_math"} <= timed
    assert 5 == len(timed) + len(setup.unavailable)
    for baseline in setup.baselines:
        assert 0 < baseline.median_us < 1e4
        assert 0 == baseline.nonfinite
        assert baseline.rel_fro < 0.01, baseline.name
    assert isinstance(verdict, Measurement)
    assert 0.95 < verdict.ratio < 1.05
    assert timed == {baseline.name for baseline in finals.baselines}
    for baseline in finals.baselines:
        first = next(b for b in setup.baselines if b.name == baseline.name)
        assert first.ratio == pytest.approx(baseline.ratio, rel=0.15), baseline.name


def test_the_deadline_follows_the_default(bench: Bench) -> None:
    assert device.MIN_JOB_SECONDS <= bench.device._job_seconds < 120
