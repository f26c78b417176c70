"""Studies by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import optuna
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning
from optuna.study import StudyDirection
from sqlalchemy import Connection, RowMapping, exc, func, insert, select

from evoengine.archive import merge, sessions, tables, transfer
from evoengine.archive.codec import read_spec
from evoengine.archive.database import Database
from evoengine.archive.documents import Damaged, check_shapes, typed
from evoengine.archive.records import StudySpec, StudySummary
from evoengine.archive.study import Study
from evoengine.errors import UnknownStudy, UserError
from evoengine.verdict import on_shapes

T = TypeVar("T")

NAME_CHARS = 512
"""Of a study's name, as Optuna's tables have it."""


class StudyExists(UserError):
    """A new study's name is that of one which is there."""


class Archive:
    """Every study of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def open(cls, url_or_path: str, patience_seconds: float | None = None) -> Archive:
        """A file path or any SQLAlchemy URL; what does not exist yet is created.

        `patience_seconds` is how long everything asked of it waits while it is locked or away.

        Raises:
            UserError: it cannot be opened, is not a database, cannot be written, or is of a newer schema.
        """
        return cls(Database(url_or_path, patience_seconds))

    @property
    def name(self) -> str:
        """The database as messages may show it: without credentials."""
        return self._database.name

    def create_study(self, spec: StudySpec) -> Study:
        """A new study.

        Raises:
            StudyExists: the name is taken.
            UserError: it is another program's, or no name.
        """
        _check_name(spec.name, "with --study")
        taken = StudyExists(f"study {spec.name} exists: give another --study")

        def create() -> None:
            storage = self._database.storage
            with self._database.engine.connect() as connection:
                if self._row(connection, spec.name) is not None:
                    raise taken
            try:
                optuna_id = storage.create_new_study([StudyDirection.MINIMIZE], spec.name)
            except DuplicatedStudyError:
                # Ours, if a process died between the two tables: then it is empty and can be taken up.
                optuna_id = storage.get_study_id_from_name(spec.name)
                if storage.get_n_trials(optuna_id):
                    raise UserError(
                        f"study {spec.name} exists in this database and is another program's: give another --study"
                    ) from None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                optuna.load_study(study_name=spec.name, storage=storage).set_metric_names(["median_us"])
            try:
                with self._database.engine.begin() as connection:
                    values = {"name": spec.name, "spec": spec.as_json(), "status": "new", "opened_at": _now()}
                    connection.execute(insert(tables.study).values(values))
            except exc.IntegrityError:
                raise taken from None

        self._database.patiently(create, f"then run the same command again for study {spec.name}")
        return self.open_study(spec.name)

    def open_study(self, name: str | None = None) -> Study:
        """The study `name`; the one used last without a name.

        Raises:
            UserError: there is no such study; names the nearest one.
        """
        row = self._existing(name)
        try:
            return Study(self._database, row["id"], read_spec(row))
        except Damaged as error:
            raise self._database.damaged(error) from error

    def studies(self) -> list[StudySummary]:
        """Every study, the one used last first."""

        def read(connection: Connection) -> list[StudySummary]:
            rows = connection.execute(select(tables.study).order_by(tables.study.c.opened_at.desc())).mappings()
            return [_summary(connection, row) for row in rows.all()]

        return self._read(read)

    def summary(self, name: str) -> StudySummary:
        """The line of one study.

        Raises:
            UserError: there is no such study; names the nearest one.
        """
        row = self._existing(name)
        return self._read(lambda c: _summary(c, row))

    # *** studies as wholes ***

    def rename_study(self, name: str, new: str) -> None:
        """Give a study another name; its trials, and who uses it last, stay as they are.

        Raises:
            UserError: there is no such study, a live process searches it, or `new` is taken or no name.
        """
        _check_name(new, "as the new name")
        self._existing(name)
        self._write(lambda c: transfer.rename(c, name, new, self._taken(new, "give another new name")))

    def delete_study(self, name: str) -> None:
        """Delete a study with all that belongs to it, here and in Optuna's tables, or nothing of it.

        Raises:
            UserError: there is no such study, or a live process searches it.
        """
        self._existing(name)
        self._write(lambda c: transfer.delete(c, name))
        self._database.forget_trials()

    def copy_study(self, name: str, to: Archive, new: str) -> None:
        """Copy a study with its trials' numbers and all that belongs to it into an archive, which may be this one.

        Raises:
            UserError: there is no such study, a live process searches it, it is damaged, or `new` is taken or no name.
        """
        _check_name(new, "with --as")
        whole = self._whole(name)
        to._write(lambda c: transfer.write_whole(c, whole, new, to._taken(new, "give another with --as NAME")))

    def merge_study(self, name: str, source: Archive, into: str) -> merge.Merged | None:
        """Bring a study of `source`, in which nothing was measured, into the study `into` of this archive.

        What that study knows already stays as it is. Where there is no such study, `name` is copied whole and None
        returned: then it may have measured, too.

        Raises:
            UserError: there is no study `name`, a live process searches one of the two, they ask different questions,
                `name` has measured, or it is damaged.
        """
        _check_name(into, "with --into")
        whole = source._whole(name)
        if self._read(lambda c: self._row(c, into)) is None:
            taken = self._taken(into, "give another with --into NAME")
            self._write(lambda c: transfer.write_whole(c, whole, into, taken))
            return None

        return self._write(lambda c: merge.merge(c, whole, into))

    def builds(self) -> set[str]:
        """The digests of every build that a study of this database refers to; of several shapes, the build of each."""

        def read(connection: Connection) -> set[str]:
            found = {typed(str, one) for one in connection.scalars(select(tables.build.c.digest).distinct())}
            for row in connection.execute(select(tables.study)).mappings().all():
                if not read_spec(row).members:
                    continue
                of_study = tables.candidate.c.study_id == row["id"]
                query = select(tables.verdict.c.evidence).select_from(tables.verdict.join(tables.candidate))
                for evidence in connection.scalars(query.where(of_study)):
                    check_shapes(evidence or {})
                    found |= {one["build"] for one in on_shapes(evidence or {})}
            return found

        return self._read(read)

    def close(self) -> None:
        """Close every connection; the archive can still be used and connects again."""
        self._database.close()

    def _existing(self, name: str | None) -> RowMapping:
        """The row of the study `name`, or of the one used last.

        Raises:
            UserError: there is none; names the nearest one.
        """
        row = self._read(lambda c: self._row(c, name))
        if row is not None:
            return row
        names = [summary.spec.name for summary in self.studies()]
        if not names:
            raise UserError(f"database {self.name} holds no study yet: start one with: evoengine search")
        raise UnknownStudy(str(name), names)

    def _whole(self, name: str) -> transfer.Whole:
        """A study that exists and can be read: what is damaged must not travel."""
        study = self.open_study(name)
        for read in (study.records, study.check_trials, study.elites, study.baselines, study.counts):
            read()
        return self._write(lambda c: transfer.read_whole(c, name))

    def _taken(self, name: str, remedy: str) -> UserError:
        return UserError(f"study {name} exists in database {self.name}, or another program's of that name: {remedy}")

    def _read(self, work: Callable[[Connection], T]) -> T:
        def connected() -> T:
            with self._database.engine.connect() as connection:
                return work(connection)

        return self._database.patiently(connected, "then run the same command again")

    def _write(self, work: Callable[[Connection], T]) -> T:
        """`work` in one transaction, all of it again when the database was locked."""

        def begun() -> T:
            with self._database.engine.begin() as connection:
                return work(connection)

        return self._database.patiently(begun, "then run the same command again")

    def _row(self, connection: Connection, name: str | None) -> RowMapping | None:
        query = select(tables.study).order_by(tables.study.c.opened_at.desc(), tables.study.c.id.desc()).limit(1)
        if name is not None:
            query = query.where(tables.study.c.name == name)
        return connection.execute(query).mappings().first()


def _check_name(name: str, option: str) -> None:
    if not name or len(name) > NAME_CHARS or not name.isprintable():
        raise UserError(f"study name {name!r:.80}: give one of 1 to {NAME_CHARS} printable characters {option}")


def _summary(connection: Connection, row: RowMapping) -> StudySummary:
    verdict, candidate, elite = tables.verdict, tables.candidate, tables.elite
    of_study = candidate.c.study_id == row["id"]

    def count(*conditions: Any) -> int:
        query = select(func.count()).select_from(verdict.join(candidate)).where(of_study, *conditions)
        return connection.scalar(query) or 0

    def fastest(column: Any) -> float | None:
        return connection.scalar(select(func.min(column)).select_from(verdict.join(candidate)).where(of_study))

    candidates = connection.scalar(select(func.count()).select_from(candidate).where(of_study)) or 0
    return StudySummary(
        spec=read_spec(row),
        status=typed(str, row["status"]),
        opened_at=typed(str, row["opened_at"]),
        candidates=candidates,
        rejected=count(verdict.c.kind == "rejection"),
        measured=count(verdict.c.kind == "measurement"),
        waiting=candidates - count(verdict.c.final),
        elites=connection.scalar(select(func.count()).select_from(elite).where(elite.c.study_id == row["id"])) or 0,
        best_us=connection.scalar(select(func.min(elite.c.median_us)).where(elite.c.study_id == row["id"])),
        best_unconfirmed_us=fastest(verdict.c.median_us),
        best_estimated_us=fastest(verdict.c.estimated_us),
        searched_by=", ".join(map(str, sessions.owners(connection, row["id"]))),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat()
