"""Processes that search the replayed question, each in a life of its own: watched, shot, or cut off from the database.

A life opens the database, makes or resumes its study, and searches. It can be shot (SIGKILL, which is kill -9) before a
given statement or commit, the only steps between which a database changes, or after a given time.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import sqlalchemy

from benchmarks.trust import replayed
from evoengine.archive import database
from evoengine.archive.archive import Archive
from evoengine.archive.lease import Owner
from evoengine.errors import UserError

BUDGET = 16
"""Four batches of 4; the model proposes from the third on."""
END_SECONDS = 300
"""Patience with a life, which takes 2 s on a quiet core."""
_EXIT_CODES = threading.Lock()
"""Every start of a process asks after all others, and of two threads that read one's exit code one is told 255."""
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["benchmarks.trust.lives"])


@dataclass(frozen=True, slots=True)
class Place:
    """A study in a database, and the folder its cubins are in."""

    url: str
    name: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Orders:
    """What one life does differently: the moment it is shot at, the number of verdicts after which it waits for a word,
    its patience with the database, and whether it shares the study (it then proposes at random, by its seed)."""

    shot_at: int | None = None
    waits_after: int | None = None
    patience_seconds: float | None = None
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """A life that came to its end: the moments it had, its verdicts, and the error that stopped it, if any did."""

    moments: int
    verdicts: list[tuple[int, str]]
    error: str


def live(place: Place, seed: int, orders: Orders, line: Connection) -> None:
    """One life, in its own process. Sends None where it waits, and what it `Ended` with."""
    moments = [0]

    def moment(*_: Any) -> None:
        moments[0] += 1
        if moments[0] == orders.shot_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def await_word(verdicts: int) -> None:
        if verdicts == orders.waits_after:
            line.send(None)
            line.recv()

    for event in ("before_cursor_execute", "commit"):
        sqlalchemy.event.listen(sqlalchemy.Engine, event, moment)
    if orders.patience_seconds is not None:
        database.PATIENCE_SECONDS = orders.patience_seconds
        database.BUSY_SECONDS = orders.patience_seconds / 10
    listener, error = replayed.Listening(await_word), ""
    try:
        with contextlib.closing(Archive.open(place.url)) as archive:
            search(archive, place, seed, orders.shared, listener)
    except UserError as stopped:
        error = str(stopped)
    line.send(Ended(moments[0], listener.verdicts, error))


def search(archive: Archive, place: Place, seed: int, shared: bool, listener: replayed.Listening) -> None:
    """Begin the study or go on with it."""
    try:
        study = archive.open_study(place.name)
    except UserError:
        sampler = "random" if shared else "evolution"
        study = archive.create_study(replayed.spec(place.name, sampler=sampler, seed=seed, budget=BUDGET))
    study.acquire(Owner.current(), shared=shared)
    replayed.search(study, place.folder, listener, seed=seed)
    study.release()


class Life:
    """A life as its parent sees it."""

    def __init__(self, place: Place, seed: int, orders: Orders = Orders()) -> None:
        self._line, theirs = processes.Pipe()
        self._process = processes.Process(target=live, args=(place, seed, orders, theirs))
        with _EXIT_CODES:
            self._process.start()
        theirs.close()

    def interrupted_by(self, outage: Callable[[], None]) -> Ended | None:
        """Let it get to where it waits, do `outage`, send it on, and see it to its end."""
        if self._line.poll(END_SECONDS) and self._line.recv() is None:
            outage()
            self._line.send(None)
        return self.end()

    def end(self, within_seconds: float | None = None) -> Ended | None:
        """What it ended with; None where it was shot. A life that takes longer than `within_seconds` is.

        Raises:
            RuntimeError: it ended in another way, or does not end.
        """
        if not self._line.poll(END_SECONDS if within_seconds is None else within_seconds):
            self._process.kill()
            if within_seconds is None:
                raise RuntimeError(f"no end after {END_SECONDS} s")
        with contextlib.suppress(EOFError):
            ended = self._line.recv()
            self._exit_code()
            assert isinstance(ended, Ended), "a life that waits must be sent on"
            return ended
        if (code := self._exit_code()) != -signal.SIGKILL:
            raise RuntimeError(f"a life ended with exit code {code}")
        return None

    def _exit_code(self) -> int | None:
        wait([self._process.sentinel])
        with _EXIT_CODES:
            self._process.join()
            return self._process.exitcode
