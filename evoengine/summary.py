"""A study as one JSON document: what `--json` prints and what tables and reports are drawn from."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from evoengine.archive.records import Elite, Record, fastest, shortlist
from evoengine.archive.study import Study
from evoengine.errors import UserError
from evoengine.hardware import DeviceLimits, occupancy
from evoengine.shared_cards import shared_cards
from evoengine.template import Launch
from evoengine.verdict import Check, Estimate, Evidence, Gate, Measurement, Rejection, is_paid, on_shapes

SDPA = "sdpa"
"""The baseline that users compare with: PyTorch's own choice of backend."""
OF_A_SHAPE = (
    *("shape", "weight", "estimated_us", "median_us", "cold_median_us", "noise", "ratio_to_default"),
    *("ratio_to_default_95", "verdict", "verdict_interval", "verdict_confidence"),
)
"""Of what is known of a config at one shape of several, what a reader is shown."""


def summarise(
    study: Study, records: Sequence[Record], launches: Mapping[int, Launch], limits: DeviceLimits, top: int
) -> dict[str, Any]:
    """Everything a reader wants to know of a study and its `records`. `launches` are those of its trials, by number.

    `elites` are confirmed in a final run, in which `default` is the default config; `measured` are the search's own
    medians, which a final run has to confirm; `shortlist` is estimated and not measured. Times are microseconds a
    launch, noise is IQR over median, `error` the largest relative Frobenius error against float64 over all checks,
    `ratio_to_sdpa` SDPA's time over the config's. `mode` says whether L2 was warm or cold; `cold_median_us` is None
    where no cold time was taken. A `verdict` rests on `verdict_interval` of the ratio; those of all elites hold at once
    with 95 %. Of a study of several shapes every time and ratio is the weighted geometric mean over `shapes`, which say
    what holds at each; `worst_ratio_to_default` is the largest there, at `worst_shape`.

    Raises:
        UserError: an elite is no trial of the study.
    """
    by_number = {record.number: record for record in records}
    elites = study.elites()
    if strange := [elite.number for elite in elites if elite.number not in by_number]:
        raise UserError(f"study {study.name} is damaged: it has no trial {strange[0]}, which it says is an elite")
    rows = {record.number: _figures(record, launches.get(record.number), limits) for record in records}
    return {
        "study": study.name,
        "template": study.spec.template,
        "template_digest": study.spec.template_digest,
        "space_digest": study.spec.space_digest,
        "shape": study.spec.problem_label,
        "problem": dict(study.spec.problem),
        **_members(study),
        "device": study.spec.device,
        "limits": study.spec.limits.get("name"),
        "arch": study.spec.arch,
        "toolchain": study.spec.toolchain,
        "sampler": study.spec.sampler,
        "seed": study.spec.seed,
        "command": study.spec.command,
        "created_at": study.spec.created_at,
        "sources": [source.about() for source in study.spec.sources],
        "budget": study.spec.budget,
        "spent": sum(is_paid(record.verdict, record.twin_of) for record in records),
        "verdicts": dict(Counter(map(outcome, records))),
        "rejections": _rejections(records),
        "free": study.counts(),
        "elites": [rows[elite.number] | _elite(elite, by_number[elite.number]) for elite in elites[:top]],
        "winner": winner(elites),
        "default": _default(elites[0]) if elites else None,
        "measured": [rows[record.number] | _measured(record) for record in fastest(records, top)],
        "shortlist": [rows[record.number] | _estimated(record) for record in shortlist(records, top)],
        "baselines": [_baseline(baseline) for baseline in study.baselines()],
        "cards": shared_cards(study.name, records),
        "environment": dict(elites[0].environment if elites else records[-1].environment if records else {}),
    }


def winner(elites: list[Elite]) -> str:
    """The answer in one word: a config's trial, or that the default stands."""
    if not elites:
        return "none confirmed"
    faster = [elite for elite in elites if elite.verdict == "FASTER"]
    return f"trial {faster[0].number}" if faster else "no significant winner: keep the default"


def trials(
    records: Sequence[Record], launches: Mapping[int, Launch], limits: DeviceLimits, *, measured: bool
) -> list[dict[str, Any]]:
    """A row a trial, in order of number: what plots are drawn from.

    `outcome` is the word that `verdicts` counts, `reason` why a rejected one was. `time_us` is the search's own
    median or, where nothing is `measured`, the estimate: one scale for all, `worth`'s. `evaluation` is the trial's
    place among those that `worth` counts, from 1; None for twins, static rejections and what is in flight.
    """
    rows, evaluation = [], 0
    for record in records:
        seen = record.seen(measures=measured)
        counts = seen.state == "done" and is_paid(record.verdict, record.twin_of)
        evaluation += counts
        rows.append(
            {
                **_figures(record, launches.get(record.number), limits),
                "outcome": outcome(record),
                "evaluation": evaluation if counts else None,
                "time_us": seen.value,
                "reason": record.verdict.reason if isinstance(record.verdict, Rejection) else None,
            }
        )
    return rows


def outcome(record: Record) -> str:
    """What became of a trial: the gate that refused it, or `measured`, `estimated`, `twin`, `in flight`."""
    if record.twin_of is not None:
        return "twin"
    if isinstance(record.verdict, Rejection):
        return str(record.verdict.gate)
    if isinstance(record.verdict, Measurement):
        return "measured"
    return "estimated" if isinstance(record.verdict, Estimate) else "in flight"


def _rejections(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Why candidates were refused, the commonest first: reasons that differ in their numbers alone are one."""
    alike: dict[tuple[Gate, str], list[tuple[int, str, str]]] = {}
    for record in records:
        if isinstance(record.verdict, Rejection):
            kind = record.verdict.gate, re.sub(r"\d+", "", record.verdict.reason)
            told = record.number, record.verdict.reason, _memcheck(record.verdict)
            alike.setdefault(kind, []).append(told)
    rows = []
    for (gate, _), found in alike.items():
        number, reason, finding = next((told for told in found if told[2]), found[0])
        row = {"gate": str(gate), "count": len(found), "example": reason, "trial": number}
        rows.append(row | ({"memcheck": finding} if finding else {}))
    return sorted(rows, key=lambda row: -int(row["count"]))


def _memcheck(verdict: Rejection) -> str:
    """What memcheck said of a fault, where it was asked and had something to say."""
    findings = verdict.evidence.get("memcheck", {}).get("findings")
    return str(findings[0]["line"]) if findings else ""


def _figures(record: Record, launch: Launch | None, limits: DeviceLimits) -> dict[str, Any]:
    row: dict[str, Any] = {"trial": record.number, "label": record.config.label, "config": record.config.values}
    row |= {"operator": record.operator, "generation": record.generation, "parents": list(record.parents)}
    if record.build is not None:
        resources = record.build.resources
        row |= {"registers": resources.registers, "spill_bytes": resources.spill_bytes}
        row |= {"smem_bytes": resources.smem_bytes + resources.static_smem_bytes}
        row |= {"cubin_sha256": record.build.cubin_sha256}
        if launch is not None:
            fit = occupancy(limits, launch.block, resources.registers, row["smem_bytes"], resources.barriers)
            row |= {"ctas_per_sm": fit.ctas_per_sm, "bound_by": fit.bound_by}
    return row


def _error(checks: tuple[Check, ...]) -> float | None:
    return max((check.rel_fro for check in checks), default=None)


def _measured(record: Record) -> dict[str, Any]:
    assert isinstance(record.verdict, Measurement), "fastest() holds measurements"
    verdict = record.verdict
    return {
        "median_us": verdict.median_us,
        "mode": verdict.mode,
        "noise": verdict.noise,
        "ratio_to_default": verdict.ratio,
        "stopped": verdict.stopped,
        "half_width": verdict.evidence.get("half_width"),
        "flags": list(verdict.flags),
        "error": _error(verdict.checks),
        **_on_shapes(verdict.evidence),
    }


def _estimated(record: Record) -> dict[str, Any]:
    assert isinstance(record.verdict, Estimate), "shortlist() holds estimates"
    verdict = record.verdict
    return {
        "estimated_us": verdict.estimated_us,
        "error": _error(verdict.checks),
        **_on_shapes(verdict.evidence),
    }


def _members(study: Study) -> dict[str, Any]:
    """The shapes that a study of several is of."""
    members = study.spec.members
    rows = [{"shape": one.label, "weight": one.weight, "problem": dict(one.problem)} for one in members]
    return {"shapes": rows} if rows else {}


def _on_shapes(evidence: Evidence) -> dict[str, Any]:
    """What a verdict on several shapes says of each, and of the worst."""
    rows = on_shapes(evidence)
    if not rows:
        return {}
    shown = [{name: row[name] for name in OF_A_SHAPE if name in row} for row in rows]
    for row, known in zip(shown, rows, strict=True):
        if ratio := known.get("baseline_ratios", {}).get(SDPA):
            row["ratio_to_sdpa"] = 1.0 / ratio
    found: dict[str, Any] = {"shapes": shown}
    timed = [row for row in shown if row.get("ratio_to_default")]
    if timed:
        worst = max(timed, key=lambda row: float(row["ratio_to_default"]))
        found |= {"worst_ratio_to_default": worst["ratio_to_default"], "worst_shape": worst["shape"]}
    return found


def _elite(elite: Elite, record: Record) -> dict[str, Any]:
    checks = record.verdict.checks if isinstance(record.verdict, Measurement) else ()
    ratio = elite.baseline_ratios.get(SDPA)
    return {
        "median_us": elite.median_us,
        "mode": "warm",
        "cold_median_us": _median(elite.evidence.get("cold_windows_us")),
        "noise": elite.noise,
        "ratio_to_default": elite.control_ratio,
        "ratio_to_default_95": [elite.evidence.get("control_ratio_low"), elite.evidence.get("control_ratio_high")],
        "ratio_to_sdpa": None if ratio is None else 1.0 / ratio,
        "verdict": elite.verdict,
        "verdict_interval": [elite.evidence.get("verdict_low"), elite.evidence.get("verdict_high")],
        "verdict_confidence": elite.evidence.get("verdict_confidence"),
        "error": _error(checks),
        "source_digest": elite.source_digest,
        "sanitizer": elite.evidence.get("sanitizer"),
        "profile": elite.evidence.get("profile"),
        "confirmed_at": elite.confirmed_at,
        **_on_shapes(elite.evidence),
    }


def _default(elite: Elite) -> dict[str, Any]:
    """The default config in the final run: the same as itself. The first studies did not keep its times."""
    evidence = elite.evidence
    return {
        "median_us": _median(evidence.get("default_windows_us")),
        "mode": "warm",
        "cold_median_us": _median(evidence.get("default_cold_windows_us")),
        "noise": evidence.get("default_noise"),
        "ratio_to_default": 1.0,
        "verdict": "SAME",
        **_default_on_shapes(evidence),
    }


def _default_on_shapes(evidence: Evidence) -> dict[str, Any]:
    rows = [
        {
            "shape": row["shape"],
            "weight": row["weight"],
            "median_us": row.get("default_us"),
            "noise": row.get("default_noise"),
            "ratio_to_default": 1.0,
            "verdict": "SAME",
        }
        for row in on_shapes(evidence)
    ]
    return {"shapes": rows, "worst_ratio_to_default": 1.0, "worst_shape": rows[0]["shape"]} if rows else {}


def _median(windows_us: Sequence[float] | None) -> float | None:
    return statistics.median(windows_us) if windows_us else None


def _baseline(baseline: Any) -> dict[str, Any]:
    if isinstance(baseline.verdict, Rejection):
        return {"name": baseline.name, "unavailable": baseline.verdict.reason}
    return {
        "name": baseline.name,
        "median_us": baseline.verdict.median_us,
        "mode": baseline.verdict.mode,
        "cold_median_us": baseline.environment.get("cold_median_us"),
        "noise": baseline.verdict.noise,
        "error": baseline.environment.get("rel_fro"),
    }
