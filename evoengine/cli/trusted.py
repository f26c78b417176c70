"""Whose code runs. Templates and search spaces are Python, and a database, a header or a recording can name any folder.

What travels with evoengine runs. What is elsewhere runs only where the user has named it on this machine, with
--template or --space, which is noted in evoengine's home. So a study finds its template again, and a file from
elsewhere starts nothing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from evoengine.build.cache import cache_home
from evoengine.template import shipped

MAX_BYTES = 1 << 20


def trust(path: Path) -> Path:
    """Note that the user has named `path`, a folder or a file. Where nothing can be noted it must be named again."""
    path = path.resolve()
    if not is_trusted(path):
        with contextlib.suppress(OSError):
            _list().parent.mkdir(parents=True, exist_ok=True)
            with _list().open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(str(path)) + "\n")
    return path


def is_trusted(path: Path) -> bool:
    """Whether `path` is shipped, was named, or is in a folder that was."""
    path = path.resolve()
    ours = (shipped("kernel_templates").resolve(), shipped("search_spaces").resolve())
    return path.parent in ours or any(path.is_relative_to(one) for one in _named())


def _list() -> Path:
    return cache_home() / "trusted"


def _named() -> Iterator[Path]:
    with contextlib.suppress(OSError, UnicodeDecodeError), _list().open(encoding="utf-8") as lines:
        for line in lines.read(MAX_BYTES).splitlines():
            with contextlib.suppress(ValueError, RecursionError):  # a line that was cut short, or is not ours
                if isinstance(name := json.loads(line), str):
                    yield Path(name)
