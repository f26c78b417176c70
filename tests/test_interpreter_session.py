"""The device without a GPU: verdicts from killable workers, and what is the candidate's fault and what is not."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from interpreted import compile_ptx

from evoengine.devices.interpreter import InterpreterDevice
from evoengine.errors import EvoengineError, TemplateError
from evoengine.hardware import card
from evoengine.space import Config
from evoengine.template import load_template
from evoengine.verdict import Artifact, Candidate, Estimate, Gate, Rejection, ResourceUsage

TEMPLATE = load_template(Path(__file__).parent / "templates" / "scale")
VALUES = {"THREADS": 64, "ITEMS": 2}
PROBLEM = TEMPLATE.module.PROBLEM()


@pytest.fixture(scope="module")
def ptx() -> str:
    return compile_ptx(TEMPLATE, VALUES, PROBLEM)


def wrong(ptx: str) -> str:
    assert "mul.f32" in ptx
    return ptx.replace("mul.f32", "add.f32")


def endless(ptx: str) -> str:
    return ptx.replace("ld.param", "AGAIN: bra AGAIN;\nld.param", 1)


def job(number: int, ptx: str, folder: Path) -> tuple[Candidate, Artifact]:
    home = folder / str(number)
    home.mkdir()
    (home / "kernel.ptx").write_text(ptx)
    resources = ResourceUsage(32, 0, 0, 0, 256, 0)
    artifact = Artifact(f"digest{number}", home, "0" * 64, resources, 0.1, "nvrtc 13.0", "sm_89")
    return Candidate(number, Config(tuple(VALUES.items()), "t_64"), "start"), artifact


@pytest.fixture
def device() -> Iterator[InterpreterDevice]:
    device = InterpreterDevice(TEMPLATE, PROBLEM, card("l4"), jobs=2)
    yield device
    device.close()


def test_every_candidate_gets_its_own_verdict(device: InterpreterDevice, ptx: str, tmp_path: Path) -> None:
    work = [job(0, ptx, tmp_path), job(1, wrong(ptx), tmp_path), job(2, ptx, tmp_path), job(3, ptx, tmp_path)]
    verdicts = {candidate.number: verdict for candidate, verdict in device.judge(work)}
    again = [verdict for _, verdict in device.judge([job(4, ptx, tmp_path)])]

    assert {0, 1, 2, 3} == set(verdicts)
    assert [Estimate] * 4 == [type(verdict) for verdict in (verdicts[0], verdicts[2], verdicts[3], *again)]
    assert isinstance(verdicts[1], Rejection)
    assert Gate.CORRECTNESS is verdicts[1].gate
    assert "N100" in verdicts[1].reason
    assert verdicts[1].checks[0].max_abs > 1
    assert not device.measures


def test_an_estimate_says_what_it_rests_on(device: InterpreterDevice, ptx: str, tmp_path: Path) -> None:
    ((_, verdict),) = device.judge([job(0, ptx, tmp_path)])

    assert isinstance(verdict, Estimate)
    assert verdict.estimated_us > 1.2  # an empty kernel
    assert "NVIDIA L4" == verdict.evidence["limits"]
    assert 4 == len(verdict.evidence["modes"]) == verdict.checks[0].repeats
    assert ("interpreted", "N100", 0) == (
        verdict.checks[0].input_set,
        verdict.checks[0].shape,
        verdict.checks[0].poison_left,
    )


def test_a_candidate_past_its_deadline_is_killed_and_the_next_one_judged(ptx: str, tmp_path: Path) -> None:
    device = InterpreterDevice(TEMPLATE, PROBLEM, card("l4"), jobs=1, deadline_seconds=0.5)
    try:
        work = [job(0, endless(ptx), tmp_path), job(1, ptx, tmp_path)]
        (first, late), (second, fine) = device.judge(work)
    finally:
        device.close()

    assert (0, 1) == (first.number, second.number)
    assert isinstance(late, Rejection)
    assert Gate.TIMEOUT is late.gate
    assert "not done after 0.5 s" in late.reason
    assert isinstance(fine, Estimate)


@contextmanager
def shooting(device: InterpreterDevice, times: int, number: signal.Signals) -> Iterator[None]:
    """Meanwhile, a worker is shot as soon as it has a job, so many times."""

    def shoot() -> None:
        shot: list[object] = []
        while len(shot) < times:
            for worker in [worker for worker in device._workers if worker.job and worker not in shot]:
                os.kill(worker.process.pid, number)  # type: ignore[arg-type]
                shot.append(worker)
            time.sleep(0.001)

    shooter = threading.Thread(target=shoot)
    shooter.start()
    try:
        yield
    finally:
        shooter.join()
        device.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_candidate_whose_worker_another_process_ends_is_judged_again(
    ptx: str, tmp_path: Path, number: signal.Signals
) -> None:
    """As a signal to a whole process group, or a system out of memory, does it."""
    device = InterpreterDevice(TEMPLATE, PROBLEM, card("l4"), jobs=1, deadline_seconds=3.0)
    with shooting(device, 1, number):
        (_, late), (_, fine) = device.judge([job(0, endless(ptx), tmp_path), job(1, ptx, tmp_path)])

    assert isinstance(late, Rejection)
    assert Gate.TIMEOUT is late.gate, "its own end, at the second try"
    assert isinstance(fine, Estimate)


def test_a_candidate_whose_worker_dies_twice_is_rejected(ptx: str, tmp_path: Path) -> None:
    device = InterpreterDevice(TEMPLATE, PROBLEM, card("l4"), jobs=1)
    with shooting(device, 2, signal.SIGKILL):
        (_, dead), (_, fine) = device.judge([job(0, endless(ptx), tmp_path), job(1, ptx, tmp_path)])

    assert isinstance(dead, Rejection)
    assert (Gate.RUNTIME, -9) == (dead.gate, dead.evidence["exit_code"])
    assert isinstance(fine, Estimate)


def test_a_worker_that_is_ended_while_it_waits_is_replaced(device: InterpreterDevice, ptx: str, tmp_path: Path) -> None:
    list(device.judge([job(0, ptx, tmp_path)]))
    [worker] = device._workers
    os.kill(worker.process.pid, signal.SIGTERM)  # type: ignore[arg-type]
    worker.process.join()

    assert [Estimate] == [type(verdict) for _, verdict in device.judge([job(1, ptx, tmp_path)])]


def test_an_unknown_instruction_is_not_the_candidates_fault(
    device: InterpreterDevice, ptx: str, tmp_path: Path
) -> None:
    strange = ptx.replace("mul.f32", "tcgen05.f32")
    with pytest.raises(TemplateError, match=r"does not model tcgen05\.f32 .*; or keep to what sm_80 has"):
        list(device.judge([job(0, strange, tmp_path)]))

    assert [Estimate] == [type(verdict) for _, verdict in device.judge([job(1, ptx, tmp_path)])]


def test_a_failure_of_the_interpreter_is_raised(device: InterpreterDevice, ptx: str, tmp_path: Path) -> None:
    candidate, artifact = job(7, ptx, tmp_path)
    artifact.ptx.unlink()
    with pytest.raises(EvoengineError, match="failed on candidate 7") as caught:
        list(device.judge([(candidate, artifact)]))

    assert "FileNotFoundError" in str(caught.value)


def test_a_consumer_that_stops_early_leaves_no_job_behind(device: InterpreterDevice, ptx: str, tmp_path: Path) -> None:
    work = [job(0, ptx, tmp_path), job(1, endless(ptx), tmp_path)]
    for _ in device.judge(work):
        break

    assert [] == [worker for worker in device._workers if worker.job]
    assert [2] == [candidate.number for candidate, _ in device.judge([job(2, ptx, tmp_path)])]
