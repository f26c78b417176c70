"""How evoengine grows: proposals, claims, verdicts, resume, show and report against trials, space and database.

    python -m benchmarks.growth --output studies/growth.json [--postgres URL]

Draws FILE with .png in place of .json beside it. Rows that the file has are kept: what breaks off goes on. `--postgres`
is an empty database. Takes about 20 minutes on two quiet cores; no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.growth.plot import draw
from benchmarks.growth.spaces import FLAGS
from benchmarks.growth.studies import grow
from evoengine import __version__

MARKS = (100, 1_000, 10_000)
TIED = 10**6
"""The size that is measured listed as a whole, too: the largest a list is allowed to have is four times that."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--postgres", metavar="URL")
    parser.add_argument("--trials", type=int, nargs="+", default=list(MARKS), metavar="N")
    arguments = parser.parse_args()
    document: dict[str, Any] = {"proposals": [], "studies": []}
    if arguments.output.exists():
        document = json.loads(arguments.output.read_text())
    document |= {
        "command": "python -m benchmarks.growth --output studies/growth.json --postgres URL",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "evoengine": __version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }

    def keep(kind: str, row: dict[str, Any]) -> None:
        print(json.dumps(row), flush=True)
        document[kind].append(row)
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")

    for size, ties in [*((size, "free") for size in FLAGS), (TIED, "tied")]:
        for trials in arguments.trials:
            asked = {"size": size, "tied": ties == "tied", "trials": trials}
            if any(asked.items() <= row.items() for row in document["proposals"]) or trials >= size:
                continue
            command = [sys.executable, "-m", "benchmarks.growth.proposals", str(size), str(trials), ties]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            keep("proposals", {"size": size, **json.loads(done.stdout)})
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EVOENGINE_HOME"] = f"{folder}/home"  # no user's cache
        urls = {"sqlite": f"sqlite:///{folder}/grown.db", "postgresql": arguments.postgres}
        for database, url in urls.items():
            if url is None or {row["trials"] for row in document["studies"] if row["database"] == database} >= {
                *arguments.trials
            }:
                continue
            document["studies"] = [row for row in document["studies"] if row["database"] != database]
            for row in grow(url, arguments.trials):
                keep("studies", {"database": database, **row})
    draw(document, arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
