"""Every command of README and docs/ does what its page says: run in order, page by page, on a prepared study."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest
from documented import PAGES, README, ROOT, Command, commands, reduced

from evoengine.cli import main

COMMANDS = [command for page in PAGES for command in commands(page)]
EXEMPT = {
    "pip": "installs packages",
    "optuna-dashboard": "a server: test_optuna_tools.py starts and stops it",
    "python -m pytest": "the tests themselves",
    "python docs/generate_cli.py": "its result is compared in test_docs.py",
    "python docs/draw_result.py": "test_docs.py draws the picture",
    "python -m benchmarks.fleet": "needs two GPUs",
    "python -m benchmarks.trust.": "needs a GPU or minutes; that the module is there is tested below",
}
"""What is not run, by how the command begins, and why."""
NOT_MEASURED = ("no measured time", "was never measured")
WITHOUT_A_GPU = {
    "compare": ("compare measures, and there is no GPU here",),
    "--devices": ("no GPU here; `evoengine doctor` says what is missing",),
    "profile": ("profile needs ncu", "here is no GPU"),
    "search --sanitize": ("--sanitize needs compute-sanitizer", "--sanitize launches finalists on a GPU"),
    "--format wisdom": NOT_MEASURED,
    "--format t4": NOT_MEASURED,
    "--format cachefile": NOT_MEASURED,
    "--format torch": NOT_MEASURED,
}
"""Commands that a machine without a GPU refuses, by words of theirs, and what it says then: one or the other."""
OTHER_EXIT_CODES = {"doctor": (0, 1)}
"""What may end otherwise than with 0: 1 says that something is missing on this machine."""


def spread_out(folder: Path) -> Path:
    """A folder to work in as the pages have it: the repository's files, and a place for studies of one's own."""
    (folder / "studies").mkdir(parents=True)
    for name in ("kernel_templates", "search_spaces", "docs", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    for kept in (ROOT / "studies").iterdir():
        if not kept.name.startswith("evoengine."):
            (folder / "studies" / kept.name).symlink_to(kept)
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose database holds the study that the pages call STUDY."""
    folder = spread_out(tmp_path_factory.mktemp("prepared") / "work")
    command = "search --study tuned --budget 1 --device none --jobs 2 --quiet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.chdir(folder)
        assert 0 == main(command.split())
    return folder


@pytest.fixture(scope="module")
def folders(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """Where each page's commands run: one folder a page, since a page is a story."""
    work = {}
    for page in {command.page for command in COMMANDS}:
        work[page] = spread_out(tmp_path_factory.mktemp(page.stem) / "work")
        for part in (prepared / "studies").glob("evoengine.*"):
            shutil.copyfile(part, work[page] / "studies" / part.name)
    return work


@pytest.mark.usefixtures("no_orphans")
@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_command(
    command: Command, folders: dict[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for beginning, reason in EXEMPT.items():
        if " ".join(command.words).startswith(beginning):
            pytest.skip(reason)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(folders[command.page])
    if command.arguments is None:
        program = shutil.which(command.words[0])
        if program is None:
            pytest.skip(f"{command.words[0]} is not installed")
        ran = subprocess.run([program, *command.words[1:]], capture_output=True, text=True, timeout=300)
        assert 0 == ran.returncode, ran.stderr
        return
    arguments = reduced(command)
    typed = " ".join(command.arguments)
    refusal = next((said for words, said in WITHOUT_A_GPU.items() if words in typed), None)
    try:
        code = main(arguments)
    except SystemExit as left:  # argparse
        code = int(str(left.code))
    said = capsys.readouterr()
    if "pip install -c constraints.txt -e '.[report]'" in said.err:
        pytest.skip(said.err.strip())
    if refusal is None:
        assert code in OTHER_EXIT_CODES.get(arguments[0], (0,)), said.err
    else:
        assert 2 == code
        assert any(words in said.err for words in refusal), said.err


def test_the_pages_have_commands() -> None:
    """An `sh` block that is not found any more would be a test less."""
    assert README in {command.page for command in COMMANDS}
    assert 40 < len(COMMANDS)


def test_modules_that_the_pages_start_are_there() -> None:
    named = {word for command in COMMANDS for word in command.words if word.startswith("benchmarks.")}

    assert set() == {name for name in named if importlib.util.find_spec(name) is None}
