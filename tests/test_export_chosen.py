"""Which config of a study is exported, what is said of it, and what is not exported at all."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import empty_database
from measured_study import BEST, GUESSES, PROBLEM, SPACE, TEMPLATE, cubin, spec_of, verdicts, write_guessed, write_study

from evoengine.archive.archive import Archive
from evoengine.cli import main, sources
from evoengine.cli.sources import find_chosen
from evoengine.cli.trusted import trust
from evoengine.errors import UserError
from evoengine.export.header import parse_header

FASTEST = next(number for number, (values, _) in enumerate(verdicts()) if values == BEST)
DEFAULT = next(number for number, (values, _) in enumerate(verdicts()) if {**SPACE.default, **values} == SPACE.default)


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cubins of these studies are made up: rebuilding them would find them stale."""
    monkeypatch.setattr(sources, "check_trial", lambda *_: None)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = empty_database(tmp_path_factory.mktemp("database") / "studies.db")
    archive = Archive.open(str(path))
    write_guessed(archive)
    write_study(archive, spec_of(name="refused"), verdicts()[9:], final=False)
    write_study(archive, spec_of(name="searched"), final=False)
    study = write_study(archive, spec_of(name="no winner"))
    study.replace_elites([dataclasses.replace(elite, verdict="SAME") for elite in study.elites()])
    write_study(archive, spec_of())
    archive.close()
    return path


@pytest.mark.parametrize(
    ("study", "trial", "expected", "confirmed"),
    [
        ("measured", None, FASTEST, True),
        (None, None, FASTEST, True),
        ("measured", 0, 0, False),
        ("searched", None, FASTEST, False),
        ("no winner", None, DEFAULT, False),
        ("guessed", None, 1, False),
    ],
)
def test_the_winner_leaves_or_the_default_where_there_is_none(
    database: Path, study: str | None, trial: int | None, expected: int, confirmed: bool
) -> None:
    [chosen] = find_chosen(study, str(database), trial=trial)
    values = {**SPACE.default, **(GUESSES if study == "guessed" else verdicts())[expected][0]}

    assert expected == chosen.facts.trial == chosen.row["trial"]
    assert values == chosen.values
    assert chosen.cubin == (cubin(values) if confirmed else None)
    assert (study == "guessed") == (chosen.facts.median_us is None) == (chosen.facts.estimated_us is not None)


def test_its_facts_are_those_of_the_study(database: Path) -> None:
    facts = find_chosen("measured", str(database))[0].facts

    assert ("NVIDIA L4", "sm_89", "NVRTC 13.0.88", "580.65") == (facts.device, facts.arch, facts.compiler, facts.driver)
    assert (TEMPLATE.digest, SPACE.digest) == (facts.template_digest, facts.space_digest)
    assert TEMPLATE.module.defines({**SPACE.default, **BEST}, PROBLEM) == facts.defines
    assert (pytest.approx(4.04), 0.01, pytest.approx(2.5)) == (facts.median_us, facts.noise, facts.speedup_over_default)
    assert (96, 12) == (facts.registers, facts.spill_bytes)


def test_an_estimate_is_exported_as_one(database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "best.h"

    assert 0 == main(["export", "guessed", "-o", str(path), "--storage", str(database)])
    assert re.search(r"best\.h: trial \d+ of guessed, .*, estimated 5\.00 us, not measured", capsys.readouterr().out)
    assert "// NOT MEASURED" in path.read_text()
    assert parse_header(path.read_text()) == find_chosen("guessed", str(database))[0].facts
    for form in ("wisdom", "torch"):
        assert 2 == main(["export", "guessed", "--format", form, "-o", str(tmp_path / "x"), "--storage", str(database)])
        assert "guessed was never measured" in capsys.readouterr().err
    assert [path] == list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["header", "bundle", "wisdom", "torch"])
def test_json_says_what_was_written(
    database: Path, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out"

    assert 0 == main(["export", "--format", form, "-o", str(path), "--json", "--storage", str(database)])
    document = json.loads(capsys.readouterr().out)
    [row] = document["configs"]
    assert (str(path), form) == (document["output"], document["format"])
    assert ("measured", FASTEST, PROBLEM.label) == (row["from"], row["trial"], row["shape"])
    assert path.is_dir() == (form in ("bundle", "torch"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("measured", "--trial", "10"), "trial 10 of measured did not pass every gate (compile: "),
        (("measured", "--trial", "9999"), "study measured has no trial 9999: its last is "),
        (("kernel.cu", "--format", "json"), "--format json with kernel.cu: a header is of one trial; name the study"),
        (
            ("refused",),
            "no config that passed every gate: see `evoengine show refused STORAGE` and `evoengine studies STORAGE`",
        ),
        (("measured", "searched", "--trial", "1"), "--trial 1 of 2 studies"),
        (("measured", "--template", "mine"), "template 'mine' is neither a folder nor a shipped template"),
        (("measured", "--format", "bundle", "-o", "kernel.cu/x"), "cannot write kernel.cu/x"),
        (("measured", "-o", ".", "--force"), "cannot write . ("),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    database: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("kernel.cu").touch()

    assert 2 == main(["export", "-o", "x", "--storage", str(database), *arguments])
    err = capsys.readouterr().err
    assert words.replace("STORAGE", f"--storage {database}") in err
    assert 1 == err.count("\n")
    assert ["kernel.cu"] == [path.name for path in tmp_path.iterdir()]


@pytest.mark.parametrize("form", ["header", "bundle", "wisdom", "torch", "t4", "cachefile", "json"])
def test_a_study_whose_template_changed_is_refused_unless_forced(tmp_path: Path, form: str, make_stale: Any) -> None:
    export = make_stale(tmp_path)

    assert 2 == export(form)
    # A package has the template with it: that of today would not go with the cubin of then, and nothing could load it.
    assert (2 if form == "torch" else 0) == export(form, "--force")


@pytest.fixture(scope="module")
def make_stale(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Callable[..., int]]:
    """A study of a copy of the template, which has changed since."""
    folder = tmp_path_factory.mktemp("stale")
    shutil.copytree(TEMPLATE.folder, folder / "attention", ignore=shutil.ignore_patterns("__pycache__"))
    database = empty_database(folder / "studies.db")
    archive = Archive.open(str(database))
    write_study(archive, dataclasses.replace(spec_of(), template_folder=str(folder / "attention")))
    archive.close()
    with (folder / "attention" / "kernel.cu").open("a") as kernel:
        kernel.write("// another line\n")

    def make(to: Path) -> Callable[..., int]:
        trust(folder / "attention")

        def export(form: str, *options: str) -> int:
            return main(["export", "--format", form, "-o", str(to / "out"), "--storage", str(database), *options])

        return export

    return make


@pytest.mark.parametrize("form", ["header", "bundle", "wisdom", "torch"])
def test_the_last_study_that_holds_a_config_is_the_default(
    tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    database = empty_database(tmp_path / "studies.db")
    archive = Archive.open(str(database))
    write_study(archive, spec_of(name="older"))
    write_study(archive, spec_of())
    write_study(archive, spec_of(name="refused"), verdicts()[9:], final=False)
    archive.close()
    command = ["export", "--format", form, "-o", str(tmp_path / "out"), "--storage", str(database)]

    assert 0 == main(command)
    said = " ".join(capsys.readouterr().out.split())
    assert f"trial {FASTEST} of measured" in said
    assert "the last study, refused, holds no config that passed every gate" in said
    # A number is of the study that was used last, whatever it holds.
    assert 2 == main([*command, "--trial", "0", "--force"])
    assert "trial 0 of refused did not pass every gate" in capsys.readouterr().err


def test_where_no_study_holds_a_config_the_last_one_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = empty_database(tmp_path / "studies.db")
    archive = Archive.open(str(database))
    for name in ("first", "last"):
        write_study(archive, spec_of(name=name), verdicts()[9:], final=False)
    archive.close()

    assert 2 == main(["export", "-o", str(tmp_path / "out"), "--storage", str(database)])
    assert "study last holds no config that passed every gate" in capsys.readouterr().err


def test_find_chosen_knows_a_header_from_a_study(database: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean measured"):
        find_chosen("measurd", str(database))
    (tmp_path / "no.h").write_text("#pragma once\n")
    with pytest.raises(UserError, match="not a header this evoengine reads"):
        find_chosen(str(tmp_path / "no.h"), str(database))
