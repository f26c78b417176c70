"""Our tables, beside Optuna's. Units are in the column names; documents are strict JSON in text columns."""

from __future__ import annotations

import json
import math
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Dialect,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.types import TypeDecorator

from evoengine.archive.documents import Damaged

SCHEMA_VERSION = 4
MIGRATIONS = {
    1: ("ALTER TABLE evo_candidate ADD COLUMN proposal TEXT",),
    2: (
        "ALTER TABLE evo_session ADD COLUMN finals VARCHAR(8)",
        "ALTER TABLE evo_study ADD COLUMN reference_us FLOAT(53)",
    ),
    3: (
        "ALTER TABLE evo_candidate ADD COLUMN revision INTEGER NOT NULL DEFAULT 0",
        "CREATE INDEX ix_evo_candidate_revision ON evo_candidate (revision)",
    ),
}
"""By schema version, the statements that lead to the next one."""


class Json(TypeDecorator[Any]):
    """A JSON document as text. NaN and infinities, which JSON lacks, are written as `{"float": "nan"}`."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(_strict(value), allow_nan=False, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        try:
            return None if value is None else json.loads(value, object_hook=_revive)
        except (ValueError, TypeError, RecursionError) as error:
            raise Damaged(f"{value!r:.80} is not JSON: {error}") from error


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return value


def _revive(document: dict[str, Any]) -> Any:
    if document.keys() == {"float"} and document["float"] in ("nan", "inf", "-inf"):
        return float(document["float"])
    return document


metadata = MetaData()

schema = Table("evo_schema", metadata, Column("version", Integer, primary_key=True, autoincrement=False))

study = Table(
    "evo_study",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(512), nullable=False, unique=True),
    Column("spec", Json, nullable=False),
    Column("status", Text, nullable=False),
    Column("opened_at", String(40), nullable=False),
    # What every ratio of the study is multiplied with, whichever card of its model measured it; null before the first.
    Column("reference_us", Float(53)),
)

session = Table(
    "evo_session",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("study_id", ForeignKey("evo_study.id"), nullable=False, index=True),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("pid_started", String(80), nullable=False),
    Column("shared", Boolean, nullable=False),
    Column("started_at", String(40), nullable=False),
    Column("expires_unix_seconds", Float(53), nullable=False),
    Column("ended_at", String(40)),
    Column("environment", Json, nullable=False),
    # Its final run: null, "begun" or "done". Of those that share a study one confirms for all.
    Column("finals", String(8)),
)

NEXT_REVISION = text("(SELECT coalesce(max(revision), 0) + 1 FROM evo_candidate)")
"""Above every other: what was written since a look at a study is what has a higher one than all that was seen. Whoever
writes holds the study (`work.lock`), so that of two revisions the higher is not committed first."""

candidate = Table(
    "evo_candidate",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("study_id", ForeignKey("evo_study.id"), nullable=False),
    Column("config_digest", String(32), nullable=False),
    Column("label", Text, nullable=False),
    # What the trial is born from; null in rows of schema 1.
    Column("proposal", Json),
    # Null between the claim and the birth of the Optuna trial.
    Column("trial_id", Integer, unique=True),
    # Who works on it or reached its verdict; null while it waits for anybody.
    Column("session_id", ForeignKey("evo_session.id"), index=True),
    # Of its last change, be it of its verdict or its build.
    Column("revision", Integer, nullable=False, index=True, default=NEXT_REVISION, onupdate=NEXT_REVISION),
    UniqueConstraint("study_id", "config_digest"),
)

build = Table(
    "evo_build",
    metadata,
    Column("candidate_id", ForeignKey("evo_candidate.id"), primary_key=True),
    Column("digest", String(80), nullable=False),
    Column("cubin_sha256", String(64), nullable=False, index=True),
    Column("registers", Integer, nullable=False),
    Column("spill_store_bytes", Integer, nullable=False),
    Column("spill_load_bytes", Integer, nullable=False),
    Column("stack_bytes", Integer, nullable=False),
    Column("static_smem_bytes", Integer, nullable=False),
    Column("smem_bytes", Integer, nullable=False),
    Column("barriers", Integer, nullable=False),
    Column("build_seconds", Float(53), nullable=False),
    Column("compiler", Text, nullable=False),
    Column("arch", String(32), nullable=False),
)


def _verdict_columns() -> list[Column[Any]]:
    return [
        Column("kind", String(16), nullable=False),
        Column("gate", String(16)),
        Column("reason", Text),
        Column("evidence", Json),
        Column("checks", Json),
        Column("estimated_us", Float(53)),
        Column("median_us", Float(53)),
        Column("noise", Float(53)),
        Column("windows_us", Json),
        Column("control_us", Json),
        Column("control_reference_us", Float(53)),
        Column("launches_per_window", Integer),
        Column("mode", String(16)),
        Column("stopped", String(16)),
        Column("clocks", Json),
        Column("flags", Json),
    ]


VERDICT_COLUMNS = tuple(column.name for column in _verdict_columns())
"""What a verdict of any kind fills; each kind leaves others empty."""

# A candidate has at most one final verdict (rejection or measurement) and at most one estimate before it.
verdict = Table(
    "evo_verdict",
    metadata,
    Column("candidate_id", ForeignKey("evo_candidate.id"), primary_key=True),
    Column("final", Boolean, primary_key=True),
    *_verdict_columns(),
    Column("twin_of", Integer),
    Column("session_id", ForeignKey("evo_session.id"), nullable=False),
    Column("committed_at", String(40), nullable=False),
)

baseline = Table(
    "evo_baseline",
    metadata,
    Column("study_id", ForeignKey("evo_study.id"), primary_key=True),
    Column("name", String(128), primary_key=True),
    *_verdict_columns(),
    Column("environment", Json, nullable=False),
    Column("measured_at", String(40), nullable=False),
)

elite = Table(
    "evo_elite",
    metadata,
    Column("study_id", ForeignKey("evo_study.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("median_us", Float(53), nullable=False),
    Column("noise", Float(53), nullable=False),
    Column("control_ratio", Float(53), nullable=False),
    Column("baseline_ratios", Json, nullable=False),
    Column("verdict", Text, nullable=False),
    Column("cubin", LargeBinary(2**24), nullable=False),
    Column("cubin_sha256", String(64), nullable=False),
    Column("source_digest", String(80), nullable=False),
    Column("environment", Json, nullable=False),
    Column("evidence", Json, nullable=False),
    Column("confirmed_at", String(40), nullable=False),
)

count = Table(
    "evo_count",
    metadata,
    Column("study_id", ForeignKey("evo_study.id"), primary_key=True),
    Column("name", String(128), primary_key=True),
    Column("count", Integer, nullable=False),
)

# Builds on their way to other machines, by the digest of what they are made from.
blob = Table(
    "evo_blob",
    metadata,
    Column("digest", String(80), primary_key=True),
    Column("sha256", String(64), nullable=False),
    Column("size_bytes", Integer, nullable=False),
    Column("content", LargeBinary(2**28), nullable=False),
    Column("stored_at", String(40), nullable=False, index=True),
)
