"""From the final run to what is kept: elites with a verdict, baselines with their errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from evoengine.archive.records import Baseline, Elite
from evoengine.devices.cuda.results import Final, Finals, Setup, ratio_interval
from evoengine.verdict import Artifact, Gate, Measurement, Rejection

Comparison = Literal["FASTER", "SAME", "SLOWER"]

FAMILY_ERROR = 0.05
"""Chance at most that any finalist of a final run is called what it is not."""
MARGIN = 0.01
"""A gap under 1 % is not worth shipping (CompileIQ, docs/benchmarking.md)."""


def confidence(finalists: int) -> float:
    """Of each finalist's interval, so that all of them hold at once with 95 %: Bonferroni (Dunn 1961).

    Holm's procedure is a little sharper but yields no intervals to show; the finalists' shared control makes their
    ratios dependent, which Bonferroni allows.
    """
    return 1 - FAMILY_ERROR / max(finalists, 1)


def compare(low: float, high: float) -> Comparison:
    """Against the default config: faster or slower only where the whole interval of the ratio is so by over 1 %."""
    if high < 1 / (1 + MARGIN):
        return "FASTER"
    return "SLOWER" if low > 1 + MARGIN else "SAME"


def elites(finals: Finals, artifacts: Mapping[int, Artifact], source_digest: str) -> list[Elite]:
    """Every finalist that was right before and after the final run, with that run's numbers."""
    kept = []
    control = finals.control
    level = confidence(sum(isinstance(final, Final) for _, final in finals.finalists))
    for candidate, final in finals.finalists:
        if isinstance(final, Rejection):
            continue
        artifact = artifacts[candidate.number]
        low, _, high = finals.interval(final, level)
        kept.append(
            Elite(
                number=candidate.number,
                median_us=final.median_us,
                noise=final.noise,
                control_ratio=final.ratio,
                baseline_ratios={one.name: final.median_us / one.median_us for one in finals.baselines},
                verdict=compare(low, high),
                cubin=artifact.image,
                cubin_sha256=artifact.cubin_sha256,
                source_digest=source_digest,
                environment=finals.environment,
                evidence={
                    "control_ratio_low": final.ratio_low,
                    "control_ratio_high": final.ratio_high,
                    "verdict_low": low,
                    "verdict_high": high,
                    "verdict_confidence": level,
                    "windows_us": final.windows_us,
                    "cold_windows_us": final.cold_us,
                    "cold_copies": finals.cold_copies,
                    "default_windows_us": control.windows_us,
                    "default_noise": control.noise,
                    "default_cold_windows_us": control.cold_us,
                    "launches_per_window": final.launches_per_window,
                    "seed": finals.seed,
                    "clocks": finals.clocks,
                    "checks": [dataclasses.asdict(check) for check in final.checks],
                    **({"shapes": _on_shapes(finals, final, artifact)} if finals.shapes else {}),
                },
            )
        )
    return kept


def _on_shapes(finals: Finals, final: Final, artifact: Artifact) -> list[dict[str, Any]]:
    """What the final run says of a finalist at each shape of a set.

    The verdicts at the shapes are a family of their own, which holds at once with 95 %: as many times more intervals
    than finalists as there are shapes.
    """
    finalists = sum(isinstance(one, Final) for _, one in finals.finalists)
    level = confidence(finalists * len(finals.shapes))
    rows = []
    for at, (label, weight) in enumerate(finals.shapes):
        one, control, part = final.members[at], finals.control.members[at], artifact.parts[at]
        low, _, high = ratio_interval(one.windows_us, control.windows_us, finals.seed, level)
        rows.append(
            {
                "shape": label,
                "weight": weight,
                "build": part.digest,
                "cubin_sha256": part.cubin_sha256,
                "registers": part.resources.registers,
                "spill_bytes": part.resources.spill_bytes,
                "cubin_bytes": part.cubin.stat().st_size,
                "median_us": one.median_us,
                "cold_median_us": one.cold_median_us,
                "noise": one.noise,
                "ratio_to_default": one.ratio,
                "ratio_to_default_95": [one.ratio_low, one.ratio_high],
                "default_us": control.median_us,
                "default_noise": control.noise,
                "baseline_ratios": {b.name: one.median_us / b.members[at].median_us for b in finals.baselines},
                "verdict": compare(low, high),
                "verdict_interval": [low, high],
                "verdict_confidence": level,
                "windows_us": one.windows_us,
                "default_windows_us": control.windows_us,
                "launches_per_window": one.launches_per_window,
            }
        )
    return rows


def baselines_at_start(setup: Setup) -> list[Baseline]:
    """Baselines as timed before the search, and the reason for each that could not run."""
    ran = [
        Baseline(
            one.name,
            Measurement(
                windows_us=one.windows_us,
                control_us=one.control_us,
                control_reference_us=setup.control_us,
                launches_per_window=one.launches_per_window,
                mode="warm",
                stopped="limit",
            ),
            {"rel_fro": one.rel_fro, "max_abs": one.max_abs, "nonfinite": one.nonfinite},
        )
        for one in setup.baselines
    ]
    return ran + [Baseline(name, Rejection(Gate.RUNTIME, why)) for name, why in setup.unavailable.items()]


def baselines_at_end(finals: Finals, known: Mapping[str, Baseline]) -> list[Baseline]:
    """Baselines as timed in the final run, warm and cold; their errors were measured at the start."""
    return [
        Baseline(
            one.name,
            Measurement(
                windows_us=one.windows_us,
                control_us=finals.control.windows_us,
                control_reference_us=finals.control.median_us,
                launches_per_window=one.launches_per_window,
                mode="warm",
                stopped="limit",
            ),
            {
                **(known[one.name].environment if one.name in known else {}),
                "cold_median_us": one.cold_median_us,
                "cold_copies": finals.cold_copies,
            },
        )
        for one in finals.baselines
    ]
