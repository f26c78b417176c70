"""Searches that are killed and resumed until they come to their end, and what is then held against them."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import sqlalchemy
from optuna.trial import TrialState
from sqlalchemy import select

from benchmarks.trust.lives import Life, Orders, Place
from evoengine.archive import tables
from evoengine.archive.archive import Archive

Verdicts = dict[str, tuple[Any, ...]]


@dataclass
class Fate:
    """How a search fared: when it was killed (the moment, or seconds); committed verdicts that were `lost` or changed;
    trials beyond one a config; what was left unfinished; and whether its result is that of the undisturbed search."""

    killed_at: list[float] = field(default_factory=list)
    lost: int = 0
    doubled: int = 0
    unfinished: int = 0
    same: bool = True


def result(url: str, name: str) -> list[Any]:
    """All of a study that a kill must not change."""
    with closing(Archive.open(url)) as archive:
        study = archive.open_study(name)
        trials: list[Any] = [
            (
                (one.number, one.config.values, one.operator, one.generation, one.parents),
                (one.expected_gain, one.state, one.verdict, one.twin_of),
            )
            for one in study.records()
        ]
        elites = [(one.number, one.median_us, one.control_ratio, one.verdict, one.cubin) for one in study.elites()]
        return [*trials, *elites, *((one.name, one.verdict) for one in study.baselines()), study.counts()]


def committed(engine: sqlalchemy.Engine, name: str) -> Verdicts:
    """Every verdict of the study by config, with the session that committed it and when."""
    verdict, candidate, study = tables.verdict, tables.candidate, tables.study
    tied = verdict.join(candidate).join(study, study.c.id == candidate.c.study_id)
    query = select(candidate.c.config_digest, verdict).select_from(tied).where(study.c.name == name)
    with engine.connect() as connection:
        return {row[0]: tuple(row[1:]) for row in connection.execute(query)}


def examine(url: str, name: str, fate: Fate, seen: Verdicts, after: Verdicts) -> None:
    """Hold the end of a search against what its dead lives had committed."""
    fate.lost = sum(after.get(digest) != verdict for digest, verdict in seen.items())
    with closing(Archive.open(url)) as archive:
        study = archive.open_study(name)
        trials, records = study._ledger.trials(), study.records()
    fate.doubled = len(trials) - len({one.config for one in records})
    finished = {TrialState.COMPLETE, TrialState.PRUNED}
    fate.unfinished = sum(trial.state not in finished for trial in trials)
    fate.unfinished += sum(one.state != "done" for one in records)


def survive(place: Place, seed: int, moments: int, seconds: float | None, rng: random.Random) -> Fate:
    """Search at `place` to the end, each life killed at one of `moments`, or in its first `seconds`, by chance."""
    fate, seen = Fate(), Verdicts()
    engine = sqlalchemy.create_engine(place.url)
    while True:
        at = rng.randint(1, moments) if seconds is None else rng.uniform(0.0, seconds)
        life = Life(place, seed, Orders(shot_at=int(at)) if seconds is None else Orders())
        if life.end(None if seconds is None else at) is not None:
            break
        fate.killed_at.append(at)
        seen |= committed(engine, place.name)
    examine(place.url, place.name, fate, seen, committed(engine, place.name))
    engine.dispose()
    return fate


def killed_searches(kills: int, urls: Sequence[str], folder: Path, *, seed: int, by_time: bool = False) -> list[Fate]:
    """Searches until they have been killed `kills` times, one at a time in each of the databases `urls`.

    Each life is killed before a statement or commit that is drawn, or at a time that is drawn.

    Raises:
        RuntimeError: a life ended in a way that nobody meant.
    """
    how = "time" if by_time else "moment"
    undisturbed = Place(urls[0], f"undisturbed-{how}", folder)
    started = time.monotonic()
    ended = Life(undisturbed, seed).end()
    if ended is None or ended.error:
        raise RuntimeError(f"the undisturbed search did not end well: {ended}")
    seconds = 1.5 * (time.monotonic() - started) if by_time else None  # the machine may be slower another time
    expected = result(undisturbed.url, undisturbed.name)
    fates: list[Fate] = []

    def until_enough(at: int) -> None:
        for number in count():
            if sum(len(fate.killed_at) for fate in fates) >= kills:
                return
            place = Place(urls[at], f"killed-{how}-{at}-{number}", folder)
            fate = survive(place, seed, ended.moments, seconds, random.Random(f"{seed} {place.name}"))
            fate.same = expected == result(place.url, place.name)
            fates.append(fate)

    with ThreadPoolExecutor(len(urls)) as pool:
        list(pool.map(until_enough, range(len(urls))))
    return fates
