"""The worker's own logic without a GPU: guards, poison, repeats, windows and the final run, over a fake card."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import statistics
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_card import COLD, QUANTUM_US, FakeCard, SimulatedEvents, SimulatedWindow

from evoengine.devices.cuda import bench, cold, control, references, timer, windows
from evoengine.devices.cuda.baselines import sdpa
from evoengine.devices.cuda.buffers import GUARD_BYTES, GuardedBuffer, ProblemBuffers, observe
from evoengine.devices.cuda.driver import CudaError
from evoengine.devices.cuda.messages import (
    SDPA,
    Dropped,
    Judge,
    Judged,
    Open,
    Raced,
    RunFinals,
    SetUp,
    Subject,
    Working,
)
from evoengine.devices.cuda.probe import find_gpu
from evoengine.devices.cuda.prove import CHECK_REPEATS
from evoengine.devices.cuda.references import derive_seed, input_set
from evoengine.devices.cuda.results import ratio_interval
from evoengine.devices.cuda.serve import FatalCudaError, Tainted
from evoengine.devices.prepared import Prepared
from evoengine.devices.prepared import main as prepare
from evoengine.errors import TemplateError, UserError
from evoengine.oracle import POISON
from evoengine.problem import AttentionProblem
from evoengine.template import Tensor, load_template, shipped
from evoengine.verdict import Gate, Measurement, Rejection

AXPB = Path(__file__).resolve().parent / "templates" / "axpb"
BUGS: tuple[str, ...] = load_template(AXPB).module.BUGS  # type: ignore[attr-defined]


class Bench:
    """A bench that is set up, and the ways to ask it."""

    def __init__(self, folder: Path, seed: int = 1) -> None:
        self.folder = folder
        self.told: list[Working] = []
        self.bench = bench.GpuBench(0, self.told.append)
        self.opened = self.bench.open(Open(str(AXPB), {"rows": 64}, seed, str(folder)))
        self.card: FakeCard = self.bench._card  # type: ignore[assignment]

    def subject(self, bug: str = "none", launch_us: float = 10.0, name: str = "1") -> Subject:
        image = json.dumps({"bug": bug, "launch_us": launch_us}).encode()
        path = self.folder / f"{hashlib.sha256(image).hexdigest()}.cubin"
        path.write_bytes(image)
        return Subject(name, {"BUG": BUGS.index(bug), "WORK": 1}, str(path), hashlib.sha256(image).hexdigest())

    def set_up(self, bug: str = "none") -> Bench:
        self.ready = self.bench.set_up(SetUp(self.subject(bug, name="default"), None, baselines=True))
        return self

    def judge(self, bug: str = "none", launch_us: float = 10.0, best_us: float = 10.0) -> Judged:
        return self.bench.judge(Judge(self.subject(bug, launch_us), best_us))


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(bench, "Card", FakeCard)
    monkeypatch.setattr(windows, "WARM_UP_SECONDS", 0.01)
    return Bench(tmp_path)


def test_a_right_candidate_is_proven_then_measured(fresh: Bench) -> None:
    judged = fresh.set_up().judge(launch_us=8.0)

    measurement = judged.verdict
    assert isinstance(measurement, Measurement)
    assert ["timed", "check"] == [check.input_set for check in measurement.checks]
    assert ["R64", "R33"] == [check.shape for check in measurement.checks]
    assert bench.QUICK_REPEATS == measurement.checks[0].repeats
    assert 0.8 == pytest.approx(measurement.ratio, rel=0.005)
    assert 10.0 == pytest.approx(measurement.control_reference_us, rel=0.005)
    assert measurement.median_us == pytest.approx(8.0, rel=0.01)
    assert "converged" == measurement.stopped
    assert math.ceil(1000 / 8.0) == pytest.approx(measurement.launches_per_window, abs=2)
    assert () == measurement.flags
    assert fresh.card.kernels[-1].unloaded


@pytest.mark.parametrize(
    ("bug", "reason", "stray"),
    [
        ("writes nothing", "2048 output words were never written", False),
        ("last row unwritten", "32 output words were never written", False),
        ("writes out of bounds", "2 guard words outside a buffer", True),
        ("changes its input", "changed its inputs", True),
        ("differs from launch to launch", "repeats differ bit for bit", False),
        ("wrong by 0.1 %", "error", False),
        ("reads uninitialised shared memory", "NaN", False),
        ("wrong after 100 launches", "after timing: the output differs", True),
    ],
)
def test_a_planted_bug_is_caught_and_the_next_candidate_unaffected(
    fresh: Bench, bug: str, reason: str, stray: bool
) -> None:
    fresh.set_up()
    judged = fresh.judge(bug)
    following = fresh.judge()

    assert isinstance(judged.verdict, Rejection)
    assert Gate.CORRECTNESS == judged.verdict.gate
    assert reason in judged.verdict.reason
    assert stray == judged.stray
    assert isinstance(following.verdict, Measurement)
    assert all(kernel.unloaded for kernel in fresh.card.kernels[1:])


def test_a_refused_launch_is_a_verdict(fresh: Bench) -> None:
    verdict = fresh.set_up().judge("asks for too much shared memory").verdict

    assert isinstance(verdict, Rejection)
    assert Gate.RUNTIME == verdict.gate
    assert {"error": "CUDA_ERROR_INVALID_VALUE", "free_bytes": 8 << 30} == verdict.evidence


def test_memory_that_a_candidate_lacks_is_its_own_fault(fresh: Bench) -> None:
    fresh.set_up()
    verdict, following = fresh.judge("wants much local memory").verdict, fresh.judge().verdict

    assert isinstance(verdict, Rejection)
    assert (Gate.RUNTIME, "CUDA_ERROR_OUT_OF_MEMORY from cuLaunchKernel") == (verdict.gate, verdict.reason)
    assert isinstance(following, Measurement)


def test_memory_that_another_process_took_is_not(fresh: Bench) -> None:
    fresh.set_up()
    fresh.card.free = 1 << 30

    with pytest.raises(UserError, match=r"taken the memory of Fake GPU, of 8.0 GiB .* are 1.0 left: end it"):
        fresh.judge("wants much local memory")


def test_a_fault_on_the_device_ends_the_bench(fresh: Bench) -> None:
    fresh.set_up()

    with pytest.raises(FatalCudaError, match="ILLEGAL_ADDRESS"):
        fresh.judge("illegal address")


def test_a_wrong_answer_in_a_damaged_process_is_nobodys_fault(fresh: Bench) -> None:
    fresh.set_up()
    fresh.bench._control.proof.accepted[0][3] += 1

    with pytest.raises(Tainted, match="default config"):
        fresh.judge("wrong by 0.1 %")


@pytest.mark.parametrize("bug", ["wrong by 0.1 %", "asks for too much shared memory"])
def test_a_broken_default_is_the_templates_fault(fresh: Bench, bug: str) -> None:
    with pytest.raises(TemplateError, match="default config"):
        fresh.set_up(bug)


def test_a_failing_reference_is_the_templates_fault(fresh: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fresh.bench._template.module, "check_problems", lambda values, problem: 1 / 0)

    with pytest.raises(TemplateError, match=r"axpb/template.py: check_problems fails: ZeroDivisionError"):
        fresh.set_up()


def test_only_the_bytes_that_were_built_are_loaded(fresh: Bench) -> None:
    subject = fresh.set_up().subject()
    Path(subject.cubin).write_bytes(b"something else")

    with pytest.raises(UserError, match="not the cubin that was built"):
        fresh.bench.judge(Judge(subject, 10.0))


def test_a_cubin_that_is_gone_is_not_the_workers_bug(fresh: Bench) -> None:
    subject = fresh.set_up().subject()
    Path(subject.cubin).unlink()

    with pytest.raises(UserError, match="cannot be read any more"):
        fresh.bench.judge(Judge(subject, 10.0))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."), UserError),
        (CudaError("CUDA_ERROR_OUT_OF_MEMORY", "cuModuleLoadData"), UserError),
        (RuntimeError("CUDA error: unknown error"), FatalCudaError),
    ],
)
def test_a_card_without_room_for_a_context_is_said_so(
    fresh: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception]
) -> None:
    def full(ordinal: int) -> None:
        raise error

    monkeypatch.setattr(bench, "Card", full)
    with pytest.raises(kind, match=r"another process has taken|no context on this GPU: CUDA error: unknown"):
        bench.GpuBench(0, fresh.told.append).open(Open(str(AXPB), {"rows": 64}, 1, str(fresh.folder)))


def test_a_beaten_candidate_gets_few_windows(fresh: Bench) -> None:
    verdict = fresh.set_up().judge(launch_us=21.0, best_us=10.0).verdict

    assert isinstance(verdict, Measurement)
    assert "beaten" == verdict.stopped
    assert timer.BEATEN_PAIRS == len(verdict.windows_us)
    assert 21.0 == pytest.approx(verdict.median_us, rel=0.02)


def test_the_bench_reports_what_the_watch_saw(fresh: Bench) -> None:
    fresh.set_up()
    fresh.card.clock_mhz = 1700.0
    fresh.card.slowness = 1.03
    verdict = fresh.judge(launch_us=9.0).verdict

    assert isinstance(verdict, Measurement)
    assert ("throttled", "control_drifted") == verdict.flags
    assert 0.9 == pytest.approx(verdict.ratio, rel=0.005)
    assert control.THROTTLE_TRIES == len(verdict.evidence["earlier_ratios"])
    assert 0.03 == pytest.approx(verdict.evidence["control_moved"], abs=0.005)
    assert 0 < verdict.evidence["half_width"] < timer.HALF_WIDTH
    assert {"before": {"sm_clock_mhz": 1700.0}, "after": {"sm_clock_mhz": 1700.0}} == verdict.clocks


def test_set_up_tells_the_controls_noise(fresh: Bench) -> None:
    fresh.card.noise = 0.05

    assert 0.05 == pytest.approx(fresh.set_up().ready.noise, rel=0.5)


def test_every_checked_launch_sees_scrubbed_memory(fresh: Bench) -> None:
    fresh.set_up()
    before = fresh.card.scrubs
    fresh.judge()

    assert 2 == fresh.card.scrubs - before, "one for each input set"


def test_the_final_run_times_everyone_in_every_round(fresh: Bench) -> None:
    finalists = (fresh.subject(launch_us=8.0, name="1"), fresh.subject(launch_us=9.0, name="2"))
    raced = fresh.bench.run_finals(RunFinals(fresh.subject(name="default"), finalists, 3))

    assert isinstance(raced, Raced)
    assert ["1", "2"] == [lap.name for lap in raced.finalists]
    assert {windows.FINAL_ROUNDS} == {len(lap.windows_us) for lap in (raced.control, *raced.finalists)}
    assert bench.FINAL_REPEATS == raced.finalists[0].checks[0].repeats
    ratio = np.median(np.array(raced.finalists[0].windows_us) / np.array(raced.control.windows_us))
    assert 0.8 == pytest.approx(ratio, rel=0.005)
    assert Working("check", "2") in fresh.told
    assert 0.9 == pytest.approx(np.median(raced.floor.windows_us), rel=0.005)
    deviation = raced.finalists[0].deviation
    assert deviation is not None
    assert 0 <= deviation.rel_fro < 1e-7


def test_finalists_are_timed_with_cold_l2_too(fresh: Bench) -> None:
    finalists = (fresh.subject(launch_us=8.0, name="1"),)
    raced = fresh.bench.run_finals(RunFinals(fresh.subject(name="default"), finalists, 3))

    assert isinstance(raced, Raced)
    assert 21 == raced.cold_copies, "20 times 16 KB is five times the L2, and one more"
    assert [cold.ROUNDS] * 2 == [len(lap.cold_us) for lap in (raced.control, *raced.finalists)]
    assert () == raced.floor.cold_us
    assert 8.0 * COLD == pytest.approx(np.median(raced.finalists[0].cold_us), rel=0.005)
    assert 1 == fresh.card.persisting_resets


def test_the_final_run_tells_the_worst_that_the_clocks_saw(fresh: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = itertools.cycle([1980.0, 1600.0, 1980.0])
    monkeypatch.setattr(fresh.card, "clocks", lambda: {"sm_clock_mhz": next(readings), "slowed_by": ["power cap"]})
    raced = fresh.bench.run_finals(RunFinals(fresh.subject(name="default"), (), 3))

    assert isinstance(raced, Raced)
    assert {"lowest_sm_clock_mhz": 1600.0, "slowed_by": ["power cap"]} == raced.clocks["during"]
    assert {"before", "after", "during"} == raced.clocks.keys()


@pytest.mark.parametrize(
    ("mbytes", "l2_mbytes", "copies"), [(2.0, 50.0, 126), (0.25, 50.0, 1001), (300.0, 50.0, 2), (3000.0, 50.0, 2)]
)
def test_enough_copies_evict_each_other(mbytes: float, l2_mbytes: float, copies: int) -> None:
    assert copies == cold.copies_needed(int(mbytes * 1e6), int(l2_mbytes * 1e6))


@pytest.mark.parametrize(("warm", "copies", "launches"), [(235, 126, 252), (34, 126, 126), (5, 2, 6), (500, 2, 500)])
def test_a_cold_window_is_whole_turns(warm: int, copies: int, launches: int) -> None:
    assert launches == cold.launches(warm, copies)


def test_cold_launches_go_through_the_copies_in_turn(fresh: Bench) -> None:
    """Each on tensors of its own, with the inputs that were proven; a problem too small to evict gets none."""
    buffers = fresh.bench._prover.buffers
    copies = cold.make_copies(buffers, 64 * 1024)
    tensors = list(fresh.bench._template.module.arguments({}, fresh.bench._problem))
    addresses = [copy.arguments(tensors)[:2] for copy in copies]

    assert 21 == len(copies)
    assert 22 == len({tuple(each) for each in (*addresses, buffers.arguments(tensors)[:2])})
    assert all(torch.equal(copy.inputs[0], buffers.inputs[0].values()) for copy in copies)
    turn = cold.InTurn([lambda n=n: n for n in range(3)])
    assert [0, 1, 2, 0] == [turn() for _ in range(4)]
    assert [] == cold.make_copies(buffers, 2**30)


@pytest.mark.parametrize(
    "bug", ["writes nothing", "wrong after 100 launches", "asks for too much shared memory", "writes out of bounds"]
)
def test_the_final_run_ends_with_the_first_wrong_finalist(fresh: Bench, bug: str) -> None:
    finalists = (fresh.subject(name="1"), fresh.subject(bug, name="2"))
    dropped = fresh.bench.run_finals(RunFinals(fresh.subject(name="default"), finalists, 3))

    assert isinstance(dropped, Dropped)
    assert "2" == dropped.name


def test_pytorchs_own_backends_go_through_the_copies_too(monkeypatch: pytest.MonkeyPatch) -> None:
    template = load_template(shipped("kernel_templates") / "attention")
    problem = AttentionProblem(heads=2, seq_q=32)
    arrays = template.module.inputs(problem, 1)
    buffers = ProblemBuffers(template, problem, arrays, torch.device("cpu"))
    copies = [buffers.copy() for _ in range(3)]
    copies[1].inputs[2].mul_(2.0)  # the output is linear in V
    captured: dict[int, tuple[Callable[[], torch.Tensor], int]] = {}

    def graph(call: Callable[[], torch.Tensor], launches: int, stream: object) -> SimulatedWindow:
        captured[len(captured)] = call, launches
        return SimulatedWindow(SimulatedEvents(), 1.0, launches, 0.0, 1)

    monkeypatch.setattr(windows, "CallGraph", graph)
    warm = {name: SimulatedWindow(SimulatedEvents(), 1.0, 7, 0.0, 1) for name in ("sdpa", "sdpa_math")}
    made = windows.Windows(FakeCard(0), lambda working: None)  # type: ignore[arg-type]
    found = made.cold(problem, ["sdpa", "sdpa_math"], copies, warm)

    assert ["sdpa", "sdpa_math"] == list(found)
    for call, launches in captured.values():
        assert 9 == launches
        first, second, third, again = (call() for _ in range(4))
        assert torch.equal(first, third)
        assert torch.equal(first, again)
        assert torch.allclose(second, 2 * first, atol=1e-2)
    assert {} == made.cold(load_template(AXPB).module.PROBLEM(), ["sdpa"], copies, warm)


def test_copies_share_the_scratch_and_nothing_else() -> None:
    template = load_template(AXPB.with_name("merge"))
    problem = template.module.PROBLEM()
    inputs = template.module.inputs(problem, 1)
    buffers = ProblemBuffers(template, problem, inputs, torch.device("cpu"))
    one, other = buffers.copy(), buffers.copy()
    same = {name for name in one.words if one.words[name].data_ptr() == other.words[name].data_ptr()}

    assert {tensor.name for tensor in template.module.tensors(problem) if tensor.role == "scratch"} == same
    assert sum(one.words[name].nbytes for name in one.words.keys() - same) == buffers.traffic_bytes


def test_guards_sit_on_both_sides_and_every_word_counts() -> None:
    buffer = GuardedBuffer(Tensor("o", "output", (3, 5), "fp16"), torch.device("cpu"))
    whole = buffer._all
    guard = GUARD_BYTES // 2

    assert 2 * guard + 15 == whole.numel()
    assert 0 == int(buffer.guard_hits())
    for index in (0, guard - 1, guard + 15, whole.numel() - 1):
        buffer.reset_guards()
        whole[index] += 1
        assert 1 == int(buffer.guard_hits()), index
    buffer.poison(0)
    assert bool(buffer.values().isnan().all())
    buffer.values()[1] = 2.0
    assert 10 == int(buffer.poison_left(0))
    assert 0 == int(buffer.poison_left(1)), "the other poison word is not this turn's"


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_poison_and_guards_are_nan_in_every_dtype(dtype: str) -> None:
    buffer = GuardedBuffer(Tensor("o", "output", (4,), dtype), torch.device("cpu"))  # type: ignore[arg-type]
    for turn in range(len(POISON)):
        buffer.poison(turn)
        assert bool(buffer.values().isnan().all())
    assert bool(buffer._guards[0].view(buffer.values().dtype).isnan().all())


def test_a_kernel_that_leaves_a_finished_output_alone_is_seen() -> None:
    template = load_template(AXPB)
    problem = template.module.PROBLEM(rows=4)
    held = ProblemBuffers(template, problem, template.module.inputs(problem, 1), torch.device("cpu"))

    def launch() -> None:
        output = held.outputs[0].values()
        if output.isnan().any():
            output.fill_(1.0)

    def nothing() -> None:
        """A host needs neither scrubbing nor waiting for."""

    observed, _ = observe(launch, held, CHECK_REPEATS, nothing, nothing)

    assert 0 == observed.poison_left
    assert 1 == observed.repeat_mismatches


def test_a_worker_finds_all_that_was_prepared_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_orphans: None
) -> None:
    """The same list in two places: what prove.py asks for must be what prepared.py makes."""
    template = load_template(AXPB)
    values = {"BUG": 0, "WORK": 1}
    monkeypatch.setattr(bench, "Card", FakeCard)
    monkeypatch.setattr(windows, "WARM_UP_SECONDS", 0.01)
    with closing(Prepared(template, template.module.PROBLEM(rows=64), values, 1, 2)) as prepared:
        assert 0 == prepared.wait()
        monkeypatch.setattr(references, "make_input_set", lambda *_: pytest.fail("computed again"))
        Bench(prepared.folder, seed=1).set_up().judge()
        final = Bench(prepared.folder, seed=2)
        raced = final.bench.run_finals(RunFinals(final.subject(name="default"), (final.subject(name="2"),), 3))

    assert isinstance(raced, Raced)
    assert not prepared.folder.exists()


def test_what_takes_all_cores_is_left_to_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = load_template(AXPB)
    problem = template.module.PROBLEM(rows=64)
    monkeypatch.setattr("evoengine.devices.prepared.MOST_FLOPS", 0.0)
    prepare([json.dumps([str(AXPB), {"rows": 64}, {"BUG": 0, "WORK": 1}, 1, 2, str(tmp_path)])])

    assert problem.flops > 0
    assert [] == list(tmp_path.glob("*.npz"))


def test_references_are_computed_once_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = load_template(AXPB)
    problem = template.module.PROBLEM(rows=4)
    first = input_set(template, problem, 5, "timed", tmp_path)
    monkeypatch.setattr(template.module, "reference", lambda *_: pytest.fail("computed again"))
    again = input_set(template, problem, 5, "timed", tmp_path)

    assert first.seed == again.seed
    for kind in ("inputs", "reference", "baseline"):
        ours, theirs = getattr(first, kind), getattr(again, kind)
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)


def test_seeds_differ_by_run_and_purpose() -> None:
    seeds = [derive_seed(seed, purpose) for seed, purpose in itertools.product((1, 2), ("timed", "check"))]

    assert 4 == len(set(seeds))
    assert seeds[0] == derive_seed(1, "timed")


def ranked(gap: float, launches: int, seed: int) -> bool:
    """Whether windows on an L4's clock put a kernel of 25 us before one that is `gap` slower."""
    events = SimulatedEvents(QUANTUM_US)
    slow = SimulatedWindow(events, 25.0 * (1 + gap), launches, 0.01, seed)
    fast = SimulatedWindow(events, 25.0, launches, 0.01, seed + 1000)
    pairs = timer.compare(slow, fast, events, beaten=False)
    ratios = sorted(w / c for w, c in zip(pairs.windows_us, pairs.control_us, strict=True))
    return ratios[len(ratios) // 2] > 1.0


def test_windows_rank_one_per_cent_on_a_coarse_clock() -> None:
    launches = timer.launches_per_window(25.0, QUANTUM_US)

    assert 40 == launches
    assert sum(ranked(0.01, launches, seed) for seed in range(100)) >= 95


def test_windows_stop_when_the_ratio_is_known() -> None:
    events = SimulatedEvents(0.001)
    control = SimulatedWindow(events, 10.0, 100, 0.0005, 1)
    quiet = timer.compare(SimulatedWindow(events, 10.0, 100, 0.0005, 2), control, events, beaten=False)
    noisy = timer.compare(SimulatedWindow(events, 10.0, 100, 0.1, 3), control, events, beaten=False)

    assert ("converged", timer.MIN_PAIRS) == (quiet.stopped, len(quiet.windows_us))
    assert ("limit", timer.MAX_PAIRS) == (noisy.stopped, len(noisy.windows_us))
    assert timer.half_width(quiet.windows_us, quiet.control_us) < timer.HALF_WIDTH


@pytest.mark.parametrize("more", [0.0, 0.03])
def test_no_place_in_a_pair_is_an_advantage(more: float) -> None:
    """On a card where every second window is 0.2 % shorter, and whose clock still rises for some ms in every burst."""
    events, taken = SimulatedEvents(0.001), 0

    class Window(SimulatedWindow):
        def replay(self) -> None:
            nonlocal taken
            taken += 1
            begun = events.now_us
            super().replay()
            slower = (1.0 if taken % 2 else 0.998) * (1 + 0.001 * math.exp(-taken / 8))
            events.now_us = begun + (events.now_us - begun) * slower

    subject, control = Window(events, 10.0 * (1 + more), 100, 0.0, 1), Window(events, 10.0, 100, 0.0, 2)
    pairs = timer.compare(subject, control, events, beaten=False)
    ratios = [w / c for w, c in zip(pairs.windows_us, pairs.control_us, strict=True)]

    assert 1 + more == pytest.approx(statistics.median(ratios), abs=1e-4)
    assert 1 + more == pytest.approx(statistics.geometric_mean(ratios), abs=1e-4)
    assert max(ratios) - min(ratios) > 0.003, "else there was no advantage"


@pytest.mark.parametrize("noise", [0.003, 0.006, 0.02])
def test_the_stated_confidence_holds_though_it_is_looked_at_again_and_again(noise: float) -> None:
    held = 0
    for seed in range(200):
        events = SimulatedEvents(0.001)
        control = SimulatedWindow(events, 10.0, 100, noise, 2 * seed)
        pairs = timer.compare(SimulatedWindow(events, 9.7, 100, noise, 2 * seed + 1), control, events, beaten=False)
        logs = [math.log(w / c) for w, c in zip(pairs.windows_us, pairs.control_us, strict=True)]
        error = abs(sum(logs) / len(logs) - math.log(0.97))
        held += error <= timer.half_width(pairs.windows_us, pairs.control_us)

    assert held >= 180, "95 % of 200 are 190"


@pytest.mark.parametrize(
    ("estimated_us", "quantum_us", "launches"),
    [(5.0, 0.032, 200), (5.0, 20.48, 410), (0.5, 0.032, 500), (5000.0, 1.024, 5)],
)
def test_a_window_is_long_against_the_clocks_step(estimated_us: float, quantum_us: float, launches: int) -> None:
    assert launches == timer.launches_per_window(estimated_us, quantum_us)


@pytest.mark.parametrize("launch_us", [0.8, 5.0, 900.0, 20_000.0])
def test_estimates_hold_for_any_kernel(launch_us: float) -> None:
    events = SimulatedEvents(QUANTUM_US)
    estimate = timer.estimate_us(lambda count: SimulatedWindow(events, launch_us, count, 0.0, 1), events)

    assert launch_us == pytest.approx(estimate, rel=0.1)


def test_an_estimate_outlives_a_host_that_is_late() -> None:
    """The card waits 5 ms for the host in front of the first timed window."""
    events = SimulatedEvents(QUANTUM_US)

    class Late(SimulatedWindow):
        replays = 0

        def replay(self) -> None:
            self.replays += 1
            events.now_us += 5000.0 * (self.replays == 2)
            super().replay()

    assert 4.5 == pytest.approx(timer.estimate_us(lambda count: Late(events, 4.5, count, 0.0, 1), events), rel=0.1)


def test_the_clocks_step_is_read_from_its_intervals() -> None:
    steps = random.Random(1)
    coarse = [1.024 * steps.randrange(5, 30) for _ in range(200)]

    assert 1.024 == pytest.approx(timer.quantum_of(coarse))
    assert 0.0 == timer.quantum_of([3.0] * 10)


@pytest.mark.parametrize(("freedom", "quantile"), [(7, 2.3646), (23, 2.0687)])
def test_students_t(freedom: int, quantile: float) -> None:
    assert quantile == pytest.approx(timer.student_975(freedom), rel=0.01)


def test_rounds_change_their_order() -> None:
    events = SimulatedEvents(0.001)
    order: list[str] = []

    class Named(SimulatedWindow):
        def __init__(self, name: str) -> None:
            super().__init__(events, 1.0, 5, 0.0, 1)
            self.name = name

        def replay(self) -> None:
            super().replay()
            order.append(self.name)

    windows: Mapping[str, timer.Window] = {name: Named(name) for name in "abcd"}
    times = timer.rounds(windows, events, 20, random.Random(1), lambda: None)

    assert {"a": 20, "b": 20, "c": 20, "d": 20} == {name: len(row) for name, row in times.items()}
    starts = [tuple(order[i + 1 : i + 5]) for i in range(0, len(order), 5)]
    assert len(set(starts)) > 5


def test_the_interval_covers_the_true_ratio() -> None:
    draw = np.random.default_rng(4)
    covered = 0
    for seed in range(60):
        control = 10.0 * np.exp(draw.normal(0, 0.01, 50))
        low, middle, high = ratio_interval((0.97 * control * np.exp(draw.normal(0, 0.01, 50))).tolist(), control, seed)
        assert low <= middle <= high
        covered += low <= 0.97 <= high

    assert covered >= 50


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"causal": True},
        {"kv_heads": 2},
        {"causal": True, "seq_k": 48, "diagonal": 16, "kv_heads": 2},
        {"causal": True, "diagonal": 5},
        {"scale": 0.3, "dtype": "bf16"},
    ],
)
def test_baselines_compute_the_problem_that_they_are_compared_on(changes: dict[str, int | bool | float | str]) -> None:
    template = load_template(shipped("kernel_templates") / "attention")
    fields = {"batch": 2, "heads": 4, "seq_q": 32, "dtype": "fp16", **changes}
    problem = AttentionProblem(**fields)  # type: ignore[arg-type]
    inputs = template.module.inputs(problem, 3)
    dtype = torch.float16 if problem.dtype == "fp16" else torch.bfloat16
    tensors = [torch.from_numpy(inputs[name]).to(dtype) for name in ("q", "k", "v")]
    calls = sdpa.calls(problem, tensors)
    truth = template.module.reference(problem, inputs)["o"]

    assert list(SDPA) == list(calls)
    for name in ("sdpa", "sdpa_math"):
        error = np.abs(calls[name]().double().numpy() - truth).max()
        assert error < 8 * 2.0 ** (-11 if problem.dtype == "fp16" else -8), name


def test_other_problems_have_no_competitor(fresh: Bench) -> None:
    fresh.set_up()

    assert () == fresh.ready.baselines
    assert {} == dict(fresh.ready.unavailable)


def test_our_own_kernels_compile_for_every_card() -> None:
    from evoengine.devices.cuda import scrub

    for name in ("scrub.cu", "empty.cu"):
        source = Path(scrub.__file__).with_name(name)
        assert all(scrub.compile_source(source, arch).startswith(b"\x7fELF") for arch in ("sm_80", "sm_89", "sm_90"))


def test_no_gpu_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    assert find_gpu() is None
