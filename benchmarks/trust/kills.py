"""Searches that are killed and resumed until they come to their end, and what is then held against them.

A life is a process that opens the database, searches, and is shot (SIGKILL, which is kill -9) before a given statement
or commit, or after a given time. The next life resumes. Between two lives it is read what the dead one had committed.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import sqlalchemy
from optuna.trial import TrialState
from sqlalchemy import select

from benchmarks.trust import replayed
from evoengine.archive import tables
from evoengine.archive.archive import Archive
from evoengine.archive.lease import Owner
from evoengine.errors import UserError

BUDGET = 20
"""Three batches of 8, the last one cut by the budget; the model proposes from the second on."""
PATIENCE_SECONDS = 300
"""Of this process with a life, which takes 2 s on a quiet core."""
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["benchmarks.trust.kills"])


@dataclass(frozen=True, slots=True)
class Place:
    """A study in a database, and the folder its cubins are in."""

    url: str
    name: str
    folder: Path


@dataclass
class Fate:
    """How a search fared: times it was killed, committed verdicts that were `lost` or changed, configs or trials that
    are there twice, trials left unfinished, and whether its result is that of the undisturbed search."""

    kills: int = 0
    lost: int = 0
    doubled: int = 0
    unfinished: int = 0
    same: bool = True
    at: list[str] = field(default_factory=list)


def live(place: Place, seed: int, shot_at: int | None, end: Connection) -> None:
    """One life. Sends the number of moments it had, if it gets there."""
    moments = count(1)
    last = [0]

    def moment(*_: Any) -> None:
        last[0] = next(moments)
        if last[0] == shot_at:
            os.kill(os.getpid(), signal.SIGKILL)

    for event in ("before_cursor_execute", "commit"):
        sqlalchemy.event.listen(sqlalchemy.Engine, event, moment)
    archive = Archive.open(place.url)
    try:
        study = archive.open_study(place.name)
    except UserError:
        study = archive.create_study(replayed.spec(place.name, seed=seed, budget=BUDGET))
    study.acquire(Owner.current())
    replayed.search(study, replayed.ReplayedBuilder(place.folder), replayed.ReplayedDevice())
    study.release()
    archive.close()
    end.send(last[0])


def run(place: Place, seed: int, *, shot_at: int | None = None, shot_after: float | None = None) -> int | None:
    """One life from outside: its moments, None where it was killed.

    Raises:
        RuntimeError: it ended in another way.
    """
    receive, send = processes.Pipe(duplex=False)
    process = processes.Process(target=live, args=(place, seed, shot_at, send))
    process.start()
    send.close()
    process.join(PATIENCE_SECONDS if shot_after is None else shot_after)
    if process.is_alive():
        process.kill()
        process.join()
        if shot_after is None:
            raise RuntimeError(f"{place.name}: no end after {PATIENCE_SECONDS} s")
    if process.exitcode == 0:
        return int(receive.recv())
    if process.exitcode != -signal.SIGKILL:
        raise RuntimeError(f"{place.name}: a life ended with exit code {process.exitcode}")
    return None


def result(archive: Archive, name: str) -> list[Any]:
    """All of a study that a kill must not change."""
    study = archive.open_study(name)
    trials: list[Any] = [
        (one.number, one.config, one.operator, one.generation, one.parents, one.expected_gain, one.verdict, one.twin_of)
        for one in study.records()
    ]
    elites = [(one.number, one.median_us, one.control_ratio, one.verdict, one.cubin_sha256) for one in study.elites()]
    return [*trials, *elites, *((one.name, one.verdict) for one in study.baselines()), study.counts()]


def committed(engine: sqlalchemy.Engine, name: str) -> dict[str, tuple[Any, ...]]:
    """Every verdict of the study by config, with who committed it when."""
    verdict, candidate, study = tables.verdict, tables.candidate, tables.study
    query = (
        select(candidate.c.config_digest, verdict)
        .select_from(verdict.join(candidate).join(study, study.c.id == candidate.c.study_id))
        .where(study.c.name == name)
    )
    with engine.connect() as connection:
        return {row[0]: tuple(row[1:]) for row in connection.execute(query)}


def judge(fate: Fate, engine: sqlalchemy.Engine, archive: Archive, name: str, seen: dict[str, tuple[Any, ...]]) -> None:
    """Hold the end of a search against what its dead lives had committed."""
    after = committed(engine, name)
    fate.lost = sum(after.get(digest) != row for digest, row in seen.items())
    study = archive.open_study(name)
    trials = study._ledger.trials()
    records = study.records()
    configs = {one.config for one in records}
    fate.doubled = len(trials) - len(configs)
    finished = {TrialState.COMPLETE, TrialState.PRUNED}
    fate.unfinished = sum(trial.state not in finished for trial in trials)
    fate.unfinished += sum(one.state != "done" for one in records)


def tell(place: Place, seed: int, moments: int, expected: list[Any], rng: random.Random, seconds: float | None) -> Fate:
    """Search at `place`, killed at random `moments` of each life (or at random times below `seconds`), to the end."""
    fate, seen = Fate(), dict[str, tuple[Any, ...]]()
    archive = Archive.open(place.url)
    engine = sqlalchemy.create_engine(place.url)
    while True:
        at = rng.randint(1, moments)
        how: dict[str, Any] = {"shot_at": at} if seconds is None else {"shot_after": seconds * at / moments}
        if run(place, seed, **how) is not None:
            break
        fate.kills += 1
        fate.at.append(next(f"{value:.4g}" for value in how.values()))
        seen |= committed(engine, place.name)
    judge(fate, engine, archive, place.name, seen)
    fate.same = expected == result(archive, place.name)
    engine.dispose()
    archive.close()
    return fate


def survive(
    kills: int, urls: list[str], folder: Path, *, seed: int, seconds: float | None = None, note: Callable[[str], None]
) -> list[Fate]:
    """Searches until they have been killed `kills` times, one at a time in each of the databases `urls`."""
    places = [Place(url, "undisturbed", folder) for url in urls]
    moments = run(places[0], seed)
    if moments is None:
        raise RuntimeError("the undisturbed search was killed by somebody else")
    archive = Archive.open(places[0].url)
    expected = result(archive, "undisturbed")
    archive.close()
    fates: list[Fate] = []

    def until_enough(at: int) -> None:
        for number in count():
            if sum(fate.kills for fate in fates) >= kills:
                return
            name = f"killed-{at}-{number}"
            rng = random.Random(f"{seed} {name} {seconds}")
            fates.append(tell(Place(urls[at], name, folder), seed, moments, expected, rng, seconds))
            note(f"{name}: {fates[-1]}")

    with ThreadPoolExecutor(len(urls)) as pool:
        list(pool.map(until_enough, range(len(urls))))
    return fates
