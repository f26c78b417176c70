"""The reads and writes of one study that its claims, verdicts and recovery are made of."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages._rdb.models import BaseModel
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import ColumnElement, Connection, Delete, RowMapping, Table, Update, exc, select, update

from evoengine.archive import tables
from evoengine.archive.database import Database
from evoengine.archive.documents import Damaged
from evoengine.archive.sessions import TAKEN_OVER
from evoengine.archive.work import lock
from evoengine.errors import Unavailable, UserError

T = TypeVar("T")

OPTUNA: Mapping[str, Table] = BaseModel.metadata.tables
TRIALS, TRIAL_ATTRS = OPTUNA["trials"], OPTUNA["trial_user_attributes"]

OPTUNA_CANNOT_READ = (
    *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError),
    AssertionError,  # a finished trial whose value is null
)
"""What comes out of Optuna for rows that it has not written."""


class Ledger:
    """Our tables and Optuna's, as far as one study goes.

    Raises:
        UserError: the database stayed locked or away for some seconds, or Optuna's side of the study is gone.
    """

    def __init__(self, database: Database, study_id: int, name: str) -> None:
        self.id = study_id
        self._database = database
        self._storage = database.storage
        self._name = name
        try:
            self.optuna_id = self._patiently(lambda: self._storage.get_study_id_from_name(name))
        except KeyError:
            raise UserError(
                f"study {name} has lost its trials, another program has deleted them from Optuna's tables: delete the "
                f"rest with: evoengine studies delete {shlex.quote(name)}"
            ) from None

    def read(self, work: Callable[[Connection], T]) -> T:
        def connected() -> T:
            with self._database.engine.connect() as connection:
                return work(connection)

        return self._patiently(connected)

    def write(self, work: Callable[[Connection], T]) -> T:
        """`work` in one transaction that holds the study, all of it again when the database was locked."""

        def begun() -> T:
            with self._database.engine.begin() as connection:
                lock(connection, self.id)
                return work(connection)

        return self._patiently(begun)

    def update(self, statement: Update | Delete) -> int:
        """Rows changed."""
        return self.write(lambda connection: connection.execute(statement).rowcount)

    def candidates(self, which: ColumnElement[bool]) -> Sequence[RowMapping]:
        """Our rows of these candidates, in the order they were claimed."""
        row = tables.candidate
        query = select(row).where(row.c.study_id == self.id, which).order_by(row.c.id)
        return self.read(lambda connection: connection.execute(query).mappings().all())

    def trials(self) -> list[FrozenTrial]:
        """Every Optuna trial of the study in order of its number; not to be changed."""

        def read() -> list[FrozenTrial]:
            try:
                return self._storage.get_all_trials(self.optuna_id, deepcopy=False)
            except OPTUNA_CANNOT_READ as error:
                raise Damaged(f"Optuna cannot read a trial: {type(error).__name__} {error}") from error

        return self._patiently(read)

    def trial_id(self, number: int) -> int:
        return self._patiently(lambda: self._storage.get_trial_id_from_study_id_trial_number(self.optuna_id, number))

    def bear(self, trial: FrozenTrial, digest: str, holder: int, **changes: int | None) -> int:
        """Write a new Optuna trial in one transaction, enter it in the candidate's row, and return its number.

        Raises:
            Unavailable: the row is not the session `holder`'s any more, so that another process has borne the trial.
        """
        with self._giving_ids():
            trial_id = self._patiently(lambda: self._storage.create_new_trial(self.optuna_id, trial))
        if not self.attach(digest, trial_id, tables.candidate.c.session_id == holder, **changes):
            self.set_state(trial_id, TrialState.FAIL)
            raise Unavailable(f"study {self._name} was {TAKEN_OVER}")
        # Optuna would read the whole trial for it, which takes as long as its birth.
        number = self.read(
            lambda connection: connection.scalar(select(TRIALS.c.number).where(TRIALS.c.trial_id == trial_id))
        )
        assert number is not None, "it was born with one"
        return int(number)

    def attach(self, digest: str, trial_id: int, held: ColumnElement[bool], **changes: int | None) -> bool:
        """Enter the trial, and what else `changes`, in the row of the candidate with this config digest.

        False where the row is not `held` as it should be, or has another trial by now.

        Raises:
            UserError: another row has the trial.
        """
        row = tables.candidate
        same = (row.c.study_id == self.id) & (row.c.config_digest == digest)
        entered = update(row).where(same, row.c.trial_id.is_(None), held).values(trial_id=trial_id, **changes)
        with self._giving_ids():
            if self.update(entered):
                return True
        # Ours all the same: the connection broke on the commit, and that was the second try.
        return self.read(lambda connection: connection.scalar(select(row.c.trial_id).where(same))) == trial_id

    def set_state(self, trial_id: int, state: TrialState, values: list[float] | None = None) -> None:
        """Move an Optuna trial on; one that is finished already was finished from the same verdict."""

        def move() -> Any:
            try:
                return self._storage.set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:
                return None

        self._patiently(move)

    def note_rejection(self, trial_id: int, reason: str) -> None:
        """Let Optuna's dashboard say why a trial was pruned; not of one that others have finished for this process."""

        def note() -> None:
            with suppress(UpdateFinishedTrialError):
                self._storage.set_trial_user_attr(trial_id, "rejected", reason)

        self._patiently(note)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Around what reads documents outside a transaction: a damaged one is the user's to know."""
        try:
            yield
        except Damaged as error:
            raise self._database.damaged(error) from error

    @contextmanager
    def _giving_ids(self) -> Iterator[None]:
        """Around what gives a trial its id. Where trials were deleted by hand SQLite gives their ids again, and what is
        left of them has these already.

        Raises:
            UserError: that is so.
        """
        try:
            yield
        except exc.IntegrityError as error:
            raise self._database.damaged(Damaged(f"Optuna's table of trials has lost some: {error.orig}")) from error

    def _patiently(self, work: Callable[[], T]) -> T:
        return self._database.patiently(work)
