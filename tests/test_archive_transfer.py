"""Studies renamed, deleted, copied and merged, the same for SQLite and PostgreSQL."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import archive_databases as databases
import optuna
import pytest
import sqlalchemy
from archive_databases import dead_owner
from optuna.trial import FrozenTrial, TrialState
from test_archive import ARTIFACT, ESTIMATE, MEASUREMENT, REJECTION, SPEC, finished, forked, proposals

from evoengine.archive import rows, tables
from evoengine.archive.archive import Archive
from evoengine.archive.lease import Owner
from evoengine.archive.merge import Merged
from evoengine.archive.records import Baseline, Elite, StudySpec
from evoengine.archive.study import Study
from evoengine.errors import UserError
from evoengine.sampler import Proposal
from evoengine.verdict import Estimate, Verdict

NAME = SPEC.name
ELITE = Elite(0, 10.2, 0.01, 0.5, {"sdpa": 0.45}, "FASTER", b"\x7fELF\x00", "c" * 64, "ab12", {"gpu": "L4"}, {"k": 1})
LAPTOP = replace(SPEC, name="laptop", measures=False, limits={**SPEC.limits, "clock_mhz": 2040})
ANOTHER_QUESTION: list[tuple[dict[str, Any], str]] = [
    ({"device": "NVIDIA H200", "arch": "sm_90"}, r"is for NVIDIA H200 \(sm_90\), study .*--target CARD"),
    ({"template_digest": "xx"}, "asks another question .* its template is xx, not ab12; .*--into NAME"),
    ({"space_digest": "xx"}, "asks .* its search space is xx"),
    ({"problem_label": "B2_S512"}, "asks .* its problem is B2_S512, not B1_S512"),
    ({"problem_digest": "xx"}, "asks .* its problem is xx"),
    ({"limits": {**SPEC.limits, "smem_per_block": 1}}, "asks .* its limit is smem_per_block = 1, not 101376"),
    ({"ceilings": {}}, "asks .* its ceiling is max_smem_bytes = None, not 65536"),
    ({"toolchain": "nvcc 12"}, "asks .* its toolchain is nvcc 12"),
]
ALL = [*tables.metadata.sorted_tables, *rows.OPTUNA.values()]


@pytest.fixture
def open_archive() -> Iterator[Callable[[str], Archive]]:
    with contextlib.ExitStack() as stack:

        def opened(url: str) -> Archive:
            archive = Archive.open(url)
            stack.callback(archive.close)
            return archive

        yield opened


@pytest.fixture
def archive(url: str, open_archive: Callable[[str], Archive]) -> Archive:
    return open_archive(url)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[databases.Server]:
    with databases.opened("sqlite", tmp_path_factory.mktemp("files")) as made:
        yield made


@pytest.fixture
def other(files: databases.Server, open_archive: Callable[[str], Archive]) -> Archive:
    """Another machine's database, a file as on a laptop."""
    return open_archive(files.copy())


def judged(archive: Archive, spec: StudySpec, asked: list[Proposal], verdicts: list[Verdict | None]) -> Study:
    """A study with these verdicts in that order; None stays in flight, as a killed process leaves it."""
    study = archive.create_study(spec)
    study.acquire(dead_owner())
    study.set_environment({"host": spec.name})
    for candidate, verdict in zip(study.claim(asked, {"infeasible": 4}), verdicts, strict=True):
        if verdict is not None:
            study.commit(candidate, verdict, ARTIFACT, twin_of=0 if candidate.number == 3 else None)
    return study


def full(archive: Archive, spec: StudySpec = SPEC) -> Study:
    """A study with something of every kind, one trial in flight."""
    study = judged(archive, spec, proposals(5), [MEASUREMENT, REJECTION, ESTIMATE, MEASUREMENT, None])
    study.add_baseline(Baseline("sdpa", MEASUREMENT, {"gpu": "L4"}, "2026-01-02T03:04:05+00:00"))
    study.replace_elites([ELITE])
    study.set_status("budget spent")
    return study


def known_of(study: Study) -> str:
    """All that a reader gets of a study, but for its name."""
    parts = [*study.records(), *study.elites(), *study.baselines(), replace(study.spec, name="")]
    return json.dumps([*map(dataclasses.asdict, parts), study.counts()], default=repr)


def trials(url: str, name: str) -> list[FrozenTrial]:
    """As Optuna itself reads them, without the ids of rows."""
    storage = optuna.storages.RDBStorage(url)
    study = optuna.load_study(study_name=name, storage=storage)
    found = study.trials
    assert ["median_us"] == study.metric_names
    storage.engine.dispose()
    for trial in found:
        trial._trial_id = -1
    return found


def sizes(url: str) -> dict[str, int]:
    """Rows of every table that has any."""
    engine = sqlalchemy.create_engine(url)
    with engine.connect() as connection:
        counted = {
            table.name: connection.scalar(sqlalchemy.select(sqlalchemy.func.count()).select_from(table)) or 0
            for table in ALL
        }
    engine.dispose()
    return {name: count for name, count in counted.items() if count}


def refused(words: str) -> Any:
    return pytest.raises(UserError, match=words)


class TestRename:
    def test_keeps_everything_but_the_name(self, archive: Archive, url: str) -> None:
        before, optunas = known_of(full(archive)), trials(url, NAME)
        archive.rename_study(NAME, "new name")

        assert before == known_of(archive.open_study("new name"))
        assert optunas == trials(url, "new name")
        assert ["new name"] == [one.spec.name for one in archive.studies()]
        with refused(f"unknown study '{NAME}'"):
            archive.open_study(NAME)

    def test_a_name_that_is_taken_is_refused_and_nothing_changes(self, archive: Archive) -> None:
        before = known_of(full(archive))
        archive.create_study(replace(SPEC, name="taken"))

        with refused("study taken exists in database .*: give another new name"):
            archive.rename_study(NAME, "taken")
        with refused("study name ''"):
            archive.rename_study(NAME, "")
        assert before == known_of(archive.open_study(NAME))


class TestDelete:
    def test_leaves_nothing_of_it_and_everything_of_the_others(self, archive: Archive, url: str) -> None:
        full(archive, replace(SPEC, name="kept"))
        kept, before = known_of(archive.open_study("kept")), sizes(url)
        full(archive)
        archive.delete_study(NAME)

        assert before == sizes(url)
        assert kept == known_of(archive.open_study("kept"))

    def test_a_process_that_was_about_to_search_is_told(self, archive: Archive) -> None:
        full(archive)
        study = archive.open_study(NAME)
        archive.delete_study(NAME)

        with refused(f"study {NAME} is gone"):
            study.acquire(Owner.current())

    def test_the_name_is_free_again(self, archive: Archive) -> None:
        before = known_of(full(archive))
        archive.delete_study(NAME)
        again = judged(archive, SPEC, proposals(1, first=7), [ESTIMATE])

        assert before != known_of(again)
        assert [7] == [proposals(48).index(Proposal(one.point, "spread")) for one in again.records()]

    def test_a_study_that_lost_its_side_in_optuna_can_be_deleted(self, archive: Archive, url: str) -> None:
        before = sizes(url)
        full(archive)
        optuna.delete_study(study_name=NAME, storage=(storage := optuna.storages.RDBStorage(url)))
        storage.engine.dispose()

        with refused(f"study {NAME} has lost its trials.*: evoengine studies delete {NAME}"):
            archive.open_study(NAME)
        archive.delete_study(NAME)

        assert before == sizes(url)


class TestCopy:
    def test_a_copy_is_equal_wherever_it_goes(self, archive: Archive, other: Archive, url: str) -> None:
        before, optunas = known_of(full(archive)), trials(url, NAME)
        judged(other, replace(SPEC, name="there before"), proposals(9), [REJECTION] * 9)  # its rows have the same ids
        archive.copy_study(NAME, archive, "twice")
        archive.copy_study(NAME, other, "over there")
        other.copy_study("over there", archive, "and back")

        for copied, name in ((archive, NAME), (archive, "twice"), (other, "over there"), (archive, "and back")):
            assert before == known_of(copied.open_study(name))
        for name in ("twice", "and back"):
            assert optunas == trials(url, name)

    def test_from_one_server_database_to_another(
        self, archive: Archive, server: databases.Server, open_archive: Callable[[str], Archive]
    ) -> None:
        before, to = known_of(full(archive)), open_archive(server.copy())
        archive.copy_study(NAME, to, NAME)

        assert before == known_of(to.open_study(NAME))

    def test_a_copy_goes_on_by_itself(self, archive: Archive, other: Archive) -> None:
        before = known_of(full(archive))
        archive.copy_study(NAME, other, NAME)
        copy = other.open_study(NAME)
        copy.acquire(Owner.current())

        assert [4] == copy.recover()
        assert [4] == [one.number for one in copy.claim_waiting(9, estimated=False)]
        assert [2] == [one.number for one in copy.claim_waiting(9, estimated=True)]
        assert [5] == [one.number for one in copy.claim(proposals(6))]
        assert before == known_of(archive.open_study(NAME))

    def test_a_name_that_is_taken_is_refused(self, archive: Archive, other: Archive, url: str) -> None:
        full(archive)
        before = sizes(url)

        with refused("exists in database .*: give another with --as NAME"):
            archive.copy_study(NAME, archive, NAME)
        assert before == sizes(url)

    def test_what_is_damaged_does_not_travel(self, archive: Archive, other: Archive, url: str) -> None:
        full(archive)
        engine = sqlalchemy.create_engine(url)
        with engine.begin() as connection:
            connection.execute(sqlalchemy.update(tables.elite).values(median_us=-1.0))
        engine.dispose()

        with refused("is damaged"):
            archive.copy_study(NAME, other, NAME)
        assert [] == other.studies()


class TestMerge:
    @pytest.fixture
    def machine(self, archive: Archive) -> Study:
        """A study that has measured the configs 0 and 3, rejected 1, estimated 2 and has 4 in flight."""
        return full(archive)

    @pytest.fixture
    def laptop(self, other: Archive) -> Study:
        """A study that has estimated 0, 2, 9, 10, 14 and 12, rejected 11, has 13 in flight; 14 has parents."""
        asked = [*proposals(1), *proposals(1, 2), *proposals(4, 9), *proposals(1, 13)]
        asked[5:5] = [replace(asked[5], point=proposals(1, 14)[0].point, operator="crossover", parents=(0, 2, 3))]
        verdicts = [Estimate(50.0 - at) for at in range(4)]
        return judged(other, LAPTOP, asked, [*verdicts, REJECTION, Estimate(1.0), Estimate(2.0), None])

    def test_only_what_is_new_is_entered(self, machine: Study, laptop: Study, archive: Archive, other: Archive) -> None:
        before = repr(machine.records())  # as text: a NaN of the evidence is not equal to itself
        merged = archive.merge_study("laptop", other, NAME)
        after = archive.open_study(NAME).records()

        assert Merged(estimated=4, rejected=1, known=2) == merged
        assert list(range(10)) == [one.number for one in after]
        assert before == repr(after[:5])
        assert [48.0, 47.0, None, 1.0, 2.0] == [one.estimate and one.estimate.estimated_us for one in after[5:]]
        assert ["waiting", "waiting", "done", "waiting", "waiting"] == [one.state for one in after[5:]]
        assert [{"host": "laptop"}] * 5 == [dict(one.environment) for one in after[5:]]
        assert all(one.build is not None for one in after[5:])

    def test_numbers_of_other_trials_are_translated(
        self, machine: Study, laptop: Study, archive: Archive, other: Archive
    ) -> None:
        theirs = {one.config.digest: one for one in other.open_study("laptop").records()}
        archive.merge_study("laptop", other, NAME)
        by_number = {one.number: one for one in archive.open_study(NAME).records()}
        digest_of = {one.number: one.config.digest for one in theirs.values()}

        assert {(0, 2, 3), ()} == {one.parents for one in theirs.values()}
        assert {None, 0} == {one.twin_of for one in theirs.values()}
        for number in range(5, 10):
            mine = by_number[number]
            one = theirs[mine.config.digest]
            assert [digest_of[at] for at in one.parents] == [by_number[at].config.digest for at in mine.parents]
            if one.twin_of is not None:
                assert digest_of[one.twin_of] == by_number[mine.twin_of].config.digest  # type: ignore[index]

    def test_the_shortlist_is_measured_first(
        self, machine: Study, laptop: Study, archive: Archive, other: Archive, url: str
    ) -> None:
        archive.create_study(replace(SPEC, name="used later"))
        archive.merge_study("laptop", other, NAME)
        study = archive.open_study(None)
        study.acquire(Owner.current())
        study.recover()
        claimed = study.claim_waiting(3, estimated=True)
        study.commit(claimed[0], MEASUREMENT, ARTIFACT)

        assert [8, 9, 2] == [one.number for one in claimed]
        assert [10] == [one.number for one in study.claim(proposals(1, first=20))]
        states = {trial.number: trial.state for trial in trials(url, NAME)}
        assert (TrialState.COMPLETE, TrialState.RUNNING, TrialState.PRUNED, TrialState.WAITING) == tuple(
            states[number] for number in (8, 9, 7, 6)
        )

    def test_again_it_changes_nothing(self, machine: Study, laptop: Study, archive: Archive, other: Archive) -> None:
        archive.merge_study("laptop", other, NAME)
        before = known_of(archive.open_study(NAME))

        assert Merged(estimated=0, rejected=0, known=7) == archive.merge_study("laptop", other, NAME)
        assert before == known_of(archive.open_study(NAME))

    def test_without_a_study_to_go_into_it_comes_whole(self, laptop: Study, archive: Archive, other: Archive) -> None:
        assert archive.merge_study("laptop", other, "gpu") is None
        assert known_of(other.open_study("laptop")) == known_of(archive.open_study("gpu"))

    def test_another_question_is_refused(self, machine: Study, archive: Archive, other: Archive) -> None:
        before = known_of(archive.open_study(NAME))

        for changes, words in ANOTHER_QUESTION:
            spec = replace(LAPTOP, name=f"with another {min(changes)}", **changes)
            judged(other, spec, proposals(1, 9), [ESTIMATE])
            with refused(f"study {spec.name} {words}"):
                archive.merge_study(spec.name, other, NAME)
        assert before == known_of(archive.open_study(NAME))

    def test_times_of_two_machines_are_not_mixed(self, machine: Study, archive: Archive, other: Archive) -> None:
        full(other, LAPTOP)

        with refused("laptop has measured 2 configs.*--into NAME.*--warm-start"):
            archive.merge_study("laptop", other, NAME)


ACTIONS: dict[str, Callable[[Archive, Archive], object]] = {
    "rename": lambda archive, other: archive.rename_study(NAME, "new"),
    "delete": lambda archive, other: archive.delete_study(NAME),
    "copy": lambda archive, other: archive.copy_study(NAME, archive, "new"),
    "merge": lambda archive, other: archive.merge_study("laptop", other, NAME),
}


@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
class TestEvery:
    def test_a_study_that_is_searched_is_left_alone(
        self, archive: Archive, other: Archive, url: str, action: Callable[[Archive, Archive], object]
    ) -> None:
        judged(other, LAPTOP, proposals(2, 9), [ESTIMATE, REJECTION])
        full(archive).acquire(Owner.current())
        before = sizes(url)

        with refused(f"study {NAME} is being searched by pid {os.getpid()} on .*: wait for it or stop it"):
            action(archive, other)
        assert before == sizes(url)

    def test_kill_9_at_any_statement_leaves_all_or_nothing(
        self, archive: Archive, other: Archive, url: str, action: Callable[[Archive, Archive], object]
    ) -> None:
        judged(other, LAPTOP, proposals(2, 9), [ESTIMATE, REJECTION])
        before, size = known_of(full(archive)), sizes(url)
        there = str(other._database.url.render_as_string(hide_password=False))
        archive.close()
        other.close()
        for at in (1, 3, 4, 14, 1000):
            status, _ = finished(*forked(lambda write, n=at: act_and_die(url, there, action, n)))  # type: ignore[misc]
            if status == 0:
                break
            assert -signal.SIGKILL == status
            assert (before, size) == (known_of(archive.open_study(NAME)), sizes(url))
            archive.close()

        assert (0, True) == (status, 4 < at)
        assert size != sizes(url) or [NAME] != [one.spec.name for one in archive.studies()]


def test_a_row_without_its_session_does_not_travel(tmp_path: Path, open_archive: Callable[[str], Archive]) -> None:
    """SQLite does not look after references; PostgreSQL would not have let this happen."""
    archive, to = open_archive(str(tmp_path / "from.db")), open_archive(str(tmp_path / "to.db"))
    full(archive)
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'from.db'}")
    with engine.begin() as connection:
        in_flight = tables.candidate.c.trial_id == 5
        connection.execute(sqlalchemy.update(tables.candidate).where(in_flight).values(session_id=999))
    engine.dispose()

    with refused(r"the database that the study is from is damaged \(row 999 is missing\): go back to a copy of it"):
        archive.copy_study(NAME, to, NAME)
    assert {"evo_schema", "version_info"} == set(sizes(f"sqlite:///{tmp_path / 'to.db'}"))


def act_and_die(url: str, there: str, action: Callable[[Archive, Archive], object], kill_at: int) -> None:
    """The action in a process that kills itself before its n-th write, a commit after one counted as one."""
    archive, other = Archive.open(url), Archive.open(there)
    written = 0

    def count(statement: str) -> None:
        nonlocal written
        written += not statement.lstrip().upper().startswith("SELECT")
        if written >= kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    engine = archive._database.engine
    sqlalchemy.event.listen(engine, "before_cursor_execute", lambda c, cursor, statement, *rest: count(statement))
    sqlalchemy.event.listen(engine, "commit", lambda connection: count("COMMIT"))
    action(archive, other)
