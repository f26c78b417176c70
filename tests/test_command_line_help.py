"""What the command line says of itself: one line for a mistake, versions, completion, and a quick start."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import evoengine
from evoengine.cli import main

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["serach"], "did you mean search?; see: evoengine --help"),
        (["search", "--bugdet", "5"], "search: unrecognized arguments: --bugdet 5; did you mean --budget?; see: evoen"),
        (["doctor", "--bugdet"], "evoengine doctor: unrecognized arguments: --bugdet; see: evoengine doctor --help"),
        (["studies", "copy", "a", "--ass", "b"], "studies copy: unrecognized arguments: --ass b; did you mean --as?"),
        (
            ["search", "--shape", "1,8,512,64", "weight=3"],
            "unrecognized arguments: weight=3; quote a shape with a weight: '1,8,512,64 weight=3'; see: evoengine",
        ),
        (["space", "--shape", "1,8,512,64", "weight=3"], "space: unrecognized arguments: weight=3; see: evoengine"),
        (["search", "--compiler", "nvc"], "did you mean nvcc?; see: evoengine search --help"),
        (["search", "--seed", "x"], "'x' must be a whole number from 0 on; see: evoengine search --help"),
        (
            ["search", "--study", ""],
            "argument --study: '' is no name: give one, or leave the option out; see: evoengine",
        ),
        (["studies", "copy", "a", "--as", ""], "argument --as: '' is no name"),
        (["export"], "the following arguments are required: -o/--output; see: evoengine export --help"),
        ([], "the following arguments are required: VERB; see: evoengine --help"),
    ],
)
def test_a_mistake_gets_one_line_and_the_nearest_name(
    capsys: pytest.CaptureFixture[str], argv: list[str], says: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    out, err = capsys.readouterr()

    assert 2 == stopped.value.code
    assert "" == out
    assert 1 == len(err.splitlines())
    assert says in err


def test_version_names_what_decides_a_result(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    out = capsys.readouterr().out

    assert 0 == stopped.value.code
    assert out.startswith(f"evoengine {evoengine.__version__}\n")
    assert f"optuna {metadata.version('optuna')}\n" in out


def test_exit_codes_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])

    told = " ".join(capsys.readouterr().out.split())
    assert "or `doctor` found something missing; 2 bad input" in told


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["se"], "search"),
        (["search", "--sam"], "--sampler"),
        (["search", "--sampler", "ev"], "evolution"),
        (["search", "--limits", "h2"], "h200"),
        (["studies", "ren"], "rename"),
        (["export", "--format", "he"], "header"),
        (["search", "--template", "kernel_t"], "kernel_templates"),
        (["search", "--space", "search_spaces/rms"], "search_spaces/rmsnorm.py"),
        (["compare", "README"], "README.md"),
    ],
)
def test_bash_completes_verbs_and_options(words: list[str], completed: str) -> None:
    script = subprocess.run(
        [sys.executable, "-m", "evoengine", "completion", "bash"], capture_output=True, text=True, check=True
    ).stdout
    ask = (
        f'COMP_WORDS=(evoengine {" ".join(words)}); COMP_CWORD={len(words)}; _shtab_evoengine; echo "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True, cwd=ROOT)

    assert completed == done.stdout.strip()
