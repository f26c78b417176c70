"""What a killed process leaves half done, and how it is completed.

A candidate is written in five steps: claim row (all of a batch at once), Optuna trial, trial entered in the claim row,
verdict, trial state. A kill between any two leaves one of the cases told apart here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, RowMapping, delete, select, update

from evoengine.archive import tables
from evoengine.archive.claims import read_proposal
from evoengine.archive.codec import read_verdict
from evoengine.archive.ledger import Ledger
from evoengine.archive.records import StudySpec
from evoengine.archive.trials import config_at, newborn, optuna_state, origin
from evoengine.archive.work import judged

candidate = tables.candidate


def requeue(ledger: Ledger, spec: StudySpec, session_id: int, forsaken: Callable[[RowMapping], bool]) -> set[int]:
    """Complete the unfinished candidates whose rows are `forsaken` by their session; `session_id` is who does it.

    What has a verdict gets its trial state; what has none waits again, under its number. Returns the numbers of the
    latter.

    Raises:
        Damaged: the database holds what no evoengine writes.
    """
    # Trials before rows: a trial that another process bears in between is not looked at.
    unfinished = [trial for trial in ledger.trials() if not trial.state.is_finished()]
    back = set(_complete_births(ledger, spec, session_id, unfinished, forsaken))
    found = ledger.candidates()  # once: between two reads another process may enter a trial, which then had no row
    rows = {row["trial_id"]: row for row in found}
    unborn = {row["config_digest"] for row in found if row["trial_id"] is None}
    finals = ledger.read(lambda connection: _final_verdicts(connection, ledger.id))
    for trial in unfinished:
        row = rows.get(trial._trial_id)
        if row is None:
            # Written twice because the connection broke on the commit: the other one has the row. What has no origin is
            # another program's.
            if (born := origin(trial)) is not None and born.digest not in unborn:
                ledger.set_state(trial._trial_id, TrialState.FAIL)
        elif row["session_id"] is None:
            if trial.state is not TrialState.WAITING:
                ledger.set_state(trial._trial_id, TrialState.WAITING)
        elif forsaken(row) and row["id"] in finals:
            ledger.set_state(trial._trial_id, *optuna_state(read_verdict(finals[row["id"]])))
        elif forsaken(row):
            # The owner may only have been cut off, and have committed since the finals were read.
            held = (candidate.c.id == row["id"]) & (candidate.c.session_id == row["session_id"]) & ~judged(final=True)
            if ledger.update(update(candidate).where(held).values(session_id=None)):
                ledger.set_state(trial._trial_id, TrialState.WAITING)
                back.add(trial.number)
    return back


def _complete_births(
    ledger: Ledger,
    spec: StudySpec,
    session_id: int,
    unfinished: list[FrozenTrial],
    forsaken: Callable[[RowMapping], bool],
) -> Iterator[int]:
    """Claim rows without a trial: enter the trial if it was born, else bear it to wait. Yields the latter's numbers."""
    born = {found.digest: trial._trial_id for trial in unfinished if (found := origin(trial)) is not None}
    for row in ledger.candidates():
        if row["trial_id"] is not None or not forsaken(row):
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


def _final_verdicts(connection: Connection, study_id: int) -> dict[int, RowMapping]:
    query = select(tables.verdict).join(candidate).where(candidate.c.study_id == study_id, tables.verdict.c.final)
    return {row["candidate_id"]: row for row in connection.execute(query).mappings()}
