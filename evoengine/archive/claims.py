"""Claims: a candidate's row says who has the config, and holds all that its trial is born from.

A batch is claimed in one transaction before the first of its trials is born. A kill in between leaves rows from which
the births are completed, so a resumed search goes on with whole batches, as if it had not been killed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, insert, select, update

from evoengine.archive import results, tables
from evoengine.archive.documents import typed
from evoengine.archive.ledger import TRIALS
from evoengine.archive.work import Bounds, judged, room
from evoengine.sampler import Proposal
from evoengine.space import Config

candidate = tables.candidate


def enter(
    connection: Connection,
    study_id: int,
    session_id: int,
    asked: Sequence[tuple[Proposal, Config]],
    free: Mapping[str, int],
    bounds: Bounds | None,
) -> list[tuple[Proposal, Config]]:
    """Claim those `asked` that nobody has, as far as there is room, and return what is to be born.

    What was `free` on the way to them is added to the counts.
    """
    results.add_counts(connection, study_id, free)
    digests = [config.digest for _, config in asked]
    query = select(candidate).where(candidate.c.study_id == study_id, candidate.c.config_digest.in_(digests))
    known = {row["config_digest"]: row for row in connection.execute(query).mappings()}
    left = len(asked) if bounds is None else room(connection, study_id, bounds)
    mine = []
    for proposal, config in asked:
        row = known.get(config.digest)
        if row is None and left <= 0:
            continue
        if row is None:
            left -= 1
            values = {"config_digest": config.digest, "label": config.label, "proposal": dataclasses.asdict(proposal)}
            connection.execute(insert(candidate).values(study_id=study_id, session_id=session_id, **values))
        # Ours and unborn: the connection broke on the commit, and this is the second try.
        if row is None or (row["session_id"] == session_id and row["trial_id"] is None):
            mine.append((proposal, config))
    return mine


def take(connection: Connection, study_id: int, session_id: int, *, estimated: bool) -> RowMapping | None:
    """Claim the first that waits, and return its row: one never evaluated, or that with the best estimate."""
    guess = tables.verdict.alias()
    waits = (candidate.c.study_id == study_id) & candidate.c.session_id.is_(None) & ~judged(final=True)
    found = select(candidate).join(TRIALS, TRIALS.c.trial_id == candidate.c.trial_id)
    found = found.outerjoin(guess, (guess.c.candidate_id == candidate.c.id) & ~guess.c.final)
    found = found.where(waits, guess.c.candidate_id.is_not(None) == estimated)
    row = connection.execute(found.order_by(guess.c.estimated_us, TRIALS.c.number).limit(1)).mappings().first()
    if row is not None:
        connection.execute(update(candidate).where(candidate.c.id == row["id"]).values(session_id=session_id))
    return row


def read_proposal(document: Mapping[str, Any]) -> Proposal:
    """The proposal that `enter` wrote.

    Raises:
        Damaged: it is none.
    """
    return typed(Proposal, document)
