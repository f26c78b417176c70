"""Processes that share a study: one budget, one scale, one final run, leases by one clock; SQLite and PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from archive_databases import dead_owner
from optuna.trial import TrialState
from sqlalchemy.engine.cursor import CursorFetchStrategy
from test_archive import ARTIFACT, ESTIMATE, MEASUREMENT, REJECTION, SPEC, finished, forked, proposals

from evoengine.archive import lease, sessions, tables, work
from evoengine.archive.archive import Archive
from evoengine.archive.lease import Owner
from evoengine.archive.records import Record
from evoengine.archive.study import Study
from evoengine.archive.trials import proposal_of
from evoengine.archive.work import Bounds
from evoengine.errors import Unavailable, UserError
from evoengine.sampler import Proposal
from evoengine.verdict import Gate, Rejection, Verdict

STATIC = Rejection(Gate.STATIC, "breaks a rule")


@pytest.fixture
def archive(url: str) -> Iterator[Archive]:
    with contextlib.closing(Archive.open(url)) as opened:
        opened.create_study(SPEC)
        yield opened


def joined(archive: Archive, owner: Owner | None = None) -> Study:
    study = archive.open_study(SPEC.name)
    study.acquire(owner or Owner.current(), shared=True)
    return study


class TestBudget:
    def test_is_one_for_all_who_claim_at_once(self, archive: Archive, url: str) -> None:
        archive.close()

        def work(first: int, write: int) -> None:
            with contextlib.closing(Archive.open(url)) as opened:
                mine = joined(opened)
                for proposal in proposals(20, first):
                    for candidate in mine.claim([proposal], bounds=Bounds(13)):
                        os.write(write, f"{candidate.number} ".encode())

        children = [forked(lambda write, first=first: work(first, write)) for first in (0, 20)]
        outcomes = [finished(*child) for child in children]

        assert [0, 0] == [status for status, _ in outcomes]
        assert list(range(13)) == sorted(outcomes[0][1] + outcomes[1][1])

    def test_what_turns_out_to_be_free_is_given_back(self, archive: Archive) -> None:
        study, bounds = joined(archive), Bounds(3)
        free, twin, paid = study.claim(proposals(9), bounds=bounds)

        assert 0 == study.room(bounds)
        study.commit(free, STATIC, None)
        assert 1 == study.room(bounds)
        study.commit(paid, MEASUREMENT, ARTIFACT)
        study.commit(twin, MEASUREMENT, ARTIFACT, twin_of=paid.number)
        assert 2 == study.room(bounds)
        assert 2 == len(study.claim(proposals(9, first=9), bounds=bounds))

    def test_who_helps_is_so_far_ahead_and_no_further(self, archive: Archive) -> None:
        study, bounds = joined(archive), Bounds(100, ahead=4)
        first, second, *_ = study.claim(proposals(9), bounds=bounds)
        for candidate in (first, second):
            study.commit(candidate, ESTIMATE, ARTIFACT)
        assert 0 == study.room(bounds)

        [measured] = study.claim_waiting(1, estimated=True)
        assert 0 == study.room(bounds)
        study.commit(measured, MEASUREMENT, ARTIFACT)
        assert 1 == study.room(bounds)


class TestLease:
    @pytest.mark.parametrize("skew", [-600.0, 600.0])
    def test_a_clock_that_is_minutes_off_changes_nothing(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch, skew: float
    ) -> None:
        if archive._database.sqlite:
            pytest.skip("a file of SQLite is used on one host, which has one clock")
        mine = joined(archive)
        mine.claim(proposals(1))
        clock = time.time
        monkeypatch.setattr(time, "time", lambda: clock() + skew)
        other = joined(archive, Owner("elsewhere", 1, "boot:1:2"))
        other.claim(proposals(2))
        monkeypatch.setattr(time, "time", clock)

        assert mine.peers.alive()
        assert mine.peers.at_work()
        assert [] == mine.recover()
        monkeypatch.setattr(time, "time", lambda: clock() + skew)
        assert [] == other.recover()
        other.renew()

    def test_is_over_when_it_says(self, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
        gone = joined(archive, Owner("elsewhere", 1, "boot:1:2"))
        gone.claim(proposals(2))
        mine = joined(archive)
        clock = sessions.clock
        monkeypatch.setattr(sessions, "clock", lambda connection: clock(connection) + lease.LEASE_SECONDS - 1)
        assert [] == mine.recover()
        monkeypatch.setattr(sessions, "clock", lambda connection: clock(connection) + lease.LEASE_SECONDS + 1)

        assert [0, 1] == mine.recover()

    def test_of_a_process_that_was_cut_off_is_over_though_it_lives(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cut_off, mine = joined(archive), joined(archive, Owner("elsewhere", 1, "boot:1:2"))
        [candidate] = cut_off.claim(proposals(1))
        clock = sessions.clock
        monkeypatch.setattr(sessions, "clock", lambda connection: clock(connection) + lease.LEASE_SECONDS + 1)
        mine.renew()

        assert [0] == mine.recover()
        with pytest.raises(Unavailable, match="was taken over by another process"):
            cut_off.commit(candidate, REJECTION, None)

    def test_a_host_of_the_same_name_is_not_this_one(self, archive: Archive) -> None:
        """Two containers may share a name, and both have a process 1."""
        if archive._database.sqlite:
            pytest.skip("a file of SQLite is used on one host")
        here = Owner.current()
        other = joined(archive, replace(here, pid=1, started="another boot:1:2"))
        other.claim(proposals(1))
        mine = joined(archive)

        assert [] == mine.recover()
        assert mine.peers.at_work()

    def test_is_renewed_when_it_is_time(self, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
        study = joined(archive)
        renewed: list[float] = []
        monkeypatch.setattr(sessions, "renew", lambda *_: renewed.append(now[0]))
        now = [time.monotonic()]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        study.renew()
        for _ in range(8):
            now[0] += lease.RENEW_SECONDS / 2 + 1
            study.keep()

        assert 1 + 4 == len(renewed)

    def test_a_transaction_that_was_frozen_is_begun_again(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """The server has ended it, so that others do not wait for its locks."""
        monkeypatch.setattr("evoengine.archive.database.IDLE_TRANSACTION_MS", 100)
        tries: list[int] = []

        def frozen(connection: sqlalchemy.Connection) -> Any:
            connection.execute(sqlalchemy.select(tables.schema))
            tries.append(len(tries))
            if len(tries) == 1:
                time.sleep(0.5)
            return connection.scalar(sqlalchemy.select(tables.schema.c.version))

        with contextlib.closing(Archive.open(url)) as opened:
            assert tables.SCHEMA_VERSION == opened._write(frozen)
            assert len(tries) == (1 if opened._database.sqlite else 2)


class TestFinalRun:
    def test_one_confirms_for_all(self, archive: Archive) -> None:
        first, second = joined(archive), joined(archive)

        assert "mine" == first.peers.take_turn()
        assert "another's" == second.peers.take_turn()
        first.peers.end_turn()
        first.release()
        assert "done" == second.peers.take_turn()

    def test_who_dies_in_it_leaves_it_to_others(self, archive: Archive) -> None:
        dead, mine = joined(archive, dead_owner()), joined(archive)
        dead.peers.take_turn()

        assert "mine" == mine.peers.take_turn()

    def test_who_comes_later_confirms_what_is_new(self, archive: Archive) -> None:
        first = joined(archive)
        first.peers.take_turn()
        first.peers.end_turn()
        first.release()

        assert "mine" == joined(archive).peers.take_turn()


class TestOneStudy:
    def test_has_the_scale_of_the_first_card(self, archive: Archive) -> None:
        first, second = joined(archive), joined(archive)

        assert 5.0 == first.peers.agree_on_reference(5.0)
        assert 5.0 == second.peers.agree_on_reference(5.2)
        assert 5.0 == joined(archive).peers.agree_on_reference(4.0)

    def test_an_estimate_whose_commit_was_not_heard_of_is_committed_again(self, archive: Archive) -> None:
        study = joined(archive)
        [candidate] = study.claim(proposals(1))
        study.commit(candidate, ESTIMATE, ARTIFACT)
        study.commit(candidate, ESTIMATE, ARTIFACT)

        assert [ESTIMATE] == [record.verdict for record in study.records()]

    def test_a_rejection_that_others_have_told_optuna_of_is_told_once(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Cut off after its verdict was stored, and taken for dead."""
        cut_off, other = joined(archive), joined(archive, Owner("elsewhere", 1, "boot:1:2"))
        [candidate] = cut_off.claim(proposals(1))
        clock, note = sessions.clock, cut_off._ledger.note_rejection

        def late(*arguments: Any) -> None:
            monkeypatch.setattr(sessions, "clock", lambda connection: clock(connection) + lease.LEASE_SECONDS + 1)
            other.renew()
            other.recover()
            note(*arguments)

        monkeypatch.setattr(cut_off._ledger, "note_rejection", late)
        cut_off.commit(candidate, REJECTION, None)

        assert [REJECTION.reason] == [one.verdict.reason for one in other.records()]  # type: ignore[union-attr]
        assert [TrialState.PRUNED] == [trial.state for trial in other._ledger.trials()]

    def test_released_twice_is_released_once(self, archive: Archive) -> None:
        study = joined(archive)
        study.claim(proposals(2))
        study.release()
        study.release()

        assert ["waiting"] * 2 == [record.state for record in archive.open_study(SPEC.name).records()]


class TestBirth:
    """A claim is a row first and an Optuna trial then; others may look at the study in between."""

    def test_of_a_trial_that_others_have_borne_meanwhile_is_none(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cut_off, other = joined(archive), joined(archive, Owner("elsewhere", 1, "boot:1:2"))
        clock, bear = sessions.clock, cut_off._ledger._storage.create_new_trial

        def late(*arguments: Any) -> int:
            monkeypatch.setattr(cut_off._ledger._storage, "create_new_trial", bear)
            monkeypatch.setattr(sessions, "clock", lambda connection: clock(connection) + lease.LEASE_SECONDS + 1)
            other.renew()
            other.recover()
            [candidate] = other.claim_waiting(1, estimated=False)
            other.commit(candidate, MEASUREMENT, ARTIFACT)
            return bear(*arguments)

        monkeypatch.setattr(cut_off._ledger._storage, "create_new_trial", late)
        with pytest.raises(Unavailable, match="was taken over by another process"):
            cut_off.claim(proposals(1))
        [record] = other.records()

        assert (0, "done", MEASUREMENT) == (record.number, record.state, record.verdict)
        assert [TrialState.COMPLETE, TrialState.FAIL] == [trial.state for trial in other._ledger.trials()]

    @pytest.mark.parametrize("look", [1, 2])
    def test_is_left_alone_by_who_looks_while_it_happens(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch, look: int
    ) -> None:
        mine, other = joined(archive), joined(archive)
        bear, read = mine._ledger._storage.create_new_trial, other._ledger.candidates
        looks = 0
        born: list[int] = []

        def borne(*arguments: Any) -> int:
            """The trial is written, and the other process begins to look before it is entered in its row."""
            monkeypatch.setattr(mine._ledger._storage, "create_new_trial", bear)
            born.append(bear(*arguments))
            other.recover()
            return born[0]

        def candidates(which: Any) -> Any:
            nonlocal looks
            looks += 1
            if looks == look:
                digest = mine._space.config_at(proposals(1)[0].point).digest
                mine._ledger.attach(digest, born[0], tables.candidate.c.session_id == mine._own)
            return read(which)

        monkeypatch.setattr(other._ledger, "candidates", candidates)
        monkeypatch.setattr(mine._ledger._storage, "create_new_trial", borne)
        [candidate] = mine.claim(proposals(1))
        mine.commit(candidate, MEASUREMENT, ARTIFACT)

        assert [TrialState.COMPLETE] == [trial.state for trial in mine._ledger.trials()]


def told(news: list[Record]) -> list[tuple[int, str, Verdict | None]]:
    return [(one.number, one.state, one.verdict) for one in news]


@contextlib.contextmanager
def rows_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How many statements were answered with rows, and how many rows they had."""
    counts: Counter[str] = Counter()
    read = CursorFetchStrategy.fetchall
    one = CursorFetchStrategy.fetchone

    def fetchall(*arguments: Any) -> Any:
        found = read(*arguments)
        counts.update(statements=1, rows=len(found))
        return found

    def fetchone(*arguments: Any) -> Any:
        counts.update(rows=1)
        return one(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(CursorFetchStrategy, "fetchall", fetchall)
        patched.setattr(CursorFetchStrategy, "fetchone", fetchone)
        yield counts


class TestLook:
    """What a process learns of what others do, between two looks."""

    def test_tells_of_every_change_once(self, archive: Archive) -> None:
        mine, other = joined(archive), joined(archive)
        assert [] == mine.news()

        first, second, _ = other.claim(proposals(3))
        assert [(n, "running", None) for n in range(3)] == told(mine.news())
        assert [] == mine.news()
        other.commit(second, MEASUREMENT, ARTIFACT)
        assert [(1, "done", MEASUREMENT)] == told(mine.news())
        other.commit(first, ESTIMATE, ARTIFACT)
        assert [(0, "waiting", ESTIMATE)] == told(mine.news())
        [first] = other.claim_waiting(1, estimated=True)
        assert [(0, "running", ESTIMATE)] == told(mine.news())
        other.commit(first, MEASUREMENT, ARTIFACT, twin_of=1)
        assert [(0, "done", MEASUREMENT)] == told(mine.news())
        other.overrule(1, STATIC)
        assert [(0, "done", STATIC), (1, "done", STATIC)] == told(mine.news())
        other.release()
        assert [(2, "waiting", None)] == told(mine.news())
        assert [] == mine.news()
        assert told(joined(archive).news()) == told(mine.records())

    def test_tells_of_what_a_dead_process_left(self, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
        dead, mine, other = joined(archive, dead_owner()), joined(archive), joined(archive)
        dead.claim(proposals(1))
        monkeypatch.setattr(dead._ledger, "bear", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            dead.claim(proposals(1, first=1))
        assert [(0, "running", None)] == told(mine.news())

        assert [0, 1] == other.recover()
        assert [(0, "waiting", None), (1, "waiting", None)] == told(mine.news())
        [candidate] = other.claim_waiting(1, estimated=False)
        other.commit(candidate, MEASUREMENT, ARTIFACT)
        assert [(0, "done", MEASUREMENT)] == told(mine.news())

    def test_tells_of_a_transaction_that_was_begun_first_and_ends_last(self, archive: Archive) -> None:
        """Whatever the second writes comes after it, so that no look can see the second alone and miss the first."""
        mine, other = joined(archive), joined(archive)
        first, second = other.claim(proposals(2))
        mine.news()
        with ThreadPoolExecutor(1) as threads:
            with other._database.engine.begin() as connection:
                work.lock(connection, other._ledger.id)
                slow = tables.candidate.c.config_digest == first.config.digest
                connection.execute(sqlalchemy.update(tables.candidate).where(slow).values(session_id=None))
                quick = threads.submit(other.commit, second, MEASUREMENT, ARTIFACT)
                time.sleep(0.5)
                before = told(mine.news())
            quick.result()

        assert [] == before
        assert [(0, "waiting", None), (1, "done", MEASUREMENT)] == told(mine.news())

    def test_tells_of_a_study_that_was_brought_in(self, archive: Archive, tmp_path: Path) -> None:
        with contextlib.closing(Archive.open(str(tmp_path / "laptop.db"))) as laptop:
            theirs = laptop.create_study(SPEC)
            theirs.acquire(Owner.current())
            for candidate in theirs.claim(proposals(2, first=9)):
                theirs.commit(candidate, ESTIMATE, ARTIFACT)
            theirs.release()
            mine = joined(archive)
            for candidate in mine.claim(proposals(4)):
                mine.commit(candidate, MEASUREMENT, ARTIFACT)
            mine.news()
            mine.release()
            archive.merge_study(SPEC.name, laptop, SPEC.name)

        assert [(4, "waiting", ESTIMATE), (5, "waiting", ESTIMATE)] == told(mine.news())

    def test_at_a_study_that_was_deleted_meanwhile_ends_the_search(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cut_off = joined(archive, Owner("elsewhere", 1, "boot:1:2"))
        cut_off.claim(proposals(1))
        clock = sessions.clock
        monkeypatch.setattr(sessions, "clock", lambda connection: clock(connection) + lease.LEASE_SECONDS + 1)
        archive.delete_study(SPEC.name)

        with pytest.raises(Unavailable, match="was taken over by another process"):
            cut_off.renew()

    def test_reads_no_more_of_a_large_study_than_of_a_small_one(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mine, other = joined(archive), joined(archive)
        taken = []
        for first, count in ((0, 4), (4, 40)):
            *done, last = other.claim(proposals(count, first))
            for candidate in done:
                other.commit(candidate, MEASUREMENT, ARTIFACT)
            mine.recover()
            mine.news()
            other.commit(last, MEASUREMENT, ARTIFACT)
            with rows_read(monkeypatch) as counts:
                mine.renew()
                mine.recover()
                assert [last.number] == [one.number for one in mine.news()]
                assert [] == mine.claim_waiting(4, estimated=True)
                assert [] == mine.claim_waiting(4, estimated=False)
            taken.append(counts)

        assert taken[0] == taken[1]
        assert 3 < taken[0]["rows"] < 30


class TestRecords:
    def test_are_what_optuna_says(self, archive: Archive, url: str) -> None:
        """They are read from our tables; Optuna's hold the same for its dashboard and for `optuna.load_study`."""
        study = joined(archive)
        asked = [
            replace(one, operator="model", generation=n, parents=(n - 1,), expected_gain=n / 7, system_attrs={"g": n})
            for n, one in enumerate(proposals(6), start=1)
        ]
        for candidate, verdict in zip(study.claim(asked), (MEASUREMENT, REJECTION, ESTIMATE), strict=False):
            study.commit(candidate, verdict, ARTIFACT)
        storage = optuna.storages.RDBStorage(url)
        trials = optuna.load_study(study_name=SPEC.name, storage=storage).trials
        storage.engine.dispose()
        records = study.records()

        assert [proposal_of(SPEC.frozen_space, trial) for trial in trials] == asked
        assert asked == [
            Proposal(one.point, one.operator, one.generation, one.parents, one.system_attrs, one.expected_gain)
            for one in records
        ]
        assert [trial.number for trial in trials] == [one.number for one in records]
        assert [MEASUREMENT.median_us, *[None] * 5] == [trial.value for trial in trials]
        study.check_trials()

    @pytest.mark.parametrize(
        ("table", "column", "value"),
        [("trial_params", "param_value", 99.0), ("trial_user_attributes", "value_json", "{}")],
    )
    def test_that_optuna_knows_otherwise_do_not_travel(
        self, archive: Archive, table: str, column: str, value: Any
    ) -> None:
        study = joined(archive)
        study.claim(proposals(2))
        study.release()
        with archive._database.engine.begin() as connection:
            connection.execute(sqlalchemy.text(f"UPDATE {table} SET {column} = :value"), {"value": value})

        assert [0, 1] == [one.number for one in study.records()]
        with pytest.raises(UserError, match="is damaged"):
            archive.copy_study(SPEC.name, archive, "copy")
