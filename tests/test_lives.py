"""Whole searches against what happens to processes and databases: kill -9, other processes, outages."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import archive_databases as databases
import pytest

from benchmarks.trust.kills import killed_searches, result
from benchmarks.trust.lives import Life, Orders, Place
from benchmarks.trust.workers import share

SEED = 3
OUTAGE_SECONDS = 3.0
"""Shorter than `database.PATIENCE_SECONDS`; SQLite's own wait for a lock is over by then."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cubins")


class TestKill9:
    def test_at_random_moments_of_a_search(self, server: databases.Server, folder: Path) -> None:
        """Nothing committed is lost or redone, nothing is there twice, and the result is the undisturbed search's."""
        kills = 50 if isinstance(server, databases.Sqlite) else 10
        fates = killed_searches(kills, [server.copy(), server.copy()], folder, seed=SEED)

        assert kills <= sum(len(fate.killed_at) for fate in fates)
        assert [] == [fate for fate in fates if fate.lost or fate.doubled or fate.unfinished or not fate.same]

    def test_at_random_times(self, server: databases.Server, folder: Path) -> None:
        """Also in the middle of what the database does."""
        fates = killed_searches(5, [server.copy(), server.copy()], folder, seed=SEED, by_time=True)

        assert [] == [fate for fate in fates if fate.lost or fate.doubled or fate.unfinished or not fate.same]


def test_eight_processes_on_one_study_share_it(server: databases.Server, folder: Path) -> None:
    shared = share(server.copy(), folder, workers=8)

    assert (8, []) == (shared.workers, shared.errors)
    assert (0, 0) == (shared.doubled_configs, shared.doubled_numbers)
    assert (0, 0) == (shared.lost, shared.unfinished)
    assert shared.budget == shared.spent


@pytest.fixture(scope="module")
def cut(server: databases.Server) -> Callable[[str], Callable[[], None]]:
    """Takes a database away, and returns what gives it back."""

    def away(url: str) -> Callable[[], None]:
        if isinstance(server, databases.Postgres):
            server.stop()
            return server.start
        holder = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None, check_same_thread=False)
        holder.execute("BEGIN EXCLUSIVE")
        return holder.close

    return away


@pytest.fixture(scope="module")
def undisturbed(server: databases.Server, folder: Path) -> list[object]:
    place = Place(server.copy(), "undisturbed", folder)
    Life(place, SEED).end()
    return result(place.url, place.name)


class TestOutage:
    """The database is locked by another program, or its server stopped, in the middle of a batch."""

    def test_a_short_one_is_waited_for(
        self,
        server: databases.Server,
        cut: Callable[[str], Callable[[], None]],
        folder: Path,
        undisturbed: list[object],
    ) -> None:
        place = Place(server.copy(), "short", folder)
        timers: list[threading.Timer] = []

        def outage() -> None:
            timers.append(threading.Timer(OUTAGE_SECONDS, cut(place.url)))
            timers[0].start()

        ended = Life(place, SEED, Orders(waits_after=6)).interrupted_by(outage)
        timers[0].join()

        assert ended is not None
        assert ("", 17) == (ended.error, len(ended.verdicts))  # the budget of 16, and a twin
        assert undisturbed == result(place.url, place.name)

    def test_a_long_one_ends_in_one_line_and_the_search_can_be_resumed(
        self,
        server: databases.Server,
        cut: Callable[[str], Callable[[], None]],
        folder: Path,
        undisturbed: list[object],
    ) -> None:
        place = Place(server.copy(), "long", folder)
        back: list[Callable[[], None]] = []
        orders = Orders(waits_after=6, patience_seconds=0.5)
        ended = Life(place, SEED, orders).interrupted_by(lambda: back.append(cut(place.url)))
        back[0]()
        again = Life(place, SEED).end()

        assert ended is not None
        assert again is not None
        assert "does not answer" in ended.error
        assert ended.error.endswith("): check that it is there and free")
        assert 1 == len(ended.error.splitlines())
        assert (6, "", 11) == (len(ended.verdicts), again.error, len(again.verdicts))
        assert undisturbed == result(place.url, place.name)
