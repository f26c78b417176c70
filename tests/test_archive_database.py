"""Opening a database, and what a user is told when that fails or when it goes away."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState
from test_archive import ARTIFACT, MEASUREMENT, SPEC

from evoengine.archive import database
from evoengine.archive.archive import Archive
from evoengine.archive.lease import Owner
from evoengine.archive.storage import TrialStorage
from evoengine.errors import UserError
from evoengine.sampler import Proposal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "er" / "evo.db"


@pytest.fixture
def archive(path: Path) -> Iterator[Archive]:
    opened = Archive.open(str(path))
    yield opened
    opened.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another program holds the database's write lock."""
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        other.rollback()
        other.close()


def test_makes_the_folder_and_writes_ahead(archive: Archive, path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert "wal" == connection.execute("PRAGMA journal_mode").fetchone()[0]
    with archive._database.engine.connect() as used:
        assert 1 == used.exec_driver_sql("PRAGMA synchronous").scalar()
    assert str(path) == archive.name


def test_a_trial_is_born_as_optuna_itself_would_write_it(tmp_path: Path) -> None:
    born = optuna.trial.create_trial(
        state=TrialState.RUNNING,
        params={"tile": 2, "kind": "wide"},
        distributions={"tile": IntDistribution(0, 5), "kind": CategoricalDistribution(("wide", "narrow"))},
        user_attrs={"evoengine": {"config": "t_2", "parents": [1, 2]}},
        system_attrs={"generation": 3},
    )
    written = []
    for storage in (RDBStorage, TrialStorage):
        made = storage(f"sqlite:///{tmp_path}/{storage.__name__}.db")
        study = made.create_new_study([StudyDirection.MINIMIZE], "one")
        numbers = [made.get_trial_number_from_id(made.create_new_trial(study, born)) for _ in range(2)]
        assert [0, 1] == numbers
        written.append(made.get_all_trials(study))
        made.engine.dispose()

    assert [{**vars(trial), "_datetime_start": None} for trial in written[0]] == [
        {**vars(trial), "_datetime_start": None} for trial in written[1]
    ]


def test_a_name_with_braces_is_a_name(tmp_path: Path) -> None:
    path = tmp_path / "a{0} %20{SCHEMA_VERSION}.db"
    Archive.open(str(path)).close()

    assert path.exists()


@pytest.mark.parametrize("content", [b"not a database at all, " * 9, b"SQLite format 3\x00" + b"\xff" * 4096])
def test_a_file_that_is_no_database_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)

    with pytest.raises(UserError, match=rf"database {path} (cannot be used|does not answer) \(.*\): .*--storage"):
        Archive.open(str(path))
    assert content == path.read_bytes()


def test_a_damaged_database_is_refused(archive: Archive, path: Path) -> None:
    archive.close()
    content = bytearray(path.read_bytes())
    content[4096:] = b"\x5a" * (len(content) - 4096)
    path.write_bytes(content)

    with pytest.raises(UserError, match=r"malformed|not a database"):
        Archive.open(str(path))


def test_a_read_only_database_is_refused_at_once(archive: Archive, path: Path) -> None:
    archive.close()
    start = time.monotonic()

    with pytest.raises(UserError, match="readonly"):
        Archive.open(f"sqlite:///file:{path}?mode=ro&uri=true")
    assert time.monotonic() - start < database.PATIENCE_SECONDS


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(UserError, match=r"its folder cannot be made \(.*\): give another with --storage"):
        Archive.open(str(tmp_path / "file" / "sub" / "evo.db"))
    with pytest.raises(UserError, match=r"is a folder: give a file"):
        Archive.open(str(tmp_path))


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UserError, match=r"knows no such kind; use sqlite:///FILE"):
        Archive.open("nosuch://host/db")
    with pytest.raises(UserError, match="cannot be parsed"):
        Archive.open("postgresql+psycopg://me:a/b:c@host:port/db")


def test_a_missing_driver_is_named_with_its_remedy() -> None:
    with pytest.raises(UserError, match=r"needs a driver .*pip install 'evoengine\[postgres\]'"):
        Archive.open("oracle+oracledb://me@host/db")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("url", ["me:s3cret@localhost:1/db", "me@localhost:1/db?password=s3cret"])
def test_an_unreachable_server_is_named_without_its_password(url: str) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(UserError, match=r"localhost:1/db.* does not answer") as error:
        Archive.open(f"postgresql+psycopg://{url}")

    assert "s3cret" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("tables", [("trials",), ("trial_params", "trial_user_attributes", "trials")])
def test_trials_that_were_deleted_by_hand_are_told(path: Path, tables: tuple[str, ...]) -> None:
    """SQLite gives their ids to the next trials, with or without what else there was of them."""
    archive = Archive.open(str(path))
    study = archive.create_study(SPEC)
    study.acquire(Owner.current())
    [candidate] = study.claim([Proposal((0, 0, 0, 0), "default")])
    study.commit(candidate, MEASUREMENT, ARTIFACT)
    with contextlib.closing(sqlite3.connect(path)) as other, other:
        for table in tables:
            other.execute(f"DELETE FROM {table}")

    says = rf"^database {path} is damaged \(Optuna's table of trials has lost some: UNIQUE constraint failed: .*\): go"
    with pytest.raises(UserError, match=says):
        study.claim([Proposal((1, 0, 0, 0), "random")])
    with pytest.raises(UserError, match=says):  # nor can what that left half done be put back
        study.release()
    archive.close()


@pytest.mark.usefixtures("impatient")
def test_a_database_that_stays_locked_loses_nothing(path: Path) -> None:
    archive = Archive.open(str(path))
    study = archive.create_study(SPEC)
    study.acquire(Owner.current())
    [candidate] = study.claim([Proposal((0, 0, 0, 0), "default")])
    with locked(path), pytest.raises(UserError, match=r"locked\): check that it is there and free$"):
        study.commit(candidate, MEASUREMENT, ARTIFACT)
    study.commit(candidate, MEASUREMENT, ARTIFACT)

    assert ["done"] == [record.state for record in study.records()]
    archive.close()


def test_a_lock_that_is_given_up_is_waited_for(archive: Archive, path: Path) -> None:
    study = archive.create_study(SPEC)
    study.acquire(Owner.current())
    stack = contextlib.ExitStack()
    stack.enter_context(locked(path))
    release = threading.Timer(0.5, stack.close)
    release.start()
    study.claim([Proposal((0, 0, 0, 0), "default")])
    release.join()

    assert [0] == [record.number for record in study.records()]


def test_a_study_of_a_newer_optuna_is_refused(archive: Archive, path: Path) -> None:
    with archive._database.engine.begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE alembic_version SET version_num = 'v99.0.0'"))
        connection.execute(sqlalchemy.text("UPDATE version_info SET schema_version = 99"))
    archive.close()

    with pytest.raises(UserError, match=r"pip install -U optuna"):
        Archive.open(str(path))
