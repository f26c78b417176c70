"""What a killed process leaves half done, and how it is completed.

A candidate is written in five steps: claim row (all of a batch at once), Optuna trial, trial entered in the claim row,
verdict, trial state. A kill between any two leaves one of the cases told apart here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence

from optuna.trial import TrialState
from sqlalchemy import Connection, RowMapping, delete, select, update

from evoengine.archive import tables
from evoengine.archive.claims import read_proposal
from evoengine.archive.codec import read_verdict
from evoengine.archive.documents import Damaged, typed
from evoengine.archive.ledger import TRIAL_ATTRS, TRIALS, Ledger
from evoengine.archive.records import StudySpec
from evoengine.archive.trials import ORIGIN, Origin, config_at, newborn, optuna_state
from evoengine.archive.work import judged

candidate = tables.candidate
Forsaken = Callable[[int | None], bool]
"""Whether the session that holds a candidate will not finish it."""


def requeue(ledger: Ledger, spec: StudySpec, session_id: int, forsaken: Forsaken) -> list[int]:
    """Complete the unfinished candidates that are `forsaken` by their session; `session_id` is who does it.

    What has a verdict gets its trial state; what has none waits again, under its number. Returns the numbers of the
    latter.

    Raises:
        Damaged: the database holds what no evoengine writes.
    """
    # Trials before rows: a trial that another process bears in between is not looked at.
    unfinished = ledger.read(lambda connection: _unfinished(connection, ledger.optuna_id))
    born = {trial["trial_id"]: _born(trial) for trial in unfinished}
    back = [*_complete_births(ledger, spec, session_id, {digest: key for key, digest in born.items()}, forsaken)]
    # Once: between two reads another process may enter a trial, which then had no row.
    found = ledger.candidates(candidate.c.trial_id.in_(born) | candidate.c.trial_id.is_(None))
    rows = {row["trial_id"]: row for row in found}
    unborn = {row["config_digest"] for row in found if row["trial_id"] is None}
    finals = ledger.read(lambda connection: _final_verdicts(connection, [row["id"] for row in found]))
    for trial in unfinished:
        key, row = trial["trial_id"], rows.get(trial["trial_id"])
        if row is None:
            # Written twice because the connection broke on the commit: the other one has the row. What has no origin is
            # another program's.
            if born[key] is not None and born[key] not in unborn:
                ledger.set_state(key, TrialState.FAIL)
        elif row["session_id"] is None:
            if trial["state"] is not TrialState.WAITING:
                ledger.set_state(key, TrialState.WAITING)
        elif forsaken(row["session_id"]) and row["id"] in finals:
            ledger.set_state(key, *optuna_state(read_verdict(finals[row["id"]])))
        elif forsaken(row["session_id"]):
            # The owner may only have been cut off, and have committed since the finals were read.
            held = (candidate.c.id == row["id"]) & (candidate.c.session_id == row["session_id"]) & ~judged(final=True)
            if ledger.update(update(candidate).where(held).values(session_id=None)):
                ledger.set_state(key, TrialState.WAITING)
                back.append(typed(int, trial["number"]))
    return sorted(back)


def _unfinished(connection: Connection, optuna_id: int) -> Sequence[RowMapping]:
    """Optuna's unfinished trials, without those that wait as they should: of them there may be thousands."""
    attribute = (TRIAL_ATTRS.c.trial_id == TRIALS.c.trial_id) & (TRIAL_ATTRS.c.key == ORIGIN)
    query = (
        select(TRIALS.c.trial_id, TRIALS.c.number, TRIALS.c.state, TRIAL_ATTRS.c.value_json)
        .outerjoin(candidate, candidate.c.trial_id == TRIALS.c.trial_id)
        .outerjoin(TRIAL_ATTRS, attribute)
        .where(TRIALS.c.study_id == optuna_id, TRIALS.c.state.in_([TrialState.RUNNING, TrialState.WAITING]))
        .where((TRIALS.c.state == TrialState.RUNNING) | candidate.c.id.is_(None) | candidate.c.session_id.is_not(None))
        .order_by(TRIALS.c.number)
    )
    return connection.execute(query).mappings().all()


def _born(trial: RowMapping) -> str | None:
    """The digest of the config that a trial was born with; None of a trial that another program put into the study."""
    if trial["value_json"] is None:
        return None
    try:
        return typed(Origin, json.loads(trial["value_json"])).digest
    except (ValueError, TypeError, RecursionError) as error:
        raise Damaged(f"trial {trial['number']!r:.80}: {trial['value_json']!r:.80} is not JSON: {error}") from error


def _complete_births(
    ledger: Ledger, spec: StudySpec, session_id: int, born: Mapping[str | None, int], forsaken: Forsaken
) -> Iterator[int]:
    """Claim rows without a trial: enter the trial if it was born, else bear it to wait. Yields the latter's numbers."""
    for row in ledger.candidates(candidate.c.trial_id.is_(None)):
        if not forsaken(row["session_id"]):
            continue
        held = (candidate.c.id == row["id"]) & (candidate.c.session_id == row["session_id"])
        unborn = held & candidate.c.trial_id.is_(None)
        if row["config_digest"] in born:
            ledger.attach(row["config_digest"], born[row["config_digest"]], candidate.c.session_id == row["session_id"])
        elif row["proposal"] is None:  # schema 1 kept nothing to bear it from: it will be proposed again
            ledger.update(delete(candidate).where(unborn))
        # Taken over first: of two processes that recover at once one bears it.
        elif ledger.update(update(candidate).where(unborn).values(session_id=session_id)):
            proposal = read_proposal(row["proposal"])
            trial = newborn(spec, proposal, config_at(spec.frozen_space, proposal.point))
            trial.state = TrialState.WAITING
            yield ledger.bear(trial, row["config_digest"], session_id, session_id=None)


def _final_verdicts(connection: Connection, ids: Sequence[int]) -> dict[int, RowMapping]:
    query = select(tables.verdict).where(tables.verdict.c.candidate_id.in_(ids), tables.verdict.c.final)
    return {row["candidate_id"]: row for row in connection.execute(query).mappings()}
