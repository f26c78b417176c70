"""From the verdicts on every problem of a set to the verdict on the set: weighted geometric means, evidence of each.

The objective is the weighted geometric mean of the speed-ups over the default config. Microseconds are combined in the
same way, so that one ranking follows from either.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from evoengine.problem import Member, weighted_mean
from evoengine.verdict import Artifact, Estimate, Measurement, Rejection, quantile

V = TypeVar("V")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Judged(Generic[V]):
    """What came out for one member, with its build."""

    member: Member
    artifact: Artifact
    verdict: V


def refused(member: Member, refusal: Rejection) -> Rejection:
    """The set's rejection, which is that of one member: a config must serve all of them."""
    label = member.problem.label
    evidence = {**refusal.evidence, "refused_at": label}
    return dataclasses.replace(refusal, reason=f"{label}: {refusal.reason}", evidence=evidence)


def estimated(judged: Sequence[Judged[Estimate]]) -> Estimate:
    """The mean of the members' estimates."""
    weights = [one.member.weight for one in judged]
    shapes = [
        {**_about(one), "estimated_us": one.verdict.estimated_us, "evidence": dict(one.verdict.evidence)}
        for one in judged
    ]
    mean = weighted_mean([one.verdict.estimated_us for one in judged], weights)
    return Estimate(mean, {"shapes": shapes}, _all([one.verdict.checks for one in judged]))


def measured(judged: Sequence[Judged[Measurement]]) -> Measurement:
    """The mean of the members' ratios to the default config, in windows made of theirs (`coupled`).

    `control_us` is the mean of the members' controls throughout, since it is the ratios that were paired. The
    members' own windows are in `evidence["shapes"]`.
    """
    weights = [one.member.weight for one in judged]
    verdicts = [one.verdict for one in judged]
    reference_us = weighted_mean([one.control_reference_us for one in verdicts], weights)
    ratios = coupled(
        [[w / c for w, c in zip(one.windows_us, one.control_us, strict=True)] for one in verdicts], weights
    )
    stops = {one.stopped for one in verdicts}
    evidence: dict[str, Any] = {"shapes": [{**_about(one), **_timed(one.verdict)} for one in judged]}
    widths = [one.evidence["half_width"] for one in verdicts if "half_width" in one.evidence]
    if len(widths) == len(weights):
        total = sum(weights)
        evidence["half_width"] = math.hypot(*(w / total * h for w, h in zip(weights, widths, strict=True)))
    return Measurement(
        windows_us=tuple(ratio * reference_us for ratio in ratios),
        control_us=(reference_us,) * len(ratios),
        control_reference_us=reference_us,
        launches_per_window=min(one.launches_per_window for one in verdicts),
        mode=verdicts[0].mode,
        stopped="beaten" if "beaten" in stops else "limit" if "limit" in stops else "converged",
        clocks={one.member.problem.label: dict(one.verdict.clocks) for one in judged},
        checks=_all([one.checks for one in verdicts]),
        flags=tuple(dict.fromkeys(flag for one in verdicts for flag in one.flags)),
        evidence=evidence,
    )


def coupled(series: Sequence[Sequence[float]], weights: Sequence[float]) -> tuple[float, ...]:
    """As many values as the longest series has (made odd), in ascending order: means of the series' equal quantiles.

    Windows of different members have no pairs: they are taken at different times, and are differently many. Joined by
    rank, their median is exactly the mean of the members' medians, and their relative interquartile range the mean of
    the members': what the noise of the mean is if all members' noise is one, and more than it is otherwise.
    """
    count = max(map(len, series))
    count -= 1 - count % 2
    ranks = [at / (count - 1) if count > 1 else 0.5 for at in range(count)]
    ordered = [sorted(one) for one in series]
    return tuple(weighted_mean([quantile(one, rank) for one in ordered], weights) for rank in ranks)


def _about(one: Judged[Any]) -> dict[str, Any]:
    return {
        "shape": one.member.problem.label,
        "weight": one.member.weight,
        "build": one.artifact.digest,
        "cubin_sha256": one.artifact.cubin_sha256,
        "registers": one.artifact.resources.registers,
        "spill_bytes": one.artifact.resources.spill_bytes,
    }


def _timed(verdict: Measurement) -> dict[str, Any]:
    return {
        "median_us": verdict.median_us,
        "noise": verdict.noise,
        "ratio_to_default": verdict.ratio,
        "control_reference_us": verdict.control_reference_us,
        "windows_us": verdict.windows_us,
        "control_us": verdict.control_us,
        "launches_per_window": verdict.launches_per_window,
        "stopped": verdict.stopped,
        "flags": verdict.flags,
        "evidence": dict(verdict.evidence),
    }


def _all(every: Sequence[Sequence[T]]) -> tuple[T, ...]:
    return tuple(one for some in every for one in some)
