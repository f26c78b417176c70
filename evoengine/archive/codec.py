"""Verdicts and builds as columns, and back, without loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from evoengine.archive.documents import Damaged, check_shapes, positive, typed
from evoengine.archive.records import Build, StudySpec
from evoengine.verdict import Artifact, Estimate, Gate, Measurement, Rejection, ResourceUsage, Verdict

T = TypeVar("T")


def verdict_columns(verdict: Verdict) -> dict[str, Any]:
    """The columns that `verdict` fills; an estimate's number goes nowhere but `estimated_us`."""
    checks = [dataclasses.asdict(check) for check in verdict.checks]
    match verdict:
        case Rejection():
            return {
                "kind": "rejection",
                "gate": verdict.gate.value,
                "reason": verdict.reason,
                "evidence": verdict.evidence,
                "checks": checks,
            }
        case Estimate():
            return {
                "kind": "estimate",
                "estimated_us": verdict.estimated_us,
                "evidence": verdict.evidence,
                "checks": checks,
            }
        case Measurement():
            return {
                "kind": "measurement",
                "median_us": verdict.median_us,
                "noise": verdict.noise,
                "windows_us": verdict.windows_us,
                "control_us": verdict.control_us,
                "control_reference_us": verdict.control_reference_us,
                "launches_per_window": verdict.launches_per_window,
                "mode": verdict.mode,
                "stopped": verdict.stopped,
                "clocks": verdict.clocks,
                "checks": checks,
                "flags": verdict.flags,
                "evidence": verdict.evidence,
            }


def read_verdict(row: Mapping[Any, Any]) -> Verdict:
    """The verdict that `verdict_columns` wrote.

    Raises:
        Damaged: it is none.
    """
    if row["kind"] == "rejection":
        if row["gate"] not in set(Gate):
            raise Damaged(f"{row['gate']!r:.80} is no gate")
        return read_row(Rejection, {**row, "gate": Gate(row["gate"])})
    if row["kind"] == "estimate":
        estimate = read_row(Estimate, row)
        positive(estimate.estimated_us)
        check_shapes(estimate.evidence, "estimated_us")
        return estimate
    measured = read_row(Measurement, {**row, "evidence": row["evidence"] or {}})  # the first studies had none
    positive(measured.control_reference_us, *measured.windows_us, *measured.control_us)
    check_shapes(measured.evidence, "median_us", "ratio_to_default", "control_reference_us")
    if not measured.windows_us or len(measured.windows_us) != len(measured.control_us):
        raise Damaged(f"{len(measured.windows_us)} windows beside {len(measured.control_us)} of the control")
    return measured


def read_row(kind: type[T], row: Mapping[Any, Any]) -> T:
    """A dataclass from the columns that have the names of its fields.

    Raises:
        Damaged: one is not of the field's type.
    """
    return typed(kind, {name: row[name] for name in (item.name for item in dataclasses.fields(kind))})  # type: ignore[arg-type]


def build_columns(artifact: Artifact) -> dict[str, Any]:
    return {
        "digest": artifact.digest,
        "cubin_sha256": artifact.cubin_sha256,
        **dataclasses.asdict(artifact.resources),
        "build_seconds": artifact.build_seconds,
        "compiler": artifact.compiler,
        "arch": artifact.arch,
    }


def read_build(row: Mapping[Any, Any]) -> Build:
    """The build that `build_columns` wrote.

    Raises:
        Damaged: it is none.
    """
    return read_row(Build, {**row, "resources": read_row(ResourceUsage, row)})


def read_spec(row: Mapping[Any, Any]) -> StudySpec:
    """The spec in a study's row.

    Raises:
        Damaged: it is none, or another study's.
    """
    spec = StudySpec.from_json(row["spec"])
    if spec.name != row["name"]:
        raise Damaged(f"study {row['name']!r:.80} says that it is {spec.name!r:.80}")
    return spec
