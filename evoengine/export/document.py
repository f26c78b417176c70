"""A study as one JSON document: what `evoengine show --json` says, and every trial in full."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from evoengine.archive.records import Elite, Record
from evoengine.verdict import Estimate, Measurement, Rejection, Verdict

FORMAT, VERSION = "evoengine study", 1


def render_document(summary: Mapping[str, Any], records: Iterable[Record], elites: Iterable[Elite]) -> str:
    """`summary` and with it `trials`, `final` (the final run's evidence by trial) and `environments`.

    A trial's `environment` is an index into the last. `verdict.kind` is `measurement`, `rejection` or `estimate`, null
    where there is none yet; times are microseconds. A number that is infinite or none at all is null.
    """
    environments: list[dict[str, Any]] = []

    def index(environment: Mapping[str, Any]) -> int:
        if environment not in environments:
            environments.append(dict(environment))
        return environments.index(dict(environment))

    trials = [{**_trial(record), "environment": index(record.environment)} for record in records]
    final = {
        str(elite.number): {"evidence": elite.evidence, "environment": index(elite.environment)} for elite in elites
    }
    head = {"format": FORMAT, "version": VERSION}
    document = {**head, **summary, "trials": trials, "final": final, "environments": environments}
    return json.dumps(_finite(document), indent=1, allow_nan=False) + "\n"


def _trial(record: Record) -> dict[str, Any]:
    return {
        "trial": record.number,
        "label": record.config.label,
        "config": record.config.values,
        "state": record.state,
        "operator": record.operator,
        "generation": record.generation,
        "parents": list(record.parents),
        "expected_gain": record.expected_gain,
        "twin_of": record.twin_of,
        "committed_at": record.committed_at,
        "build": None if record.build is None else dataclasses.asdict(record.build),
        "verdict": None if record.verdict is None else _verdict(record.verdict),
        "estimated_us": None if record.estimate is None else record.estimate.estimated_us,
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    fields = dataclasses.asdict(verdict)
    match verdict:
        case Rejection():
            return {"kind": "rejection", **fields}
        case Estimate():
            return {"kind": "estimate", **fields}
        case Measurement():
            return {"kind": "measurement", "median_us": verdict.median_us, "noise": verdict.noise, **fields}


def _finite(value: Any) -> Any:
    """JSON has no word for infinity, and other readers than Python's refuse the one that Python writes."""
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
