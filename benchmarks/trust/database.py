"""The database and what is read: searches killed and resumed, many processes on one study, every parser fuzzed.

    python -m benchmarks.trust.database --output studies/h200/trust.json [--postgres URL]

Needs no GPU. `--postgres` is an empty database for the same proofs there; what they leave in it may be dropped.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import sqlite3
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy

from benchmarks.trust import fuzz
from benchmarks.trust.document import put_section
from benchmarks.trust.kills import Fate, killed_searches
from benchmarks.trust.workers import share
from evoengine.archive.archive import Archive

KILLS, KILLS_BY_TIME, WORKERS = 50, 20, 8
EXAMPLES = {"database": 1_000}
"""Of a parser; each of a database's is a second of a study being opened, read and recovered."""
EXAMPLES_ELSE = 5_000


def killed(urls: Sequence[str], folder: Path, kills: int, *, seed: int, by_time: bool) -> dict[str, Any]:
    """Searches killed `kills` times, summed up."""
    fates = killed_searches(kills, urls, folder, seed=seed, by_time=by_time)
    well = [fate for fate in fates if not (fate.lost or fate.doubled or fate.unfinished) and fate.same]
    return {
        "searches": len(fates),
        "kills": sum(len(fate.killed_at) for fate in fates),
        "kills_survived": sum(len(fate.killed_at) for fate in well),
        "verdicts_lost": _sum(fates, "lost"),
        "doubled": _sum(fates, "doubled"),
        "unfinished": _sum(fates, "unfinished"),
        "same_result_as_undisturbed": sum(fate.same for fate in fates),
    }


def _sum(fates: Sequence[Fate], name: str) -> int:
    return sum(getattr(fate, name) for fate in fates)


def proofs(url: str, folder: Path, seed: int) -> dict[str, Any]:
    """Kills and workers on the database at `url`."""
    Archive.open(url).close()
    return {
        "killed_before_a_statement": killed([url, url], folder, KILLS, seed=seed, by_time=False),
        "killed_at_a_time": killed([url, url], folder, KILLS_BY_TIME, seed=seed, by_time=True),
        "workers": dataclasses.asdict(share(url, folder, WORKERS)),
    }


def fuzzed(folder: Path, seed: int, scale: float) -> dict[str, Any]:
    """Every parser's examples; an error that is not the user's ends the run."""
    url = f"sqlite:///{folder / 'sound.db'}"
    Archive.open(url).close()
    found = {}
    for name, parser in fuzz.parsers(folder, url).items():
        started = time.monotonic()
        done = fuzz.fuzz(parser, max(int(scale * EXAMPLES.get(name, EXAMPLES_ELSE)), 1), seed)
        seconds = round(time.monotonic() - started, 1)
        found[name] = {"examples": done.examples, "refused": done.refused, "seconds": seconds}
        print(name, found[name], flush=True)
    return found


def environment(postgres: str | None) -> dict[str, Any]:
    """What the proofs ran on."""
    versions = {
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "optuna": optuna.__version__,
        "sqlalchemy": sqlalchemy.__version__,
        "cores": os.cpu_count(),
    }
    if postgres is not None:
        engine = sqlalchemy.create_engine(postgres)
        with closing(engine.connect()) as connection:
            versions["postgresql"] = connection.scalar(sqlalchemy.text("SHOW server_version"))
        engine.dispose()
    return versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--postgres", metavar="URL")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--fuzz", type=float, default=1.0, metavar="SHARE", help="of the examples")
    arguments = parser.parse_args()
    section: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["EVOENGINE_HOME"] = str(folder / "home")  # the user's own list of trusted folders stays out of it
        section["sqlite"] = proofs(f"sqlite:///{folder / 'proofs.db'}", folder, arguments.seed)
        print("sqlite", section["sqlite"], flush=True)
        if arguments.postgres is not None:
            section["postgresql"] = proofs(arguments.postgres, folder, arguments.seed)
            print("postgresql", section["postgresql"], flush=True)
        section["fuzzed"] = fuzzed(folder, arguments.seed, arguments.fuzz)
    put_section(arguments.output, "database", section, environment(arguments.postgres))


if __name__ == "__main__":
    main()
