"""`evoengine worker`: takes part in the studies of a database, beside other machines, until it is told to stop."""

from __future__ import annotations

import argparse
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from types import FrameType

from evoengine.archive.archive import Archive
from evoengine.archive.records import StudySummary
from evoengine.archive.study import Study
from evoengine.archive.work import Bounds
from evoengine.cli import INTERRUPTED
from evoengine.cli.resolve import find_target
from evoengine.cli.running import STOP_SIGNALS, Joining, search_study, signals_given_back
from evoengine.cli.search import reopened
from evoengine.cli.storage import existing_storage
from evoengine.cli.tables import console
from evoengine.errors import TemplateError, Unavailable, UserError
from evoengine.progress import End

IDLE_SECONDS = 5.0
"""Between two looks for work where there is none. A look costs the database a dozen queries a study."""
PATIENCE_SECONDS = 60.0
"""With a database that is away, before what was in flight is given up: longer than a server takes to start again."""


def run(arguments: argparse.Namespace) -> int:
    worker = Worker(arguments)
    worker.work()
    if arguments.json:
        print(json.dumps({"studies": [asdict(one) for one in worker.visits], "stopped": worker.told_to_stop.is_set()}))
    return INTERRUPTED if worker.told_to_stop.is_set() else 0


@dataclass(frozen=True, slots=True)
class Visit:
    """One stay at a study: `verdicts` of this worker, `spent` of the study's budget when it left, and why it did."""

    study: str
    verdicts: int
    spent: int
    ended: str


class Worker:
    """Goes from study to study, and from one it cannot work on now to the next.

    What passes by itself (the database away, a study searched by somebody who does not share it) is waited for. How
    each study was left is remembered, so that none is visited again before anything has changed in it.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.told_to_stop = threading.Event()
        self.visits: list[Visit] = []
        self._arguments = arguments
        self._ahead: int | None = arguments.ahead if arguments.no_gpu else None
        if arguments.no_gpu and arguments.devices:
            raise UserError(f"--no-gpu --devices {arguments.devices}: give one of them")
        found = None if arguments.no_gpu else find_target(arguments.device, "l4", None, arguments.devices)
        self._measures = found is not None and found.ordinal is not None
        self._left_at: dict[str, State] = {}
        self._left_out: set[str] = set()
        self._said = ""
        self._to_release: list[Study] = []

    def work(self) -> None:
        """Until a signal, or with --until-done until nothing is unfinished.

        Raises:
            UserError: the database cannot be used, or the study that is named is not there or cannot go on here.
            TemplateError: its template is broken.
        """
        url = existing_storage(self._arguments.storage)
        with _signals(self.told_to_stop), closing(Archive.open(url, PATIENCE_SECONDS)) as archive:
            while not self.told_to_stop.is_set():
                try:
                    unfinished = self._round(archive)
                except Unavailable as error:
                    self._note(f"{error}; this worker tries again")
                    unfinished = True
                if self._arguments.until_done and not unfinished:
                    return
                self.told_to_stop.wait(IDLE_SECONDS)

    def _round(self, archive: Archive) -> bool:
        """Work on every study that has work; whether any is unfinished."""
        while self._to_release:  # an earlier stay that the database did not hear the end of
            self._to_release[-1].release()
            self._to_release.pop()
        name = self._arguments.study
        studies = archive.studies() if name is None else [archive.summary(name)]
        unfinished = [one for one in studies if self._unfinished(archive, one)]
        for one in unfinished:
            if self.told_to_stop.is_set():
                break
            if self._may_help(one) and self._left_at.get(one.spec.name) != _state(one):
                self._visit(archive, one)
        return any(one.spec.name not in self._left_out for one in unfinished)

    def _unfinished(self, archive: Archive, one: StudySummary) -> bool:
        if self._measures:
            return one.waiting > 0 or not End.reached(one.status)
        if End.reached(one.status) or self._ahead is None:
            return not End.reached(one.status)
        return archive.open_study(one.spec.name).room(Bounds(one.spec.budget)) > 0

    def _may_help(self, one: StudySummary) -> bool:
        """Half of what may wait must have been measured, so that a stay is worth its start."""
        return self._ahead is None or one.waiting <= self._ahead // 2

    def _visit(self, archive: Archive, before: StudySummary) -> None:
        name = before.spec.name
        study = archive.open_study(name)
        self._left_at[name] = _state(before)
        self._left_out.discard(name)
        try:
            run = reopened(self._arguments, study, helps=self._ahead is not None)
            ran = search_study(self._arguments, run, Joining(self.told_to_stop, self._ahead))
        except Unavailable:
            self._to_release.append(study)
            del self._left_at[name]
            raise
        except (UserError, TemplateError) as error:
            if self._arguments.study is not None:
                raise
            self._left_out.add(name)
            self._note(f"study {name} is left out: {error}")
            return
        self.visits.append(Visit(name, ran.verdicts, ran.outcome.spent, ran.outcome.stopped))
        self._left_at[name] = _state(archive.summary(name))
        self._note(f"study {name}: {ran.verdicts} verdicts here, {ran.outcome.spent} of {run.budget.candidates} spent")

    def _note(self, text: str) -> None:
        """Not again while nothing else is to be said: an hour's outage is one line."""
        if text != self._said and not self._arguments.quiet:
            console(stderr=True).print(text, soft_wrap=True)
        self._said = text


State = tuple[str, int, int, int, int]


def _state(one: StudySummary) -> State:
    """What has to change before another stay can find anything to do."""
    return (one.status, one.spec.budget, one.candidates, one.measured, one.waiting)


@contextmanager
def _signals(told_to_stop: threading.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the wait for work; while there is some they are the search's to heed."""

    def stop(number: int, frame: FrameType | None) -> None:
        told_to_stop.set()

    with signals_given_back():
        for number in STOP_SIGNALS:
            signal.signal(number, stop)
        yield
