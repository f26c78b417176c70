"""Verdicts and builds as columns, and back, without loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from evoengine.archive.records import Build
from evoengine.verdict import Artifact, Check, Estimate, Gate, Measurement, Rejection, ResourceUsage, Verdict


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
    """The verdict that `verdict_columns` wrote."""
    checks = tuple(Check(**check) for check in row["checks"])
    if row["kind"] == "rejection":
        return Rejection(Gate(row["gate"]), row["reason"], row["evidence"], checks)
    if row["kind"] == "estimate":
        return Estimate(row["estimated_us"], row["evidence"], checks)
    return Measurement(
        windows_us=tuple(row["windows_us"]),
        control_us=tuple(row["control_us"]),
        control_reference_us=row["control_reference_us"],
        launches_per_window=row["launches_per_window"],
        mode=row["mode"],
        stopped=row["stopped"],
        clocks=row["clocks"],
        checks=checks,
        flags=tuple(row["flags"]),
        evidence=row["evidence"] or {},  # the first studies had none
    )


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
    resources = ResourceUsage(**{item.name: row[item.name] for item in dataclasses.fields(ResourceUsage)})
    return Build(row["digest"], row["cubin_sha256"], resources, row["build_seconds"], row["compiler"], row["arch"])
