"""Faults that only a real card can have, beyond those planted in kernels: memory, driver, killed processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.trust import card_faults
from benchmarks.trust.card_faults import Session
from benchmarks.trust.fault import STOPPED
from benchmarks.trust.processes import Mark
from evoengine.devices.cuda import find_gpu
from evoengine.hardware import DeviceLimits
from evoengine.verdict import Gate

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def limits() -> DeviceLimits:
    found = find_gpu()
    assert found is not None, "marked gpu: skipped where there is none"
    return found


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Mark:
    """Of everything a test starts; and the card's lock is the test's own, since another module's device may hold it."""
    made = Mark()
    monkeypatch.setenv(made.name, made.value)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return made


@pytest.fixture
def session(limits: DeviceLimits, mark: Mark) -> Iterator[Session]:
    with Session(limits, mark) as made:
        yield made
    assert [] == mark.left_behind(30.0)


def test_a_deadlock_at_a_barrier_is_a_hang(session: Session) -> None:
    found = session.survived("barrier", Gate.TIMEOUT.value, lambda: session.judge("waits for ever at a barrier"))

    assert "" == found.problem
    assert session.device._job_seconds <= found.seconds


def test_a_candidate_whose_worker_is_killed_is_judged_again(session: Session) -> None:
    before = session.worker()
    found = card_faults.worker_killed(session)

    assert "" == found.problem
    assert before != session.worker()


def test_a_card_that_goes_and_comes_back(session: Session) -> None:
    found = session.survived(
        "driver gone", STOPPED, lambda: card_faults.driver_gone(session), 3 * card_faults.RESPAWN_SECONDS
    )

    assert "" == found.problem
    assert "CUDA_ERROR_NO_DEVICE" in found.reason


def test_memory_is_the_candidates_fault_unless_another_process_took_it(limits: DeviceLimits, mark: Mark) -> None:
    own = card_faults.out_of_memory(limits, mark)
    with Session(limits, mark) as session:
        others = card_faults.memory_taken(session)

    assert ["", ""] == [own.problem, others.problem]
    assert "OUT_OF" in own.reason
    assert "another process has taken the memory" in others.reason
    assert [] == mark.left_behind(30.0)


@pytest.mark.usefixtures("mark")
def test_kill_9_of_the_engine_takes_its_worker_along_whatever_that_is_doing() -> None:
    found = card_faults.engine_killed()

    assert () == found.orphans
    assert "" == found.problem
