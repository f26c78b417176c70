"""One card for a set of problems, without a card: real sessions over stand-in workers, one for each problem."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_cuda_protocol import ARTIFACT, HERE, candidate, notes

from evoengine import confirm
from evoengine.devices.cuda import CudaDevice, device
from evoengine.devices.cuda.lock import GpuLock, SharedLock
from evoengine.devices.cuda.results import Final
from evoengine.devices.cuda.shapes import ShapesDevice
from evoengine.errors import TemplateError, UserError
from evoengine.hardware import card
from evoengine.problem import Member, weighted_mean
from evoengine.template import load_template
from evoengine.verdict import Gate, Measurement, Rejection, Verdict, together

pytestmark = pytest.mark.usefixtures("no_orphans")

SIZES = (33, 65)
LABELS = ["R33", "R65"]
BOTH = together([ARTIFACT, ARTIFACT])
Make = Callable[..., ShapesDevice]


def uuid(folder: Path) -> str:
    return f"GPU-{folder.name}-{os.getpid()}"


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Devices for two problems over stand-in workers, whose notes are in a folder for each."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(device, "MIN_JOB_SECONDS", 0.5)
    monkeypatch.setattr(device, "JOB_FACTOR", 1.0)
    template = load_template(HERE / "templates" / "axpb")
    made: list[ShapesDevice] = []

    def make_device(*weights: float, **options: Any) -> ShapesDevice:
        lock = SharedLock()
        members = []
        for size, weight in zip(SIZES, weights or (1.0, 1.0), strict=True):
            folder = tmp_path / str(size)
            folder.mkdir(exist_ok=True)
            command = (sys.executable, str(HERE / "fake_cuda_worker.py"), str(folder), uuid(tmp_path))
            problem = template.module.PROBLEM(rows=size)  # type: ignore[call-arg]
            own = CudaDevice(template, problem, card("l4"), seed=1, worker=command, lock=lock, **options)
            members.append((Member(problem, weight), own))
        made.append(ShapesDevice(members, lock))
        return made[-1]

    yield make_device
    for each in made:
        each.close()


def judge(made: ShapesDevice, *faults: str, work: int = 10) -> list[Verdict]:
    asked = [(candidate(number, fault, work), BOTH) for number, fault in enumerate(faults, 1)]
    return [verdict for _, verdict in made.judge(asked)]


def count(tmp_path: Path, name: str) -> list[int]:
    return [len(notes(tmp_path / str(size), name)) for size in SIZES]


def test_every_problem_has_a_worker_and_all_share_the_card(make: Make, tmp_path: Path) -> None:
    made = make(3.0, 1.0)
    setup = made.start(candidate(0).config.values, BOTH)
    [verdict] = judge(made, "right")

    assert [1, 1] == count(tmp_path, "starts")
    assert [3.0, 1.0] == [row["weight"] for row in setup.control.evidence["shapes"]]
    assert isinstance(verdict, Measurement)
    ratios = [row["ratio_to_default"] for row in verdict.evidence["shapes"]]
    assert pytest.approx(weighted_mean(ratios, (3, 1))) == verdict.ratio
    with pytest.raises(UserError, match="in use by another evoengine"):
        GpuLock(uuid(tmp_path))
    made.close()
    GpuLock(uuid(tmp_path)).release()


def test_a_card_that_another_evoengine_holds_is_refused_and_no_worker_stays(make: Make, tmp_path: Path) -> None:
    other = GpuLock(uuid(tmp_path))
    made = make()
    with pytest.raises(UserError, match="in use by another evoengine"):
        made.start(candidate(0).config.values, BOTH)
    other.release()


def test_workers_that_were_begun_and_never_opened_end_with_the_device(make: Make) -> None:
    made = make()
    for one in made._devices:
        one.spawn()
    made.close()


def test_our_own_idle_workers_are_nobody_else(make: Make, tmp_path: Path) -> None:
    """The second worker sees the first one's process and load: only what the first found before it counts."""
    (tmp_path / str(SIZES[1])).mkdir()
    (tmp_path / str(SIZES[1]) / "card").write_text("[0.004, 80, 1]")
    setup = make().start(candidate(0).config.values, BOTH)

    assert () == setup.warnings
    assert 0 == setup.environment["other_processes"]


def test_a_card_that_is_busy_before_all_of_them_is_refused(make: Make, tmp_path: Path) -> None:
    (tmp_path / str(SIZES[0])).mkdir()
    (tmp_path / str(SIZES[0]) / "card").write_text("[0.004, 80, 1]")

    with pytest.raises(UserError, match="80 % busy"):
        make().start(candidate(0).config.values, BOTH)


@pytest.mark.parametrize(
    ("fault", "gate"), [("wrong", Gate.CORRECTNESS), ("sticky", Gate.RUNTIME), ("hangs", Gate.TIMEOUT)]
)
def test_the_first_rejection_ends_it_and_names_the_shape(make: Make, tmp_path: Path, fault: str, gate: Gate) -> None:
    made = make()
    made.start(candidate(0).config.values, BOTH)
    before = count(tmp_path, "best")
    verdicts = judge(made, fault, "right")

    assert isinstance(verdicts[0], Rejection)
    assert (gate, LABELS[0]) == (verdicts[0].gate, verdicts[0].evidence["refused_at"])
    assert verdicts[0].reason.startswith(f"{LABELS[0]}: ")
    assert isinstance(verdicts[1], Measurement)
    assert before[1] + 1 == count(tmp_path, "best")[1]
    assert 1 == count(tmp_path, "starts")[1]


def test_a_default_that_fails_at_one_shape_names_it(make: Make) -> None:
    with pytest.raises(TemplateError, match=f"{LABELS[0]}: the default config"):
        make().start(candidate(0, "dies").config.values, BOTH)


def test_finals_race_every_problem_in_a_fresh_process_and_judge_the_mean(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(3.0, 1.0)
    made.start(candidate(0).config.values, BOTH)
    work = [(candidate(1), BOTH), (candidate(2, "wrong"), BOTH)]
    finals = made.finals(work, 77)
    (_, right), (_, wrong) = finals.finalists

    assert [(LABELS[0], 3.0), (LABELS[1], 1.0)] == list(finals.shapes)
    assert ["1", "77", "77"] == notes(tmp_path / str(SIZES[0]), "seeds")
    assert isinstance(right, Final)
    assert isinstance(wrong, Rejection)
    assert f"{LABELS[0]}: wrong in the final" == wrong.reason
    assert ["1", "77"] == notes(tmp_path / str(SIZES[1]), "seeds")
    assert pytest.approx(weighted_mean([one.median_us for one in right.members], (3, 1))) == right.median_us
    assert pytest.approx(weighted_mean([one.ratio for one in right.members], (3, 1))) == right.ratio
    assert right.ratio_low <= right.ratio <= right.ratio_high

    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(b"kernel")
    monkeypatch.setattr(type(ARTIFACT), "cubin", cubin)
    [elite] = confirm.elites(finals, {1: BOTH, 2: BOTH}, "source")
    assert ("FASTER", ["FASTER", "FASTER"]) == (elite.verdict, [row["verdict"] for row in elite.evidence["shapes"]])
    assert (confirm.confidence(1), confirm.confidence(2)) == (
        elite.evidence["verdict_confidence"],
        elite.evidence["shapes"][0]["verdict_confidence"],
    )
