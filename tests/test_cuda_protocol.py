"""The GPU device without a GPU: a stand-in worker that dies, hangs and errs on demand."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fake_cuda_worker import FAULTS

from evoengine.cli import early
from evoengine.devices.cuda import CudaDevice, Final, device, probe
from evoengine.devices.cuda.lock import GpuLock
from evoengine.devices.cuda.messages import (
    COMPETITORS,
    Dropped,
    Hello,
    Judge,
    Judged,
    Lap,
    Open,
    Opened,
    Raced,
    Ready,
    Reply,
    Request,
    RunFinals,
    SetUp,
    Subject,
    Trouble,
    Working,
    decode_reply,
    decode_request,
    encode,
)
from evoengine.devices.cuda.process import Worker, child_environment
from evoengine.devices.cuda.results import BaselineTiming, Deviation
from evoengine.devices.cuda.spares import Spares
from evoengine.errors import EvoengineError, TemplateError, UserError
from evoengine.hardware import card
from evoengine.space import Config
from evoengine.template import load_template
from evoengine.verdict import Artifact, Candidate, Check, Gate, Measurement, Rejection, ResourceUsage, Verdict

pytestmark = pytest.mark.usefixtures("no_orphans")

HERE = Path(__file__).resolve().parent
ARTIFACT = Artifact("d" * 32, Path("nowhere"), "0" * 64, ResourceUsage(32, 0, 0, 0, 0, 1024), 0.1, "nvrtc", "sm_89")
CHECK = Check("timed", "R33", 7, 1e-7, 1e-7, 1e-8, 1e-8, 1e-8, 0, 0, 0, False, 50, 0, 0.1)


def candidate(number: int, fault: str = "right", work: int = 10) -> Candidate:
    return Candidate(number, Config((("BUG", FAULTS.index(fault)), ("WORK", work)), f"c{number}"), "random")


@pytest.fixture
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks and scratch folders go where the test's own files go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_temporary_folder: None
) -> Iterator[Callable[[], CudaDevice]]:
    """Devices over the stand-in worker, with a job deadline of half a second."""
    monkeypatch.setattr(device, "MIN_JOB_SECONDS", 0.5)
    monkeypatch.setattr(device, "JOB_FACTOR", 1.0)
    template = load_template(HERE / "templates" / "axpb")
    command = (sys.executable, str(HERE / "fake_cuda_worker.py"), str(tmp_path), f"GPU-{tmp_path.name}-{os.getpid()}")
    made: list[CudaDevice] = []

    def make_device(**options: Any) -> CudaDevice:
        made.append(CudaDevice(template, template.module.PROBLEM(), card("l4"), seed=1, worker=command, **options))
        return made[-1]

    yield make_device
    for each in made:
        each.close()


def notes(folder: Path, name: str) -> list[str]:
    path = folder / name
    return path.read_text().splitlines() if path.exists() else []


def started(make: Callable[[], CudaDevice]) -> CudaDevice:
    made = make()
    made.start(candidate(0).config.values, ARTIFACT)
    return made


def judge(made: CudaDevice, *faults: str) -> list[Verdict]:
    work = [(candidate(number, fault), ARTIFACT) for number, fault in enumerate(faults, 1)]
    return [verdict for _, verdict in made.judge(work)]


@pytest.mark.parametrize(
    "message",
    [
        Open("folder", {"rows": 3, "causal": True}, 5, "scratch"),
        SetUp(Subject("default", {"BUG": 0}, "kernel.cubin", "00"), 5.5, True),
        Judge(Subject("1", {"BUG": 0}, "kernel.cubin", "00"), 3.5),
        RunFinals(Subject("default", {}, "c", "00"), (Subject("1", {"BUG": 1}, "c", "01"),), 9),
        RunFinals(Subject("default", {}, "c", "00"), (), 9, ("sdpa", "flex")),
    ],
)
def test_requests_survive_the_wire(message: Request) -> None:
    assert message == decode_request(encode(message))


@pytest.mark.parametrize(
    "message",
    [
        Hello("GPU-1", "name"),
        Working("check", "7"),
        Opened({"gpu": "x", "clocks": {"sm_clock_mhz": 1980}}),
        Ready(5.5, (BaselineTiming("sdpa", (1.0, 2.0), (1.0, 1.0), 9, 0.1, 0.2, 0),), {"a": "b"}, 0.01),
        Judged(
            Measurement(
                (1.0,), (2.0,), 2.0, 5, "warm", "beaten", {"before": {}}, (CHECK,), ("throttled",), {"half_width": 0.1}
            )
        ),
        Judged(Rejection(Gate.CORRECTNESS, "wrong", {"seed": 3}, (CHECK, CHECK)), stray=True),
        Raced(
            Lap("default", (1.0,), 5, (CHECK,), Deviation(0.1, 0.2, 3)),
            (Lap("1", (2.0,), 5, cold_us=(3.0, 3.5)),),
            (Lap("triton", (3.0,), 5, about="a config"),),
            Lap("empty kernel", (1.0,), 500),
            {"flex": "no compiler"},
            {"x": 1},
            126,
        ),
        Dropped("1", Rejection(Gate.RUNTIME, "CUDA_ERROR", {}, (CHECK,))),
        Trouble("bug", "text", "traceback"),
    ],
)
def test_replies_survive_the_wire(message: Reply) -> None:
    assert message == decode_reply(encode(message))


def test_a_right_candidate_is_measured(make: Callable[[], CudaDevice], tmp_path: Path) -> None:
    made = make()
    setup = made.start(candidate(0).config.values, ARTIFACT)
    verdicts = judge(made, "right", "wrong")

    assert 10.0 == setup.control_us
    assert () == setup.warnings
    assert {"sdpa_flash": "no kernel"} == setup.unavailable
    assert isinstance(verdicts[0], Measurement)
    assert isinstance(verdicts[1], Rejection)
    assert Gate.CORRECTNESS == verdicts[1].gate
    assert 1 == len(notes(tmp_path, "starts")), "a wrong answer costs no respawn"


def test_the_best_so_far_is_what_the_next_must_come_near(make: Callable[[], CudaDevice], tmp_path: Path) -> None:
    made = started(make)
    list(made.judge([(candidate(1, work=9), ARTIFACT), (candidate(2), ARTIFACT), (candidate(3), ARTIFACT)]))

    # A/A of the control, then the first candidate against the control, the others against the first
    assert ["10.0", "10.0", "9.03", "9.03"] == [f"{float(best):.3}" for best in notes(tmp_path, "best")]


def test_a_study_that_goes_on_keeps_its_scale_and_its_best(make: Callable[..., CudaDevice], tmp_path: Path) -> None:
    made = make(reference_us=9.0, best_us=4.0)
    setup = made.start(candidate(0).config.values, ARTIFACT)
    list(made.judge([(candidate(1), ARTIFACT)]))

    assert ["9.0"] == notes(tmp_path, "references")
    assert ["9.0", "4.0"] == notes(tmp_path, "best"), "the control beside itself, then a candidate"
    assert () == setup.warnings


def test_a_time_too_good_is_proven_and_timed_again_in_a_fresh_process(
    make: Callable[[], CudaDevice], tmp_path: Path
) -> None:
    made = started(make)
    work = [(candidate(1, work=5), ARTIFACT), (candidate(2), ARTIFACT), (candidate(3, work=4), ARTIFACT)]
    verdicts = list(made.judge(work))

    assert [2, 1, 3] == [candidate.number for candidate, _ in verdicts], "the doubted ones wait"
    assert 2 == len(notes(tmp_path, "starts")), "one fresh process for both"
    (_, usual), (_, five), (_, four) = verdicts
    assert isinstance(usual, Measurement)
    assert isinstance(five, Measurement)
    assert isinstance(four, Measurement)
    assert () == usual.flags
    assert ("rechecked",) == five.flags
    assert five.median_us == five.evidence["confirmed_median_us"] == five.evidence["doubted_median_us"]
    assert "5.030 us is under 0.9 times the best so far, 10.000 us" == five.evidence["doubted"]
    assert ["10.0", "10.0", "10.0", "10.0", "10.0", "5.03"] == [f"{float(b):.3}" for b in notes(tmp_path, "best")]
    assert four.median_us == made._best_us, "it may be what others are compared with now"


def test_what_a_fresh_process_does_not_confirm_counts_as_it_says(make: Callable[[], CudaDevice]) -> None:
    (once,) = judge(started(make), "fast once")

    assert isinstance(once, Measurement)
    assert 10.0 == pytest.approx(once.median_us, rel=0.01)
    assert 5.0 == pytest.approx(once.evidence["doubted_median_us"], rel=0.01)


def test_a_wonder_that_is_wrong_in_a_fresh_process_is_rejected(make: Callable[[], CudaDevice]) -> None:
    (wrong,) = judge(started(make), "fast, then wrong")

    assert isinstance(wrong, Rejection)
    assert Gate.CORRECTNESS == wrong.gate
    assert 5.0 == pytest.approx(wrong.evidence["doubted_median_us"], rel=0.01)
    assert 1 == wrong.evidence["seed"]


def test_above_the_roofline_is_said_even_where_it_is_confirmed(make: Callable[[], CudaDevice], tmp_path: Path) -> None:
    made = started(make)
    made._limits = dataclasses.replace(made._limits, tensor_tflops=1e-5)  # a launch would take 26 us
    (verdict,) = judge(made, "right")

    assert isinstance(verdict, Measurement)
    assert ("rechecked", "above_roofline") == verdict.flags
    assert "10.030 us is above the roofline" in verdict.evidence["doubted"]
    assert 2 == len(notes(tmp_path, "starts"))


@pytest.mark.parametrize(
    ("card_state", "message"),
    [
        ((0.05, 0, 0), r"vary by 5.0% on this card \(more than 3%\).*--force"),
        ((0.01, 60, 2), r"60 % busy before evoengine began \(2 other processes\).*--force"),
        ((0.01, 60, 0), r"\(unseen other processes\)"),
    ],
)
def test_a_card_unfit_for_timing_is_refused_unless_forced(
    make: Callable[..., CudaDevice], tmp_path: Path, card_state: tuple[float, int, int], message: str
) -> None:
    (tmp_path / "card").write_text(json.dumps(card_state))
    refused = make()
    with pytest.raises(UserError, match=message):
        refused.start(candidate(0).config.values, ARTIFACT)
    refused.close()
    forced = make(force=True).start(candidate(0).config.values, ARTIFACT)

    assert 1 == len(forced.warnings)


def test_idle_company_is_only_warned_of(make: Callable[[], CudaDevice], tmp_path: Path) -> None:
    (tmp_path / "card").write_text(json.dumps((0.01, 5, 1)))
    setup = make().start(candidate(0).config.values, ARTIFACT)

    assert ("1 other processes hold this card, idle so far: times are noisy while they compute",) == setup.warnings


def test_a_comparison_on_a_busy_card_is_refused_before_anything_is_timed(
    make: Callable[..., CudaDevice], tmp_path: Path
) -> None:
    (tmp_path / "card").write_text(json.dumps((0.01, 99, 1)))
    refused = make()
    with pytest.raises(UserError, match="99 % busy"):
        refused.compare((candidate(0).config.values, ARTIFACT), [], seed=5)
    refused.close()

    assert [] == notes(tmp_path, "competitors")
    assert make(force=True).compare((candidate(0).config.values, ARTIFACT), [], seed=5).finalists == ()


def test_a_later_worker_does_not_take_the_one_before_it_for_somebody_else(
    make: Callable[[], CudaDevice], tmp_path: Path
) -> None:
    made = make()
    made.start(candidate(0).config.values, ARTIFACT)
    (tmp_path / "card").write_text(json.dumps((0.004, 80, 1)))
    finals = made.finals([(candidate(1), ARTIFACT)], seed=9)
    made.compare((candidate(0).config.values, ARTIFACT), [], seed=5)

    assert (0, 0) == (finals.environment["other_load_percent"], finals.environment["other_processes"])


@pytest.mark.parametrize(
    ("fault", "gate", "reason"),
    [
        ("dies", Gate.RUNTIME, "ended with code 3"),
        ("hangs", Gate.TIMEOUT, "no answer in"),
        ("sticky", Gate.RUNTIME, "CUDA_ERROR_ILLEGAL_ADDRESS"),
        ("stray", Gate.CORRECTNESS, "guard words"),
    ],
)
def test_a_fault_costs_one_candidate_and_the_worker(
    make: Callable[[], CudaDevice], tmp_path: Path, fault: str, gate: Gate, reason: str
) -> None:
    made = started(make)
    first, second, third = judge(made, "right", fault, "right")

    assert isinstance(second, Rejection)
    assert gate == second.gate
    assert reason in second.reason
    assert isinstance(first, Measurement)
    assert isinstance(third, Measurement)
    assert 2 == len(notes(tmp_path, "starts"))
    assert ["None", "10.0"] == notes(tmp_path, "references"), "the fresh worker keeps the first control time"


def test_a_candidate_whose_worker_another_process_kills_is_judged_again(
    make: Callable[[], CudaDevice], tmp_path: Path
) -> None:
    once, after = judge(started(make), "killed once", "right")

    assert isinstance(once, Measurement)
    assert isinstance(after, Measurement)
    assert 2 == len(notes(tmp_path, "starts"))


def test_a_candidate_whose_worker_is_killed_twice_is_rejected(make: Callable[[], CudaDevice]) -> None:
    (verdict,) = judge(started(make), "killed")

    assert isinstance(verdict, Rejection)
    assert "ended with code -9" in verdict.reason


def test_a_finalist_is_not_blamed_for_a_killed_worker(make: Callable[[], CudaDevice], tmp_path: Path) -> None:
    made = started(make)
    finals = made.finals([(candidate(1, "killed once"), ARTIFACT), (candidate(2), ARTIFACT)], 9)

    assert [False, False] == [isinstance(final, Rejection) for _, final in finals.finalists]
    assert 1 == len(notes(tmp_path, "killed"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_whole_service_leaves_the_worker_to_its_parent(
    make: Callable[[], CudaDevice], tmp_path: Path, number: signal.Signals
) -> None:
    made = started(make)
    worker = made._session._worker
    assert worker is not None
    os.kill(worker.process.pid, number)
    (verdict,) = judge(made, "right")

    assert isinstance(verdict, Measurement)
    assert 1 == len(notes(tmp_path, "starts"))


def test_a_dead_worker_leaves_its_last_words(make: Callable[[], CudaDevice]) -> None:
    (verdict,) = judge(started(make), "dies")

    assert isinstance(verdict, Rejection)
    assert 3 == verdict.evidence["returncode"]
    assert "the driver is gone" in verdict.evidence["stderr"]


def test_the_second_failure_in_a_row_is_tried_again_before_it_is_blamed(
    make: Callable[[], CudaDevice], tmp_path: Path
) -> None:
    made = started(make)
    verdicts = judge(made, "dies", "sticky once", "right")

    assert [Rejection, Measurement, Measurement] == [type(verdict) for verdict in verdicts]
    assert 3 == len(notes(tmp_path, "starts"))


def test_a_lone_failure_is_not_tried_again(make: Callable[[], CudaDevice]) -> None:
    made = started(make)
    verdicts = judge(made, "right", "sticky once")

    assert [Measurement, Rejection] == [type(verdict) for verdict in verdicts]


def test_a_candidate_that_damages_the_control_is_blamed_after_a_fresh_try(
    make: Callable[[], CudaDevice], tmp_path: Path
) -> None:
    made = started(make)
    verdicts = judge(made, "taints", "right")

    assert isinstance(verdicts[0], Rejection)
    assert Gate.CORRECTNESS == verdicts[0].gate
    assert "outside its buffers" in verdicts[0].reason
    assert isinstance(verdicts[1], Measurement)
    assert 3 == len(notes(tmp_path, "starts"))


def test_a_slow_reference_is_not_the_candidates_fault(make: Callable[[], CudaDevice]) -> None:
    (verdict,) = judge(started(make), "slow reference")

    assert isinstance(verdict, Measurement)


@pytest.mark.parametrize("fault", ["dies", "sticky", "template"])
def test_a_broken_default_is_the_templates_fault(make: Callable[[], CudaDevice], fault: str) -> None:
    made = make()

    with pytest.raises(TemplateError):
        made.start(candidate(0, fault).config.values, ARTIFACT)


def test_a_bug_of_ours_is_an_exception_with_the_workers_traceback(make: Callable[[], CudaDevice]) -> None:
    made = started(make)

    with pytest.raises(RuntimeError, match="a mistake of ours"):
        judge(made, "bug")


def test_a_worker_that_does_not_start_is_said_so() -> None:
    template = load_template(HERE / "templates" / "axpb")
    command = (sys.executable, "-c", "raise SystemExit('no such GPU')")
    with (
        CudaDevice(template, template.module.PROBLEM(), card("l4"), seed=1, worker=command) as made,
        pytest.raises(EvoengineError, match=r"does not start.*no such GPU"),
    ):
        made.start(candidate(0).config.values, ARTIFACT)


def test_the_final_run_is_fresh_and_drops_who_fails(make: Callable[[], CudaDevice], tmp_path: Path) -> None:
    made = started(make)
    work = [(candidate(n, fault), ARTIFACT) for n, fault in enumerate(["right", "sticky", "wrong", "hangs", "right"])]
    finals = made.finals(work, seed=77)

    outcome = [result for _, result in finals.finalists]
    assert [Final, Rejection, Rejection, Rejection, Final] == [type(result) for result in outcome]
    assert [c for c, _ in work] == [c for c, _ in finals.finalists]
    first = outcome[0]
    assert isinstance(first, Final)
    assert 50 == len(first.windows_us)
    assert first.ratio_low <= first.ratio <= first.ratio_high < 0.6
    assert 1.0 == finals.control.ratio
    assert ["sdpa"] == [baseline.name for baseline in finals.baselines]
    assert ["1", "77", "77", "77", "77"] == notes(tmp_path, "seeds"), "each try in a process of its own"


def test_a_comparison_needs_no_search_and_leaves_out_a_competitor_that_dies(
    make: Callable[[], CudaDevice], tmp_path: Path
) -> None:
    work = [(candidate(1), ARTIFACT), (candidate(2, "sticky"), ARTIFACT)]
    finals = make().compare((candidate(0).config.values, ARTIFACT), work, seed=5)

    asked = [line.split() for line in notes(tmp_path, "competitors")]
    assert [list(COMPETITORS), [name for name in COMPETITORS if name != "flex"]] == asked
    assert {"flex", "sdpa_flash"} == set(finals.unavailable)
    assert "ended with code 4" in finals.unavailable["flex"]
    assert Deviation(1e-3, 1e-4, 0) == finals.baselines[0].deviation
    assert finals.floor is not None
    assert 1.0 == finals.floor.median_us
    assert [Final, Rejection] == [type(result) for _, result in finals.finalists]


def test_two_evoengines_do_not_share_a_card(make: Callable[[], CudaDevice]) -> None:
    first = started(make)
    second = make()

    with pytest.raises(UserError, match=f"process {os.getpid()}"):
        second.start(candidate(0).config.values, ARTIFACT)

    first.close()
    assert 10.0 == second.start(candidate(0).config.values, ARTIFACT).control_us


@pytest.mark.usefixtures("own_temporary_folder")
def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    uuid = f"GPU-{tmp_path.name}-{os.getpid()}-lock"
    code = f"from evoengine.devices.cuda.lock import GpuLock; GpuLock({uuid!r}); import os; os.kill(os.getpid(), 9)"
    environment = {**child_environment(), "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False)

    assert -9 == done.returncode
    lock = GpuLock(uuid)
    lock.release()


def gone(pid: int) -> bool:
    """Ended, or a zombie that only its reaper still lists."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_closing_ends_the_worker(make: Callable[[], CudaDevice], tmp_path: Path) -> None:
    made = started(make)
    (pid,) = notes(tmp_path, "starts")
    assert not gone(int(pid))

    made.close()

    assert gone(int(pid))


def test_a_killed_engine_leaves_no_worker_behind(tmp_path: Path) -> None:
    """Even while the worker's main thread is stuck in a job."""
    code = f"""
import sys
from pathlib import Path
from evoengine.devices.cuda import CudaDevice, device
from evoengine.hardware import card
from evoengine.template import load_template
from test_cuda_protocol import ARTIFACT, HERE, candidate
device.MIN_JOB_SECONDS = 600.0
template = load_template(HERE / "templates" / "axpb")
command = (sys.executable, str(HERE / "fake_cuda_worker.py"), {str(tmp_path)!r}, "GPU-{tmp_path.name}-orphan")
made = CudaDevice(template, template.module.PROBLEM(), card("l4"), seed=1, worker=command)
made.start(candidate(0).config.values, ARTIFACT)
list(made.judge([(candidate(1, "hangs"), ARTIFACT)]))
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=HERE, env={**child_environment(), "TMPDIR": str(tmp_path)}
    )
    try:
        wait_for(lambda: len(notes(tmp_path, "best")) == 2, "the worker to be in its second job")
    finally:
        parent.kill()
        parent.wait()
    (pid,) = notes(tmp_path, "starts")

    wait_for(lambda: gone(int(pid)), "the worker to end with its parent")


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.02)


def command_of(make: Callable[..., CudaDevice]) -> Sequence[str]:
    return make()._session.workers.command


class TestSpares:
    def test_one_waits_while_candidates_are_judged_and_the_final_run_takes_it(
        self, make: Callable[..., CudaDevice], tmp_path: Path
    ) -> None:
        made = make(spares=Spares(command_of(make)))
        made.start(candidate(0).config.values, ARTIFACT)
        before = len(notes(tmp_path, "starts"))
        [(one, _)] = made.judge([(candidate(1), ARTIFACT)])
        finals = made.finals([(one, ARTIFACT)], 9)
        timer, spare = notes(tmp_path, "starts")

        assert 1 == before
        assert timer != spare
        assert ["1", "9"] == notes(tmp_path, "seeds"), "the final run's process is a fresh one"
        assert [one] == [each for each, _ in finals.finalists]

    def test_a_doubt_is_settled_once_one_is_up_and_not_at_the_end(
        self, make: Callable[..., CudaDevice], tmp_path: Path
    ) -> None:
        spares = Spares(command_of(make))
        made = make(spares=spares)
        made.start(candidate(0).config.values, ARTIFACT)

        def work() -> Iterator[tuple[Candidate, Artifact]]:
            yield candidate(1, work=5), ARTIFACT
            wait_for(lambda: spares.ready, "a spare to be up")
            yield candidate(2, work=5), ARTIFACT  # as doubtful as the first: nothing is known of that yet
            yield candidate(3, work=5), ARTIFACT

        verdicts = list(made.judge(work()))

        assert [1, 2, 3] == [one.number for one, _ in verdicts]
        assert [("rechecked",), ("rechecked",), ()] == [verdict.flags for _, verdict in verdicts]
        assert [5.03, 5.03, 5.03] == [round(verdict.median_us, 2) for _, verdict in verdicts]
        assert 2 == len(notes(tmp_path, "references")), "the control of the first process and of the second"

    def test_a_fault_takes_the_one_that_waits_and_another_is_begun(
        self, make: Callable[..., CudaDevice], tmp_path: Path
    ) -> None:
        spares = Spares(command_of(make))
        made = make(spares=spares)
        made.start(candidate(0).config.values, ARTIFACT)
        wait_for(lambda: spares.ready, "a spare to be up")
        before = len(notes(tmp_path, "starts"))
        verdicts = judge(made, "dies", "right")
        wait_for(lambda: spares.ready, "another to be up")

        assert [Rejection, Measurement] == [type(verdict) for verdict in verdicts]
        assert [2, 3] == [before, len(notes(tmp_path, "starts"))]

    def test_one_that_was_started_before_is_the_first(self, make: Callable[..., CudaDevice], tmp_path: Path) -> None:
        early = Worker(command_of(make))
        made = make(spares=Spares(command_of(make), early))
        made.start(candidate(0).config.values, ARTIFACT)

        assert str(early.process.pid) == notes(tmp_path, "starts")[0]

    def test_one_that_nobody_needed_ends_with_the_device(self, make: Callable[..., CudaDevice]) -> None:
        early = Worker(command_of(make))
        make(spares=Spares(command_of(make), early)).close()

        assert early.process.returncode is not None


class TestEarly:
    @pytest.fixture
    def worker(self, make: Callable[..., CudaDevice], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(early, "WORKER", command_of(make)[:-1])
        monkeypatch.setattr(probe, "begin", lambda ordinal: None)

    @pytest.mark.usefixtures("worker")
    @pytest.mark.parametrize(("device", "begun"), [("auto", True), ("cuda", True), ("cuda:0", True), ("none", False)])
    def test_a_worker_is_begun_where_a_card_is_meant(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, begun: bool
    ) -> None:
        monkeypatch.setattr(early, "DRIVER", (tmp_path,))
        with closing(early.Early(device)) as made:
            other, worker = made.take(1), made.take(0)
            again = made.take(0)
        if worker is not None:
            worker.close()

        assert begun == (worker is not None)
        assert [None, None] == [other, again]

    @pytest.mark.usefixtures("worker")
    def test_nothing_is_begun_without_a_driver(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(early, "DRIVER", (tmp_path / "none",))

        assert early.Early("auto").take(0) is None

    @pytest.mark.usefixtures("worker")
    def test_what_nobody_takes_is_ended(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(early, "DRIVER", (tmp_path,))
        made = early.Early("cuda")
        worker = made._worker
        made.close()

        assert worker is not None
        assert worker.process.returncode is not None
