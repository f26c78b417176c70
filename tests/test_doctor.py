"""The doctor finds what is missing, names the command that mends it, and never stops at the first broken thing."""

from __future__ import annotations

import dataclasses
import sys
from contextlib import closing
from importlib import metadata
from pathlib import Path

import pytest

import evoengine.devices.cuda
from evoengine import doctor
from evoengine.doctor import Finding, diagnose
from evoengine.hardware import DeviceLimits, card

NAMES = [
    "python gpu driver nvrtc nvcc torch optuna sqlalchemy ninja cache template database",
    "ncu compute-sanitizer cuobjdump postgresql",
]


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the whole PATH; scripts put there are the only tools this machine has."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    return folder


def script(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def fake_torch(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A torch for child processes alone."""
    (folder / "torch.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(folder))


TORCH_CPU = """
__version__ = "2.13.0+cpu"
class version: cuda = None
class cuda: is_available = staticmethod(lambda: False)
"""
TORCH_CUDA = TORCH_CPU.replace("None", '"13.0"')


def test_every_finding_is_there_and_says_what_to_do(
    tmp_path: Path, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_torch(tmp_path, monkeypatch, TORCH_CPU)
    findings = diagnose(f"sqlite:///{tmp_path}/new.db")

    assert " ".join(NAMES).split() == [finding.name for finding in findings]
    assert [] == [finding for finding in findings if (finding.state == "ok") == bool(finding.remedy)]
    assert [] == [finding for finding in findings if not finding.detail or "\n" in finding.detail + finding.remedy]
    assert not (tmp_path / "new.db").exists()
    dataclasses.asdict(findings[0])


def test_without_a_url_no_database_is_looked_at(tmp_path: Path, tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_torch(tmp_path, monkeypatch, TORCH_CPU)

    assert "database" not in {finding.name for finding in diagnose()}


def test_one_broken_check_hides_no_other(tmp_path: Path, tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("driver bug\nwith a long story")

    fake_torch(tmp_path, monkeypatch, TORCH_CPU)
    monkeypatch.setattr(evoengine.devices.cuda, "find_gpu", broken)
    monkeypatch.setattr(doctor, "load_space", broken)
    found = {finding.name: finding for finding in diagnose()}

    assert Finding("gpu", "missing", "ZeroDivisionError: driver bug", "pip check") == found["gpu"]
    assert "missing" == found["template"].state
    assert "ok" == found["torch"].state
    assert "ok" == found["nvrtc"].state


def limits_with(capability: tuple[int, int]) -> DeviceLimits:
    return dataclasses.replace(card("l4"), compute_capability=capability)


@pytest.mark.parametrize(
    ("gpu", "state"), [(None, "warn"), (limits_with((8, 9)), "ok"), (limits_with((7, 5)), "missing")]
)
def test_the_gpu_is_told_by_what_the_templates_need(
    monkeypatch: pytest.MonkeyPatch, gpu: DeviceLimits | None, state: str
) -> None:
    monkeypatch.setattr(evoengine.devices.cuda, "find_gpu", lambda: gpu)

    assert state == doctor._gpu().state


@pytest.mark.parametrize(
    ("answer", "bindings", "state", "remedy"),
    [
        ("echo 580.65.06", "13.0.3", "ok", ""),
        ("echo 580.65.06; echo 580.65.06", "13.0.3", "ok", ""),
        ("echo 570.133.20", "13.0.3", "missing", "evoengine[cu12]"),
        ("echo 570.133.20", "12.9.10", "ok", ""),
        ("echo No devices were found", "13.0.3", "missing", "580"),
        ("echo failed to communicate >&2; exit 9", "13.0.3", "missing", "580"),
        (None, "13.0.3", "warn", "580"),
    ],
)
def test_a_driver_too_old_for_cuda_13_asks_for_the_cu12_extra(
    tools: Path, monkeypatch: pytest.MonkeyPatch, answer: str | None, bindings: str, state: str, remedy: str
) -> None:
    if answer is not None:
        script(tools, "nvidia-smi", answer)
    monkeypatch.setattr(metadata, "version", lambda name: bindings)
    finding = doctor._driver()

    assert state == finding.state
    assert remedy in finding.remedy
    assert bool(remedy) == bool(finding.remedy)


def test_a_missing_nvcc_costs_only_the_second_compiler(tools: Path) -> None:
    missing = doctor._compiler("nvcc")
    script(tools, "nvcc", "echo Cuda compilation tools, release 13.0, V13.0.88")
    found = doctor._compiler("nvcc")

    assert ("warn", True) == (missing.state, "CUDA_HOME" in missing.remedy)
    assert Finding("nvcc", "ok", "nvcc 13.0.88") == found


@pytest.mark.parametrize(
    ("body", "gpu", "state", "says"),
    [
        (TORCH_CPU, False, "ok", "2.13.0+cpu, CPU build"),
        (TORCH_CPU, True, "missing", "CPU build on a machine with a GPU"),
        (TORCH_CUDA, False, "ok", "CUDA 13.0"),
        (TORCH_CUDA, True, "missing", "can use no GPU"),
        (TORCH_CUDA.replace("False", "True"), True, "ok", "CUDA 13.0"),
        ("raise ImportError('libcudart.so.13: cannot open')", False, "missing", "libcudart.so.13"),
        ("import os; os.abort()", False, "missing", "cannot be imported"),
        ("import time; time.sleep(60)", False, "missing", "took over 1 s"),
    ],
)
def test_torch_is_tried_where_its_crash_hurts_nobody(
    tmp_path: Path, tools: Path, monkeypatch: pytest.MonkeyPatch, body: str, gpu: bool, state: str, says: str
) -> None:
    fake_torch(tmp_path, monkeypatch, body)
    if "sleep" in body:
        monkeypatch.setattr(doctor, "TORCH_SECONDS", 1)
    if gpu:
        script(tools, "nvidia-smi", "echo 580.65.06")
    finding = doctor._torch()

    assert state == finding.state
    assert says in finding.detail


def test_a_library_that_is_too_old_or_absent_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = doctor._library("surely-not-installed", 1)
    monkeypatch.setattr(metadata, "version", lambda name: "4.6.0")
    old = doctor._library("optuna", 5)

    assert (
        Finding("surely-not-installed", "missing", "not installed", "pip install 'surely-not-installed>=1'") == absent
    )
    assert Finding("optuna", "missing", "4.6.0, needed is 5.0 or newer", "pip install 'optuna>=5'") == old


def test_a_missing_ninja_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ninja", None)

    assert "missing" == doctor._ninja().state


def test_the_cache_is_measured_and_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("EVOENGINE_HOME", str(home))
    empty = doctor._cache()
    assert not home.exists()
    (home / "builds").mkdir(parents=True)
    (home / "builds" / "kernel.cubin").write_bytes(b"x" * 1_500_000)
    full = doctor._cache()

    assert ("ok", True) == (empty.state, "0 files, 0.0 MB" in empty.detail)
    assert ("ok", True) == (full.state, "1 files, 1.5 MB" in full.detail)


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EVOENGINE_HOME", str(tmp_path / "file"))
    finding = doctor._cache()

    assert "missing" == finding.state
    assert "EVOENGINE_HOME" in finding.remedy


def test_the_shipped_template_and_space_load() -> None:
    finding = doctor._template()

    assert ("ok", True) == (finding.state, finding.detail.startswith("attention "))


def test_a_corrupt_database_is_missing_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes(b"not a database, only some text" * 100)
    before = (tmp_path / "study.db").read_bytes()
    finding = doctor._database(f"sqlite:///{tmp_path}/study.db")

    assert ("missing", "give another with --storage") == (finding.state, finding.remedy)
    assert before == (tmp_path / "study.db").read_bytes()


def test_a_database_below_a_file_can_never_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    assert "missing" == doctor._database(f"sqlite:///{tmp_path}/file/study.db").state


def test_a_database_that_exists_is_opened(tmp_path: Path) -> None:
    from evoengine.archive.archive import Archive

    url = f"sqlite:///{tmp_path}/study.db"
    with closing(Archive.open(url)) as archive:
        assert Finding("database", "ok", archive.name) == doctor._database(url)


@pytest.mark.gpu
def test_on_a_machine_with_a_gpu_nothing_is_missing() -> None:
    assert [] == [finding for finding in diagnose() if finding.state == "missing"]
