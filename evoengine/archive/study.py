"""One study: claims, verdicts, and what is known of every trial.

Our candidate row alone decides who may work on a config: its digest is unique in the study, and its `session_id` says
who has it. The Optuna trials follow. Writes come in the order claims of a batch, trials, verdict, trial state, and
`recover` completes what a killed process left half done.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import Connection, delete, exists, insert, select, update

from evoengine.archive import claims, results, sessions, tables, work
from evoengine.archive.blobs import DatabaseStore
from evoengine.archive.codec import build_columns, verdict_columns
from evoengine.archive.database import Database
from evoengine.archive.history import History
from evoengine.archive.lease import RENEW_SECONDS, Owner
from evoengine.archive.ledger import Ledger
from evoengine.archive.peers import PeerSessions
from evoengine.archive.records import Baseline, Elite, Record, StudySpec, fastest, shortlist
from evoengine.archive.recovery import requeue
from evoengine.archive.transfer import spec_of
from evoengine.archive.trials import newborn, optuna_state
from evoengine.archive.work import Bounds
from evoengine.errors import Unavailable
from evoengine.sampler import Proposal
from evoengine.verdict import Artifact, Candidate, Estimate, Evidence, Rejection, Verdict

candidates = tables.candidate
NOTHING: Mapping[str, int] = MappingProxyType({})


class Study:
    """One study of an archive. Reading needs nothing; claiming and committing need `acquire` first.

    Every method raises UserError when the database stays locked or away for some seconds.
    """

    def __init__(self, database: Database, study_id: int, spec: StudySpec) -> None:
        self.spec = spec
        self._space = spec.frozen_space
        self._database = database
        self._ledger = Ledger(database, study_id, spec.name)
        self._history = History(self._ledger, self._space)
        self._session: int | None = None
        self._peers: PeerSessions | None = None

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def on_server(self) -> bool:
        """Whether other machines can reach the database."""
        return not self._database.sqlite

    def store(self) -> DatabaseStore:
        """Packed builds beside the study, for every machine that works on it."""
        return DatabaseStore(self._database)

    # *** sessions ***

    def acquire(self, owner: Owner, *, shared: bool = False) -> None:
        """Open a session. With `shared`, other processes that share may work on the study at the same time.

        Raises:
            Unavailable: a live owner has the study.
        """
        self._session = self._ledger.write(
            lambda c: sessions.begin(c, self._ledger.id, self.name, owner, shared=shared)
        )
        self._peers = PeerSessions(self._ledger, self._session, shared=shared)
        self._renewed = time.monotonic()

    def renew(self) -> None:
        """Extend the lease; to be called more often than every `lease.LEASE_SECONDS`.

        Raises:
            Unavailable: another process has taken the study over.
        """
        self._ledger.write(lambda c: sessions.renew(c, self._own, self.name))
        self._renewed = time.monotonic()

    def keep(self) -> None:
        """The same where it is time for it; for the steps within a batch."""
        if time.monotonic() - self._renewed > RENEW_SECONDS:
            self.renew()

    def release(self) -> None:
        """End the session, if one is open; what it had claimed and not finished waits for the next one."""
        mine = self._session
        if mine is None:
            return
        with self._ledger.reading():
            requeue(self._ledger, self.spec, mine, lambda holder: holder == mine)
        self._ledger.write(lambda c: sessions.end(c, mine))
        self._session = None

    def recover(self) -> list[int]:
        """Complete what dead processes left half done and put back what they had in flight, under the same numbers.

        Returns the numbers of what was put back; `claim_waiting` hands it out.
        """
        alive = self._ledger.read(lambda c: sessions.living(c, self._ledger.id))
        with self._ledger.reading():
            return requeue(self._ledger, self.spec, self._own, lambda holder: holder not in alive)

    # *** trials ***

    def room(self, bounds: Bounds) -> int:
        """How many more candidates may be claimed, by all who share the study together."""
        return self._ledger.read(lambda c: work.room(c, self._ledger.id, bounds))

    def claim(
        self, proposals: Iterable[Proposal], free: Mapping[str, int] = NOTHING, bounds: Bounds | None = None
    ) -> list[Candidate]:
        """Candidates for those proposals whose configs nobody has claimed yet; the others are left out.

        `free` is added to the counts of what cost nothing (infeasible proposals, repeats). With `bounds` there are no
        more of them than these leave room for.
        """
        asked = [(proposal, self._space.config_at(proposal.point)) for proposal in proposals]
        return [
            Candidate(
                self._ledger.bear(newborn(self.spec, proposal, config), config.digest, self._own),
                config,
                proposal.operator,
                proposal.generation,
                proposal.parents,
            )
            for proposal, config in self._ledger.write(
                lambda c: claims.enter(c, self._ledger.id, self._own, asked, free, bounds)
            )
        ]

    def claim_waiting(self, limit: int, *, estimated: bool) -> list[Candidate]:
        """Up to `limit` waiting candidates: those never evaluated, or those `estimated` that wait to be measured, the
        best estimate first."""
        claimed: list[int] = []
        waits = (candidates.c.study_id == self._ledger.id) & candidates.c.session_id.is_(None)
        # Nothing waits: as nearly always in a search.
        if self._ledger.read(lambda c: c.scalar(select(candidates.c.id).where(waits).limit(1))) is not None:
            while len(claimed) < limit:
                row = self._ledger.write(lambda c: claims.take(c, self._ledger.id, self._own, estimated=estimated))
                if row is None:
                    break
                self._ledger.set_state(row["trial_id"], TrialState.RUNNING)
                claimed.append(row["id"])
        return self._history.candidates(claimed) if claimed else []

    def commit(
        self, candidate: Candidate, verdict: Verdict, artifact: Artifact | None, twin_of: int | None = None
    ) -> None:
        """Store the verdict of a claimed candidate; an estimate sends it back to wait for its measurement.

        `twin_of` is the trial whose cubin is the same and whose verdict this therefore is.

        Raises:
            Unavailable: another process has taken the candidate over; its verdict will be the one that counts.
        """
        trial_id = self._ledger.trial_id(candidate.number)
        waits = isinstance(verdict, Estimate)

        def store(connection: Connection) -> None:
            own = (candidates.c.trial_id == trial_id) & (candidates.c.session_id == self._own)
            key = connection.scalar(select(candidates.c.id).where(candidates.c.trial_id == trial_id))
            same = (tables.verdict.c.candidate_id == key) & (tables.verdict.c.final == (not waits))
            held = update(candidates).where(own).values(session_id=None if waits else self._own)
            if not connection.execute(held).rowcount:
                mine = same & (tables.verdict.c.session_id == self._own)
                if connection.scalar(select(tables.verdict.c.candidate_id).where(mine)) is not None:
                    return  # the connection broke on the commit of this estimate, and this is the second try
                raise Unavailable(f"trial {candidate.number} of study {self.name} was taken over by another process")
            if artifact is not None:
                connection.execute(delete(tables.build).where(tables.build.c.candidate_id == key))
                connection.execute(insert(tables.build).values(candidate_id=key, **build_columns(artifact)))
            connection.execute(delete(tables.verdict).where(same))
            values = {"candidate_id": key, "final": not waits, "twin_of": twin_of, "session_id": self._own}
            values |= {"committed_at": sessions.now(), **verdict_columns(verdict)}
            connection.execute(insert(tables.verdict).values(values))

        self._ledger.write(store)
        if isinstance(verdict, Rejection):
            self._ledger.note_rejection(trial_id, f"{verdict.gate}: {verdict.reason}")
        self._ledger.set_state(trial_id, *optuna_state(verdict))

    def overrule(self, number: int, rejection: Rejection) -> None:
        """Put a rejection in the place of a trial's measurement and of its twins', for what only a later gate finds.

        Optuna's trials stay complete with their values: a finished trial cannot change.
        """
        trial_id = self._ledger.trial_id(number)
        twins = (tables.verdict.c.twin_of == number) & (candidates.c.study_id == self._ledger.id)
        concerned = select(candidates.c.id).join(tables.verdict).where((candidates.c.trial_id == trial_id) | twins)
        values = dict.fromkeys(tables.VERDICT_COLUMNS) | verdict_columns(rejection)
        values |= {"session_id": self._own, "committed_at": sessions.now()}
        final = tables.verdict.c.final & tables.verdict.c.candidate_id.in_(concerned)

        def store(connection: Connection) -> None:
            changed = update(candidates).where(candidates.c.id.in_(concerned))
            connection.execute(changed.values(revision=tables.NEXT_REVISION))
            connection.execute(update(tables.verdict).where(final).values(**values))

        self._ledger.write(store)

    def records(self) -> list[Record]:
        """Every trial in order of its number."""
        return self._history.all()

    def news(self) -> list[Record]:
        """The trials that are new or have changed since the last call, whoever changed them; all at the first."""
        return self._history.news()

    def check_trials(self) -> None:
        """That Optuna's tables, which other programs read, say of the trials what ours say.

        Raises:
            UserError: they do not.
        """
        self._history.check_trials()

    def best(self, n: int) -> list[Record]:
        """The `n` fastest measured configs, twins left out."""
        return fastest(self.records(), n)

    def shortlist(self, n: int) -> list[Record]:
        """The `n` configs that wait for a measurement with the lowest estimates, twins left out."""
        return shortlist(self.records(), n)

    def holds_config(self) -> bool:
        """Whether any trial has passed every gate, asked without reading them."""
        right = tables.verdict.c.kind.in_(("measurement", "estimate"))
        mine = candidates.c.study_id == self._ledger.id
        query = select(exists().select_from(tables.verdict.join(candidates)).where(mine, right))
        return bool(self._ledger.read(lambda c: c.scalar(query)))

    # *** beside the trials ***

    def set_environment(self, environment: Mapping[str, Any]) -> None:
        """What every verdict of the session is reached with: device, driver, toolchain."""
        self._ledger.write(lambda c: sessions.set_environment(c, self._own, environment))

    def set_budget(self, candidates: int) -> None:
        """Raise the budget, so that later resumes know it too. A study that had ended has not any more.

        Of several who share the study and raise it, the highest counts.
        """
        mine = tables.study.c.id == self._ledger.id

        def raise_to(connection: Connection) -> StudySpec:
            known = spec_of(connection, self._ledger.id)
            spec = replace(known, budget=max(known.budget, candidates))
            connection.execute(update(tables.study).where(mine).values(spec=spec.as_json(), status="budget raised"))
            sessions.forget_finals(connection, self._ledger.id)
            return spec

        self.spec = self._ledger.write(raise_to)
        if self._peers is not None:
            self._peers.expect_more()

    def set_status(self, status: str) -> None:
        """One line for `evoengine studies`."""
        self._ledger.update(update(tables.study).where(tables.study.c.id == self._ledger.id).values(status=status))

    def counts(self) -> dict[str, int]:
        """What cost nothing, by name."""
        return self._ledger.read(lambda c: results.counts(c, self._ledger.id))

    def add_baseline(self, baseline: Baseline) -> None:
        """Store a baseline; measured again, it replaces itself."""
        self._ledger.write(lambda c: results.put_baseline(c, self._ledger.id, baseline))

    def baselines(self) -> list[Baseline]:
        return self._ledger.read(lambda c: results.baselines(c, self._ledger.id))

    def replace_elites(self, elites: Sequence[Elite]) -> None:
        """Keep these and no others, in one transaction: times of two final runs must not be ranked together."""
        self._ledger.write(lambda c: results.replace_elites(c, self._ledger.id, elites))

    def note_elite(self, number: int, evidence: Evidence) -> bool:
        """Add to what is known of an elite; False where another final run has replaced it."""
        return self._ledger.write(lambda c: results.note_elite(c, self._ledger.id, number, evidence))

    def elites(self) -> list[Elite]:
        """The fastest first."""
        return self._ledger.read(lambda c: results.elites(c, self._ledger.id))

    @property
    def peers(self) -> PeerSessions:
        """Those who share the study with this process."""
        assert self._peers is not None, "acquire() the study first"
        return self._peers

    @property
    def _own(self) -> int:
        assert self._session is not None, "acquire() the study first"
        return self._session
