"""The timer's proof without a GPU: each part fails where it must, and its helpers do what the proof rests on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.trust import compile_load, graph_clock, timing
from benchmarks.trust.timing import Built
from evoengine.build import Builder, BuildRequest
from evoengine.devices.cuda.results import Final, Finals, Setup, make_final
from evoengine.errors import EvoengineError
from evoengine.space import Config
from evoengine.template import load_template, shipped
from evoengine.verdict import Artifact, Candidate, Gate, Measurement, Rejection, ResourceUsage

AXPB = load_template(timing.AXPB)
ARTIFACT = Artifact("d", Path("nowhere"), "0" * 64, ResourceUsage(32, 0, 0, 0, 0, 0), 0.1, "nvrtc", "sm_90")
ENVIRONMENT = {"uuid": "GPU-1", "gpu": "fake"}


class Load:
    """Stands for the compilers."""

    def __init__(self) -> None:
        self.running = False

    def close(self) -> None:
        self.running = False

    def pause(self) -> None:
        self.running = False

    def run(self) -> None:
        self.running = True


class Stand:
    """A card whose truth is `true_us` and whose timer has faults on demand."""

    def __init__(
        self,
        *,
        noise: float = 0.002,
        bias: float = 1.0,
        clock_bias: float = 1.0,
        under_load: float = 1.0,
        by_process: float = 0.0,
        rejects: bool = False,
    ) -> None:
        self.noise, self.bias, self.clock_bias = noise, bias, clock_bias
        self.under_load, self.by_process, self.rejects = under_load, by_process, rejects
        self.draw = np.random.default_rng(1)
        self.compilers = Load()
        self.process, self.processes = 1.0, 0

    def true_us(self, config: Config) -> float:
        return 2.0 + 0.003 * config.values["WORK"]

    def build(self, configs: Sequence[Config]) -> list[Built]:
        return [Built(config, ARTIFACT) for config in configs]

    def device(self) -> Stand:
        return self

    def load(self, built: Built, processes: int) -> Load:
        return self.compilers

    def clock(self, subjects: Mapping[str, Built], rounds: int) -> dict[str, list[float]]:
        return {
            name: (self.clock_bias * self.true_us(one.config) * np.exp(self.draw.normal(0, 0.002, rounds))).tolist()
            for name, one in subjects.items()
        }

    def start(self, values: Any, artifact: Artifact) -> Setup:
        self.control_us = self.true_us(Config(tuple(values.items()), "c"))
        return Setup(self.measured(self.control_us), (), {}, ENVIRONMENT)

    def measured(self, us: float) -> Measurement:
        slower = self.under_load if self.compilers.running else 1.0
        windows = (us * slower * np.exp(self.draw.normal(0, self.noise, 8))).tolist()
        control = (self.control_us * np.exp(self.draw.normal(0, self.noise, 8))).tolist()
        evidence = {"half_width": 3 * self.noise}
        return Measurement(
            tuple(windows), tuple(control), self.control_us, 9, "warm", "converged", evidence=evidence
        )  # fmt: skip

    def judge(self, work: Any) -> Iterator[tuple[Candidate, Measurement | Rejection]]:
        for candidate, _ in work:
            if self.rejects:
                yield candidate, Rejection(Gate.CORRECTNESS, "max error", {})
            else:
                yield candidate, self.measured(self.bias * self.process * self.true_us(candidate.config))

    def finals(self, work: Any, seed: int) -> Finals:
        control = (self.control_us * np.exp(self.draw.normal(0, self.noise, 100))).tolist()

        def final(candidate: Candidate) -> Final:
            us = self.bias * self.true_us(candidate.config)
            return make_final("x", (us * np.exp(self.draw.normal(0, self.noise, 100))).tolist(), control, 9, seed)

        raced = tuple((candidate, final(candidate)) for candidate, _ in work)
        return Finals(make_final("default", control, control, 9, seed), raced, (), ENVIRONMENT, seed)

    def renew(self, device: Any) -> None:
        self.processes += 1
        self.process = float(np.exp(self.draw.normal(0, self.by_process)))

    def close(self) -> None: ...


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SETTLE_SECONDS", 0.0)


DEFAULT, SUBJECT = (Built(timing._axpb_config(work), ARTIFACT) for work in (4000, 2000))
RUN: dict[str, Callable[[Any], dict[str, Any]]] = {
    "aa": lambda stand: timing.aa(stand, DEFAULT),
    "compiling": lambda stand: timing.compiling(stand, DEFAULT, SUBJECT),
    "processes": lambda stand: timing.processes(stand, DEFAULT, SUBJECT, {}, lambda part: None),
    "planted": lambda stand: timing.planted(stand, timing._axpb_config),
    "independent": lambda stand: timing.independent(stand, DEFAULT, SUBJECT),
}


@pytest.mark.parametrize("part", timing.PARTS)
def test_a_good_timer_passes(part: str) -> None:
    found = RUN[part](Stand())

    assert found["passed"]
    assert ENVIRONMENT == found["environment"]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("part", "fault"),
    [
        ("aa", {"bias": 0.98}),  # favours the candidate over the control by 2 %
        ("compiling", {"under_load": 1.01}),
        ("processes", {"by_process": 0.01}),
        ("planted", {"noise": 0.05}),
        ("independent", {"clock_bias": 1.03}),
        ("independent", {"bias": 1.03}),
    ],
)
def test_a_bad_timer_fails(part: str, fault: dict[str, float]) -> None:
    assert not RUN[part](Stand(**fault))["passed"]


@pytest.mark.parametrize("part", ["aa", "planted", "independent"])
def test_a_rejection_is_no_proof(part: str) -> None:
    with pytest.raises(EvoengineError, match="max error"):
        RUN[part](Stand(rejects=True))


def test_the_planted_gaps_are_found_by_their_slope() -> None:
    found = RUN["planted"](Stand())["gaps"]

    # 14 us at 4000 multiply-adds, 3 ns each: 1 % is 46.7 of them
    assert [4000, 4048] == found["1 %"]["multiply_adds"]
    assert [4000, 4024] == found["0.5 %"]["multiply_adds"]
    assert 48 * 0.003 / 14 == pytest.approx(found["1 %"]["true_gap"], rel=0.1)
    assert found["1 %"]["ranked_right"] >= 95


def test_two_kernels_of_other_work_differ_in_one_instruction() -> None:
    """Else the compiler's choices would be timed, which once were worth more than the gap."""
    works = (timing.WORK, timing.WORK + timing.STEP, timing.WORK + 5 * timing.STEP, timing.WORK * 11 // 10)
    with Builder(AXPB, "sm_90") as builder:
        built = builder.build([BuildRequest({"EVO_BUG": 0, "EVO_WORK": work}, 1024) for work in works])
    images = [np.frombuffer(one.cubin.read_bytes(), np.uint8) for one in built if isinstance(one, Artifact)]

    assert 4 == len({image.tobytes() for image in images})
    assert 1 == len({image.size for image in images})
    changed = np.flatnonzero(np.any([image != images[0] for image in images[1:]], axis=0))
    assert changed.max() - changed.min() < 16, "bytes of an instruction"


def test_a_gap_that_is_none_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranked right in every trial, and still no proof: the gap was not 0.5 % but 0.7."""
    monkeypatch.setattr(timing, "_calibrated", lambda stand, work: {"1 %": 48, "0.5 %": 32})
    found = RUN["planted"](Stand())

    assert 100 == found["gaps"]["0.5 %"]["ranked_right"]
    assert not found["passed"]


def test_the_worth_of_the_second_place_is_told_apart_from_the_ratio() -> None:
    """3 % slower, and 0.1 % quicker in the second place."""
    measured = Measurement((1.03 * 0.999, 1.03) * 4, (1.0, 0.999) * 4, 1.0, 9, "warm", "converged")

    assert 0.999 == pytest.approx(timing._second_over_first(measured))


def test_processes_that_were_cut_off_go_on_where_they_were() -> None:
    kept: list[dict[str, Any]] = []
    whole = timing.processes(Stand(), DEFAULT, SUBJECT, {}, kept.append)  # type: ignore[arg-type]
    elsewhere = [{**run, "uuid": "GPU-2"} for run in whole["runs"]]
    stand = Stand()
    rest = timing.processes(stand, DEFAULT, SUBJECT, {"runs": whole["runs"][:7] + elsewhere}, kept.append)  # type: ignore[arg-type]

    assert [*range(1, 11), 8, 9, 10] == [len(part["runs"]) for part in kept]
    assert not any(part["passed"] for part in kept)
    assert 3 == stand.processes
    assert whole["runs"][:7] == rest["runs"][:7]
    assert rest["passed"]


def test_parts_are_written_one_by_one_and_kept_in_the_same_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trust.json"
    path.write_text(json.dumps({"mutants": {"caught": 30}}))
    setting = {"gpu": "L4", "driver": "580", "timer": "abc"}
    begun: list[tuple[str, timing.Part]] = []

    def part(name: str, passed: bool) -> timing.Run:
        def run(before: timing.Part, keep: timing.Keep) -> timing.Part:
            begun.append((name, before))
            keep({"passed": False, "environment": {}, "half": True})
            return {"passed": passed, "environment": {"uuid": "GPU-1"}, "spread": 0.25}

        return run

    def breaks(before: timing.Part, keep: timing.Keep) -> timing.Part:
        keep({"passed": False, "environment": {}, "half": True})
        raise EvoengineError("the card fails")

    good = {name: part(name, True) for name in timing.PARTS}
    with pytest.raises(EvoengineError):
        timing.prove(path, setting, {**good, "processes": breaks, "compiling": part("compiling", False)}, ())
    document = json.loads(path.read_text())

    assert {"caught": 30} == document["mutants"]
    assert {"aa": True, "compiling": False, "processes": False} == document["timing"]["passed"]
    assert '{"spread": 0.25}' in capsys.readouterr().out
    begun.clear()
    assert timing.prove(path, setting, good, ())
    assert ["compiling", "processes", "planted", "independent"] == [name for name, _ in begun]
    assert dict(begun)["processes"]["half"]
    begun.clear()
    assert timing.prove(path, setting, good, ())
    assert timing.prove(path, setting, good, ["aa"])
    assert ["aa"] == [name for name, _ in begun]
    assert not timing.prove(path, {**setting, "timer": "def"}, {"aa": part("aa", False)}, ["aa"])
    assert {"aa": False} == json.loads(path.read_text())["timing"]["passed"]


def test_the_second_clock_is_free_of_what_a_graph_costs() -> None:
    """4 us a launch, and 9 us for every graph."""
    begun, short, long = 100.0, 100.0 + 0.009 + 0.004 * 150, 100.0 + 2 * 0.009 + 0.004 * 600

    assert 4.0 == pytest.approx(graph_clock.per_launch_us(begun, short, long, 150))


@pytest.mark.parametrize("name", ["attention", str(timing.AXPB)])
def test_the_second_clock_passes_every_tensor_of_a_template(name: str) -> None:
    module = AXPB.module if name == str(timing.AXPB) else load_template(shipped("kernel_templates") / name).module
    problem = module.PROBLEM() if name == str(timing.AXPB) else module.PROBLEM(batch=1, heads=1, seq_q=64)  # type: ignore[call-arg]
    tensors: Any = graph_clock.make_tensors(module, problem, "cpu")
    values = (
        {"BUG": 0, "WORK": 1}
        if name == str(timing.AXPB)
        else timing.load_space(shipped("search_spaces") / "attention.py").default
    )
    arguments = module.arguments(values, problem)
    packed, types = graph_clock.packed(arguments, tensors)

    assert len(arguments) == len(packed) == len(types)
    addresses = {tensor.data_ptr() for tensor in tensors.values()}
    assert addresses >= {value for one, value in zip(arguments, packed, strict=True) if one.kind == "tensor"}
    named = {one.value for one in arguments}
    assert named >= {tensor.name for tensor in module.tensors(problem) if tensor.role != "scratch"}
    inputs = module.inputs(problem, 1)
    for tensor in module.tensors(problem):
        if tensor.role == "input":
            given = inputs[tensor.name]
            assert np.abs(tensors[tensor.name].double().numpy() - given).max() < 0.01 * np.abs(given).max()


def test_the_load_compiles_only_when_it_is_let_and_ends() -> None:
    def cpu_seconds(pid: int) -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / 100

    with closing(compile_load.CompileLoad(timing.AXPB, "sm_90", {"EVO_BUG": 0, "EVO_WORK": 4000}, 1)) as load:
        (pid,) = load.pids
        halted = cpu_seconds(pid)
        time.sleep(0.3)
        assert halted == cpu_seconds(pid)
        load.run()
        end = time.monotonic() + 30
        while cpu_seconds(pid) == halted:
            assert time.monotonic() < end, "it does not compile"
            time.sleep(0.05)
        load.pause()

    assert not Path(f"/proc/{pid}").exists()


def test_a_load_that_does_not_compile_is_said_so() -> None:
    with pytest.raises(RuntimeError, match="a compile of the load fails"):
        compile_load.CompileLoad(timing.AXPB, "sm_90", {}, 1)
