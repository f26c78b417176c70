"""Stored verdicts under another tolerance, from what the database holds of every check: no GPU, nothing is run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from evoengine.archive.records import Elite, Record
from evoengine.oracle import Factors, failure
from evoengine.verdict import Check, Rejection


def rejudge(records: Iterable[Record], elites: Sequence[Elite], factors: Factors) -> dict[str, Any]:
    """How many configs were judged again, and whose verdict changes; `without_ratios` are too old to be judged again.

    An elite is judged by the full gate's checks. A config that was refused was not checked any further, so that one
    that would have passed is only `open_again`.
    """
    confirmed = {elite.number: tuple(Check(**check) for check in elite.evidence.get("checks", ())) for elite in elites}
    judged = without_ratios = 0
    refused: list[dict[str, Any]] = []
    open_again: list[dict[str, Any]] = []
    for record in records:
        if record.verdict is None or record.twin_of is not None:
            continue
        checks = confirmed.get(record.number) or record.verdict.checks
        failed = isinstance(record.verdict, Rejection)
        if not checks or failed != any(check.reason for check in checks):
            continue  # refused by another gate, or for what it did after its checks
        if any(check.max_ratio is None for check in checks):
            without_ratios += 1
            continue
        judged += 1
        found = next(((check, why) for check in checks if (why := failure(check, factors))), None)
        about = {"trial": record.number, "label": record.config.label}
        if found is not None and not failed:
            check, why = found
            refused.append(about | {"input_set": check.input_set, "shape": check.shape, "reason": why})
        elif found is None and failed:
            open_again.append(about | {"reason": next(check.reason for check in checks if check.reason)})
    return {
        "factors": {"whole": factors.whole, "row": factors.row},
        "judged": judged,
        "without_ratios": without_ratios,
        "refused": refused,
        "open_again": open_again,
    }
