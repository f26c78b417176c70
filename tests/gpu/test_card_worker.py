"""Workers on a real card: what was built and proven without one is measured here, and not compiled again."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from evoengine.archive.archive import Archive
from evoengine.build import compiling
from evoengine.cli import main
from evoengine.devices.cuda import find_gpu
from evoengine.hardware import CARDS
from evoengine.verdict import Measurement

pytestmark = pytest.mark.gpu


def test_estimated_elsewhere_and_measured_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = find_gpu()
    assert gpu is not None, "marked gpu"
    target = next((name for name, limits in CARDS.items() if limits.name == gpu.name), None)
    if target is None:
        pytest.skip(f"{gpu.name} cannot be searched for without it")
    monkeypatch.chdir(tmp_path)
    shared = ("--storage", "studies.db", "--study", "s", "--cache", "builds", "--quiet")
    question = ("--template", "rmsnorm", "--device", "none", "--target", target, "--budget", "5")
    monkeypatch.setenv("EVOENGINE_HOME", str(tmp_path / "elsewhere"))
    assert 0 == main(["search", *question, *shared])
    capsys.readouterr()

    monkeypatch.setenv("EVOENGINE_HOME", str(tmp_path / "here"))
    monkeypatch.setattr(compiling.Compiling, "__init__", lambda *_: pytest.fail("compiled again"))
    assert 0 == main(["worker", "--until-done", "--json", *shared])
    visits = json.loads(capsys.readouterr().out)["studies"]
    with closing(Archive.open("studies.db")) as archive:
        study = archive.open_study("s")
        records, elites = study.records(), study.elites()

    assert [("s", 5)] == [(visit["study"], visit["spent"]) for visit in visits]
    assert {"done"} == {record.state for record in records}
    assert any(isinstance(one.verdict, Measurement) and one.estimate is not None for one in records)
    assert len({one.verdict.control_reference_us for one in records if isinstance(one.verdict, Measurement)}) == 1
    assert elites
