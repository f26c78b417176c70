"""`evoengine search` as the first search on a machine is: an empty folder, build cache and database."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evoengine.archive.archive import Archive
from evoengine.archive.records import Record
from evoengine.devices.cuda.process import child_environment


class SearchFailed(Exception):
    """The search ended with an error: says the command, and the end of what it said."""


@dataclass(frozen=True)
class Searched:
    """`command` as it was given, `summary` as it was printed, and when each of `records` was committed, ascending.

    `wall_seconds` is the process's, from its start (`began`) to its end.
    """

    command: str
    began: datetime
    wall_seconds: float
    summary: dict[str, Any]
    records: list[Record]
    committed: list[datetime]


def first_search(options: Sequence[str]) -> Searched:
    """One search in a process of its own.

    Raises:
        SearchFailed: it did not end well.
    """
    arguments = ["search", *options, "--json", "--quiet"]
    command = shlex.join(["evoengine", *arguments])
    with tempfile.TemporaryDirectory() as folder:
        environment = {**child_environment(), "EVOENGINE_HOME": str(Path(folder) / "home")}
        words = [sys.executable, "-m", "evoengine", *arguments]
        began, started = datetime.now(UTC), time.monotonic()
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - started
        if done.returncode:
            raise SearchFailed(f"{command} ended with code {done.returncode}: {done.stderr[-2000:].strip()}")
        summary = json.loads(done.stdout)
        with closing(Archive.open(str(Path(folder) / "studies" / "evoengine.db"))) as archive:
            records = archive.open_study(summary["study"]).records()
    committed = sorted(datetime.fromisoformat(one.committed_at) for one in records)
    return Searched(command, began, seconds, summary, records, committed)
