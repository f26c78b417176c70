"""Running evoengine's command line in tests: a tiny template of the user's own, folders to work in, processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from evoengine.archive.archive import Archive

SCALE = Path(__file__).parent / "templates" / "scale"

SPACE = """
from evoengine.space import Axis, SearchSpace

SPACE = SearchSpace(
    "scale",
    (
        Axis("THREADS", (32, 48, 64, 128, 256, 512), "t"),  # 48 is refused by the compiler: no whole warps
        Axis("ITEMS", tuple(range(1, 17)), "i"),
        Axis("IGNORED", (0, 1), "x"),  # a dead knob: the template does not pass it on
    ),
    (),
    {"THREADS": 64, "ITEMS": 2, "IGNORED": 0},
    starts=({"THREADS": 48, "ITEMS": 2, "IGNORED": 0}, {"THREADS": 64, "ITEMS": 2, "IGNORED": 1}),
)
"""
QUESTION = ("--template", "mine", "--shape", "1000", "--device", "none")
"""Options of a search in a folder made by `lay_out`."""
JOBS = ("--jobs", "2", "--batch", "4")


def make_template(folder: Path) -> Path:
    """A template folder with its space beside it, as a user would write them."""
    shutil.copytree(SCALE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "space.py").write_text(SPACE)
    return folder


def empty_database(path: Path) -> Path:
    """A database that evoengine has opened before: making its tables takes a second, a copy does not."""
    Archive.open(str(path)).close()
    return path


def lay_out(folder: Path, database: Path) -> Path:
    """A folder to work in: the template `mine`, and the database where evoengine looks for it."""
    make_template(folder / "mine")
    (folder / "studies").mkdir()
    shutil.copyfile(database, folder / "studies" / "evoengine.db")
    return folder


def start(folder: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """`python -m evoengine` in a folder and a session of its own, without a GPU; standard error is a pipe."""
    root = str(Path(__file__).parent.parent)
    return subprocess.Popen(
        [sys.executable, "-m", "evoengine", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": root, "CUDA_VISIBLE_DEVICES": "", **options.pop("env", {})},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )
