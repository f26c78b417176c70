"""The trials of a study as records: all of them, or those that are new or have changed since an earlier look.

Our own tables hold everything but a trial's number. Optuna's are read only for candidates of schema 1: as objects,
10,000 trials of 18 parameters take ten times as long to read as our rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, MappingResult, RowMapping, Table, select

from evoengine.archive import tables
from evoengine.archive.claims import read_proposal
from evoengine.archive.codec import read_build, read_verdict
from evoengine.archive.documents import Damaged, typed
from evoengine.archive.ledger import TRIALS, Ledger
from evoengine.archive.records import Record
from evoengine.archive.trials import config_at, proposal_of
from evoengine.sampler import Proposal
from evoengine.space import SearchSpace
from evoengine.verdict import Candidate, Estimate

candidate, verdict, build, session = tables.candidate, tables.verdict, tables.build, tables.session


class History:
    """What a study has tried, read from the database. Raises as `Ledger` does."""

    def __init__(self, ledger: Ledger, space: SearchSpace) -> None:
        self._ledger = ledger
        self._space = space
        self._seen = -1  # candidates of a database before schema 4 have revision 0 until they change

    def all(self) -> list[Record]:
        """In order of their numbers."""
        return self._read(self._rows())

    def news(self) -> list[Record]:
        """The same of what is new or has changed since the last call, whoever changed it; of all at the first."""
        new = candidate.c.revision > self._seen
        rows = self._rows(new)
        found = self._read(rows, new)
        self._seen = max([self._seen, *(typed(int, row["revision"]) for row in rows)])
        return found

    def candidates(self, ids: list[int]) -> list[Candidate]:
        """Those with these keys of their rows, in this order."""
        rows = {row["id"]: row for row in self._rows(candidate.c.id.in_(ids))}
        born = self._proposals(list(rows.values()))

        def read(key: int) -> Candidate:
            number, config = typed(int, rows[key]["number"]), config_at(self._space, born[key].point)
            return Candidate(number, config, born[key].operator, born[key].generation, born[key].parents)

        with self._ledger.reading():
            return [read(key) for key in ids]

    def check_trials(self) -> None:
        """That Optuna's tables, which other programs read, say the same of every trial.

        Raises:
            UserError: they do not.
        """
        rows = self._rows()
        proposals = self._proposals(rows)
        with self._ledger.reading():
            told = {trial._trial_id: trial for trial in self._ledger.trials()}
            for row in rows:
                if proposal_of(self._space, told[row["trial_id"]]) != proposals[row["id"]]:
                    raise Damaged(f"trial {row['number']!r:.80} of Optuna is not its candidate {row['label']!r:.80}")

    def _read(self, rows: Sequence[RowMapping], *which: ColumnElement[bool]) -> list[Record]:
        """Of the candidates whose rows were read by the same conditions. What is newer in the other tables than these
        has a higher revision, too, and is read again at the next look."""
        proposals = self._proposals(rows)

        def read(connection: Connection) -> list[Record]:
            verdicts: dict[int, dict[bool, RowMapping]] = {}
            for row in self._beside(connection, verdict, which):
                verdicts.setdefault(row["candidate_id"], {})[row["final"]] = row
            builds = {row["candidate_id"]: row for row in self._beside(connection, build, which)}
            mine = select(session.c.id, session.c.environment).where(session.c.study_id == self._ledger.id)
            environments = {row.id: row.environment for row in connection.execute(mine)}
            return [
                _record(
                    self._space,
                    row,
                    proposals[row["id"]],
                    verdicts.get(row["id"], {}),
                    builds.get(row["id"]),
                    environments,
                )
                for row in rows
            ]

        return self._ledger.read(read)

    def _rows(self, *which: ColumnElement[bool]) -> Sequence[RowMapping]:
        """Our rows of the candidates that were born, with their trials' numbers and in that order."""
        born = select(candidate, TRIALS.c.number).join(TRIALS, TRIALS.c.trial_id == candidate.c.trial_id)
        born = born.where(TRIALS.c.study_id == self._ledger.optuna_id)
        query = born.where(candidate.c.study_id == self._ledger.id, *which).order_by(TRIALS.c.number)
        return self._ledger.read(lambda connection: connection.execute(query).mappings().all())

    def _beside(self, connection: Connection, table: Table, which: Sequence[ColumnElement[bool]]) -> MappingResult:
        query = select(table).join(candidate).where(candidate.c.study_id == self._ledger.id, *which)
        return connection.execute(query).mappings()

    def _proposals(self, rows: Sequence[RowMapping]) -> dict[int, Proposal]:
        """By the candidate's key, what its trial was born from."""
        with self._ledger.reading():
            found = {row["id"]: read_proposal(row["proposal"]) for row in rows if row["proposal"] is not None}
            if len(found) < len(rows):
                trials = {trial._trial_id: trial for trial in self._ledger.trials()}
                old = (row for row in rows if row["proposal"] is None)
                found |= {row["id"]: proposal_of(self._space, trials[row["trial_id"]]) for row in old}
        return found


def _record(
    space: SearchSpace,
    row: Mapping[Any, Any],
    proposal: Proposal,
    verdicts: Mapping[bool, Mapping[Any, Any]],
    build: Mapping[Any, Any] | None,
    environments: Mapping[int, Mapping[str, Any]],
) -> Record:
    """A record from the candidate's row with its trial's number, what that was born from, the verdict rows by finality
    and the build row.

    Raises:
        Damaged: they do not make one.
    """
    number, config = typed(int, row["number"]), config_at(space, proposal.point)
    if config.digest != row["config_digest"]:
        raise Damaged(f"trial {number} is {config.label}, its candidate {row['label']!r:.80}")
    estimate = read_verdict(verdicts[False]) if False in verdicts else None
    if estimate is not None and not isinstance(estimate, Estimate):
        raise Damaged(f"trial {number} has a {type(estimate).__name__} in place of its estimate")
    last = verdicts.get(True) or verdicts.get(False)
    waits: Literal["waiting", "running"] = "waiting" if row["session_id"] is None else "running"
    return Record(
        number=number,
        point=proposal.point,
        config=config,
        operator=proposal.operator,
        generation=proposal.generation,
        parents=proposal.parents,
        system_attrs=proposal.system_attrs,
        expected_gain=proposal.expected_gain,
        state="done" if True in verdicts else waits,
        verdict=read_verdict(verdicts[True]) if True in verdicts else estimate,
        estimate=estimate,
        build=None if build is None else read_build(build),
        twin_of=None if last is None or last["twin_of"] is None else typed(int, last["twin_of"]),
        committed_at="" if last is None else typed(str, last["committed_at"]),
        environment={} if last is None else typed(dict, environments.get(last["session_id"])),
    )
