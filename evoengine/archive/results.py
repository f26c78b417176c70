"""What a study found beside its trials: baselines, elites, and counts of what cost nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from sqlalchemy import Connection, delete, insert, select, update

from evoengine.archive import tables
from evoengine.archive.codec import read_row, read_verdict, verdict_columns
from evoengine.archive.documents import Damaged, check_shapes, positive, typed
from evoengine.archive.records import Baseline, Elite
from evoengine.archive.sessions import now
from evoengine.verdict import Evidence, Measurement, Rejection


def put_baseline(connection: Connection, study_id: int, baseline: Baseline) -> None:
    """A baseline measured again replaces itself."""
    values = {
        "study_id": study_id,
        "name": baseline.name,
        **verdict_columns(baseline.verdict),
        "environment": baseline.environment,
        "measured_at": baseline.measured_at or now(),
    }
    same = (tables.baseline.c.study_id == study_id) & (tables.baseline.c.name == baseline.name)
    connection.execute(delete(tables.baseline).where(same))
    connection.execute(insert(tables.baseline).values(**values))


def baselines(connection: Connection, study_id: int) -> list[Baseline]:
    found = []
    query = select(tables.baseline).where(tables.baseline.c.study_id == study_id).order_by(tables.baseline.c.name)
    for row in connection.execute(query).mappings():
        verdict = read_verdict(row)
        if not isinstance(verdict, Measurement | Rejection):
            raise Damaged(f"baseline {row['name']!r:.80} is an estimate")
        found.append(read_row(Baseline, {**row, "verdict": verdict}))
    return found


def replace_elites(connection: Connection, study_id: int, confirmed: Iterable[Elite]) -> None:
    connection.execute(delete(tables.elite).where(tables.elite.c.study_id == study_id))
    for elite in confirmed:
        fields = {item.name: getattr(elite, item.name) for item in dataclasses.fields(Elite)}
        values = {"study_id": study_id, **fields, "confirmed_at": elite.confirmed_at or now()}
        connection.execute(insert(tables.elite).values(**values))


def note_elite(connection: Connection, study_id: int, number: int, evidence: Evidence) -> bool:
    """Add to an elite's evidence; whether it is still one."""
    same = (tables.elite.c.study_id == study_id) & (tables.elite.c.number == number)
    known = connection.scalar(select(tables.elite.c.evidence).where(same))
    if known is None:
        return False
    connection.execute(update(tables.elite).where(same).values(evidence={**known, **evidence}))
    return True


def elites(connection: Connection, study_id: int) -> list[Elite]:
    """The fastest first."""
    query = select(tables.elite).where(tables.elite.c.study_id == study_id)
    query = query.order_by(tables.elite.c.median_us, tables.elite.c.number)
    found = [read_row(Elite, row) for row in connection.execute(query).mappings()]
    for elite in found:
        positive(elite.median_us, elite.control_ratio, *elite.baseline_ratios.values())
        check_shapes(elite.evidence, "median_us", "ratio_to_default", "cubin_bytes")
    return found


def add_counts(connection: Connection, study_id: int, counts: Mapping[str, int]) -> None:
    for name, count in counts.items():
        same = (tables.count.c.study_id == study_id) & (tables.count.c.name == name)
        raised = update(tables.count).where(same).values(count=tables.count.c.count + count)
        if not connection.execute(raised).rowcount:
            connection.execute(insert(tables.count).values(study_id=study_id, name=name, count=count))


def counts(connection: Connection, study_id: int) -> dict[str, int]:
    query = select(tables.count.c.name, tables.count.c.count).where(tables.count.c.study_id == study_id)
    rows = connection.execute(query.order_by(tables.count.c.name)).all()
    return {typed(str, name): typed(int, count) for name, count in rows}
