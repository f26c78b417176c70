"""Optuna's own tools read a study of ours: as docs/optuna.md has it, on times recorded on an H200."""

from __future__ import annotations

import gzip
import importlib.util
import itertools
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from documented import README, ROOT, blocks

from evoengine.archive.archive import Archive
from evoengine.archive.lease import Owner
from evoengine.archive.records import StudySpec
from evoengine.hardware import card
from evoengine.problem import AttentionProblem, problem_digest
from evoengine.sampler import Proposal
from evoengine.space import Axis, SearchSpace
from evoengine.verdict import Artifact, Gate, Measurement, Rejection, ResourceUsage

RECORDED = ROOT / "studies" / "h200" / "spaces" / "mission.jsonl.gz"
NAME = "mission"
ROWS = 40
"""Configs of the recording in the study; another one is rejected."""
START_SECONDS = 60.0


@pytest.fixture(scope="module")
def rows() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The recording's head, and its first configs that have a time."""
    with gzip.open(RECORDED, "rt") as lines:
        head, *found = map(json.loads, itertools.islice(lines, 1 + 2 * ROWS))
    return head, [row for row in found if row["median_us"] is not None][:ROWS]


@pytest.fixture(scope="module")
def folder(rows: tuple[dict[str, Any], list[dict[str, Any]]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with studies/evoengine.db, in which these times are a study."""
    head, timed = rows
    folder = tmp_path_factory.mktemp("optuna")
    (folder / "studies").mkdir()
    axes = tuple(Axis(**{**axis, "choices": tuple(axis["choices"]), "names": ()}) for axis in head["axes"])
    space = SearchSpace(NAME, axes, (), head["default"])
    archive = Archive.open(f"sqlite:///{folder / 'studies' / 'evoengine.db'}")
    study = archive.create_study(_spec(head, space))
    study.acquire(Owner.current())
    for row in timed:
        [candidate] = study.claim([Proposal(space.point(row["values"]), "random")])
        us = row["median_us"]
        study.commit(candidate, Measurement((us,) * 3, (8.36,) * 3, 8.36, 100, "warm", "converged"), _artifact(row))
    values = next(one for one in _neighbours(space) if all(one != row["values"] for row in timed))
    [candidate] = study.claim([Proposal(space.point(values), "mutation")])
    study.commit(candidate, Rejection(Gate.COMPILE, "no"), None)
    study.release()
    archive.close()
    return folder


def _spec(head: dict[str, Any], space: SearchSpace) -> StudySpec:
    limits, problem = card("h200"), AttentionProblem(**head["problem"])
    return StudySpec(
        name=NAME, template="attention", template_digest="t", template_folder="", space=space.name,
        space_digest=space.digest, space_path="", axes=space.axes, default=space.default, problem=head["problem"],
        problem_label=problem.label, problem_digest=problem_digest(problem), device=limits.name,
        limits=limits.as_json(), arch=limits.arch, toolchain="NVRTC", sampler="random", seed=0, budget=ROWS,
        seconds=None, ceilings={}, command=head["command"], measures=True, created_at="2026-11-21T10:35:21+00:00",
    )  # fmt: skip


def _artifact(row: dict[str, Any]) -> Artifact:
    name = json.dumps(row["values"])
    return Artifact(name[:32], Path("none"), name[:64], ResourceUsage(**row["resources"]), 0.5, "NVRTC", "sm_90")


def _neighbours(space: SearchSpace) -> Iterator[dict[str, int]]:
    for axis in space.axes:
        for choice in axis.choices:
            yield {**space.default, axis.name: choice}


@pytest.fixture
def study(folder: Path, monkeypatch: pytest.MonkeyPatch) -> optuna.Study:
    monkeypatch.chdir(folder)
    return optuna.load_study(study_name=NAME, storage="sqlite:///studies/evoengine.db")


def test_the_best_trial_is_the_fastest_config(
    study: optuna.Study, rows: tuple[dict[str, Any], list[dict[str, Any]]]
) -> None:
    head, timed = rows
    fastest = min(timed, key=lambda row: row["median_us"])
    choices = {axis["name"]: axis["choices"] for axis in head["axes"] if axis["ordered"]}
    indices = {name: known.index(fastest["values"][name]) for name, known in choices.items()}

    assert fastest["median_us"] == study.best_value
    assert indices == {name: study.best_params[name] for name in indices}
    assert optuna.study.StudyDirection.MINIMIZE == study.direction
    states = [trial.state.name for trial in study.trials]
    assert (len(timed), 1) == (states.count("COMPLETE"), states.count("PRUNED"))


def test_the_readme_s_code_draws_a_slice(study: optuna.Study, folder: Path) -> None:
    pytest.importorskip("plotly", reason="plotly is not installed: pip install 'evoengine[report]'")
    [code] = [block for _, block in blocks(README, "python") if "optuna" in block]
    exec(code.replace("STUDY", NAME), {})

    assert "BLOCK_N" in (folder / "slice.html").read_text()


def test_the_page_s_code_runs(study: optuna.Study, capsys: pytest.CaptureFixture[str]) -> None:
    """Its blocks are one program; those with plots are left out where plotly is not installed."""
    known: dict[str, Any] = {}
    for _, block in blocks(ROOT / "docs" / "optuna.md", "python"):
        if "visualization" not in block or importlib.util.find_spec("plotly"):
            exec(block.replace("STUDY", NAME), known)
    said = capsys.readouterr().out

    assert f"{study.best_value:.3f} us {study.best_trial.user_attrs['evoengine']['config']}" in said
    assert all(name in said for name in study.best_params if name in ("BLOCK_N", "STAGES"))


def test_plots_can_be_made(study: optuna.Study) -> None:
    pytest.importorskip("plotly", reason="plotly is not installed: pip install 'evoengine[report]'")
    from optuna.visualization import plot_optimization_history, plot_parallel_coordinate, plot_slice

    for plot in (plot_optimization_history, plot_parallel_coordinate, plot_slice):
        assert plot(study).data


@pytest.mark.usefixtures("no_orphans")
def test_the_dashboard_shows_the_study(study: optuna.Study, folder: Path) -> None:
    beside = Path(sys.executable).parent / "optuna-dashboard"
    program = str(beside) if beside.exists() else shutil.which("optuna-dashboard")
    if program is None:
        pytest.skip("optuna-dashboard is not installed: pip install 'evoengine[report]'")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [program, "sqlite:///studies/evoengine.db", "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            page = _get(url, server).decode()
            listed = json.loads(_get(f"{url}/api/studies", server))["study_summaries"]
            [found] = [one for one in listed if one["study_name"] == NAME]
            shown = json.loads(_get(f"{url}/api/studies/{found['study_id']}", server))
        finally:
            server.terminate()
            server.wait(START_SECONDS)

    assert "Optuna Dashboard" in page
    assert [trial.number for trial in study.trials] == [trial["number"] for trial in shown["trials"]]
    assert study.best_value == min(trial["values"][0] for trial in shown["trials"] if trial["state"] == "Complete")


def _get(url: str, server: subprocess.Popen[bytes]) -> bytes:
    """What the server answers, as soon as it does."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return bytes(answer.read())
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
