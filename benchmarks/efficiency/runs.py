"""Finished runs in a file of JSON lines: a benchmark that is cut off goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from evoengine.errors import UserError
from evoengine.recorded.space import RecordedSpace


class Key(NamedTuple):
    """Which run: a method's version and a space's digest are part of it, so that a changed one is run again."""

    space: str
    digest: str
    method: str
    version: str
    seed: int
    budget: int


@dataclass(frozen=True, slots=True)
class Run:
    """The rows that were evaluated, in order, and how long it took."""

    rows: tuple[int, ...]
    seconds: float


def digest(space: RecordedSpace) -> str:
    """12 hex digits over axes, configs and costs."""
    content = hashlib.sha256(repr((space.axes, space.points)).encode())
    content.update(space.costs.tobytes())
    return content.hexdigest()[:12]


def read(path: Path) -> dict[Key, Run]:
    """The runs in `path`, none where there is no such file. A line that was being written when it was cut off is
    removed from the file.

    Raises:
        UserError: a line is no run.
    """
    if not path.exists():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        path.write_bytes(whole)
    runs = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            found = json.loads(line)
            key = Key(**{name: found[name] for name in Key._fields})
            runs[key] = Run(tuple(found["rows"]), float(found["seconds"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} line {number} is no run of this benchmark: give another file") from error
    return runs


def append(path: Path, key: Key, run: Run) -> None:
    line: Mapping[str, object] = {**key._asdict(), **asdict(run)}
    with path.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")
