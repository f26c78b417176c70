"""Whole searches over a stand-in GPU worker with every fault: each is a verdict, or a stop that can be resumed."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import empty_database
from fake_cuda_worker import FAULTS
from test_cuda_protocol import ARTIFACT, candidate

import evoengine.devices.cuda
from evoengine.archive.archive import Archive
from evoengine.cli import judges, main
from evoengine.devices.cuda import CudaDevice, device
from evoengine.devices.cuda.process import KILL_SECONDS
from evoengine.hardware import card
from evoengine.template import load_template
from evoengine.verdict import Gate, Measurement, Rejection, Verdict

HERE = Path(__file__).resolve().parent
JOB_SECONDS = 0.5
GATES = {
    "wrong": Gate.CORRECTNESS,
    "stray": Gate.CORRECTNESS,
    "taints": Gate.CORRECTNESS,
    "dies": Gate.RUNTIME,
    "killed": Gate.RUNTIME,
    "sticky": Gate.RUNTIME,
    "refused": Gate.RUNTIME,
    "hangs": Gate.TIMEOUT,
}
"""What each fault is rejected by; a candidate without one is measured."""

pytestmark = pytest.mark.usefixtures("no_orphans")


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """The stand-in's command line, with a job deadline of half a second and locks where the test's own files are."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(device, "MIN_JOB_SECONDS", JOB_SECONDS)
    monkeypatch.setattr(device, "JOB_FACTOR", 0.0)
    return sys.executable, str(HERE / "fake_cuda_worker.py"), str(tmp_path), f"GPU-{tmp_path.name}-{os.getpid()}"


Run = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def run(
    tmp_path: Path, worker: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs the command line on the stand-in: exit code, its document, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evoengine.devices.cuda, "find_gpu", lambda ordinal=0: card("l4"))
    monkeypatch.setattr(judges, "WORKER", worker)
    (tmp_path / "studies").mkdir()
    empty_database(tmp_path / "studies" / "evoengine.db")
    shutil.copytree(HERE / "templates" / "axpb", tmp_path / "mine", ignore=shutil.ignore_patterns("__pycache__"))
    # The stand-in's faults have other numbers than the template's bugs: none may keep a candidate from the worker.
    own = tmp_path / "mine" / "template.py"
    own.write_text(own.read_text().replace("2**20", "1024"))

    def command(*arguments: str) -> tuple[int, dict[str, Any], str]:
        code = main([*arguments, "--json", "--jobs", "2"])
        said = capsys.readouterr()
        return code, json.loads(said.out or "{}"), said.err

    return command


def lay_out(folder: Path, *faults: str) -> tuple[str, ...]:
    """A space of two right candidates and two of each fault; the options of a search through all of it."""
    numbers = [FAULTS.index(fault) for fault in ("right", *faults)]
    (folder / "mine" / "space.py").write_text(
        f"""
from evoengine.space import Axis, SearchSpace
SPACE = SearchSpace(
    "faults", (Axis("BUG", {tuple(sorted(numbers))}, "b"), Axis("WORK", (5, 10), "w")), (), {{"BUG": 0, "WORK": 10}},
    starts=tuple({{"BUG": bug, "WORK": work}} for work in (10, 5) for bug in {tuple(numbers[1:])}),
)
"""
    )
    return ("search", "--template", "mine", "--shape", "64", "--study", "first", "--budget", "99", "--batch", "20")


def verdicts() -> dict[tuple[str, int], Verdict | None]:
    """Every candidate of the study by its fault and work."""
    archive = Archive.open("studies/evoengine.db")
    try:
        records = archive.open_study("first").records()
    finally:
        archive.close()
    return {(FAULTS[one.config.values["BUG"]], one.config.values["WORK"]): one.verdict for one in records}


def test_every_fault_is_a_verdict_and_the_search_goes_on(run: Run, tmp_path: Path) -> None:
    code, document, _ = run(*lay_out(tmp_path, *GATES))
    found = verdicts()

    assert 0 == code
    assert "every feasible config has been tried" == document["stopped"]
    assert 2 * (1 + len(GATES)) == len(found)
    for (fault, work), verdict in found.items():
        if fault == "right":
            assert isinstance(verdict, Measurement), (fault, work)
        else:
            assert isinstance(verdict, Rejection), (fault, work)
            assert GATES[fault] == verdict.gate
            assert verdict.reason


@pytest.mark.parametrize(
    ("fault", "code", "words", "blamed"),
    [
        ("driver gone", 2, "the GPU or its driver has failed (CUDA_ERROR_NO_DEVICE from cuCtxSynchronize)", False),
        ("illegal address, then driver gone", 1, "the GPU worker does not start: CUDA_ERROR_NO_DEVICE", True),
    ],
)
def test_a_driver_that_goes_stops_the_search_which_goes_on_when_it_is_back(
    run: Run, tmp_path: Path, fault: str, code: int, words: str, blamed: bool
) -> None:
    stopped, _, err = run(*lay_out(tmp_path, fault), "--quiet")
    before = {key: verdict for key, verdict in verdicts().items() if verdict is not None}
    (tmp_path / "repaired").touch()
    resumed, document, _ = run("resume", "first")
    after = verdicts()

    assert (code, 0) == (stopped, resumed)
    assert words in err
    assert err.endswith("; then go on with: evoengine resume first --batch 20\n")
    assert 1 == err.count("\n")
    assert ([fault] if blamed else []) == [key[0] for key in before if key[0] == fault]
    assert before.items() <= after.items()
    assert 4 == len(after) == document["spent"]
    assert {Measurement} == {type(verdict) for key, verdict in after.items() if key not in before}


@pytest.mark.parametrize("fault", ["dies", "killed", "hangs", "sticky"])
def test_a_verdict_comes_within_its_deadline(worker: tuple[str, ...], fault: str) -> None:
    """A job has its deadline; a killed worker has KILL_SECONDS to vanish. Nothing else may take long."""
    template = load_template(HERE / "templates" / "axpb")
    with CudaDevice(template, template.module.PROBLEM(), card("l4"), seed=1, worker=worker) as made:
        made.start(candidate(0).config.values, ARTIFACT)
        started = time.monotonic()
        [(_, verdict)] = made.judge([(candidate(1, fault), ARTIFACT)])
        seconds = time.monotonic() - started

    assert isinstance(verdict, Rejection)
    assert seconds < JOB_SECONDS + KILL_SECONDS
    assert fault != "hangs" or seconds >= JOB_SECONDS
