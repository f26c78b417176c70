"""A comparison as JSON: one row a shape, every competitor of one interleaved run beside ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evoengine.devices.cuda.results import Final, Finals, ratio_interval
from evoengine.devices.estimate import L2_BYTES_PER_CLOCK
from evoengine.hardware import DeviceLimits
from evoengine.oracle import BASELINE_FACTOR
from evoengine.problem import Problem, ProblemSet, problem_fields, weighted_mean
from evoengine.verdict import Rejection

METHOD = (
    "device time per launch, warm L2, CUDA-graph windows of every competitor interleaved in random order in one fresh "
    "process; ours proven right before and after; errors of all against float64 on the timed input, after timing; "
    "cold: in rounds of their own, every launch on a copy of the tensors that L2 no longer holds"
)
"""What the times of a row mean."""


def roofline(problem: Problem, device: DeviceLimits) -> tuple[float, str]:
    """(microseconds that no kernel can beat on `device` at its nominal rates, the rate that says so).

    The larger of operations over tensor rate and bytes over bandwidth. A problem that fits into L2 is read from there
    in warm windows, at 64 bytes a clock and SM (`estimate.L2_BYTES_PER_CLOCK`); a larger one from DRAM. Of a set the
    mean of its members' bounds.
    """
    if isinstance(problem, ProblemSet):
        each = [roofline(member.problem, device) for member in problem.members]
        least_us = weighted_mean([us for us, _ in each], [member.weight for member in problem.members])
        return least_us, " or ".join(dict.fromkeys(bound for _, bound in each))
    bounds = {"tensor rate": problem.flops / (device.tensor_tflops * 1e6)}
    if problem.bytes_moved <= device.l2_bytes:
        bounds["L2 bandwidth"] = problem.bytes_moved / (L2_BYTES_PER_CLOCK * device.sms * device.clock_mhz)
    else:
        bounds["DRAM bandwidth"] = problem.bytes_moved / (device.dram_gbps * 1e3)
    bound = max(bounds, key=lambda name: bounds[name])
    return bounds[bound], bound


def row(
    problem: Problem, device: DeviceLimits, limits: DeviceLimits, ours: Mapping[str, Any], finals: Finals
) -> dict[str, Any]:
    """One shape. `ours` says what was compared; its numbers are those of the only finalist, or of the default config.

    Times are microseconds a launch with warm L2 (`cold_median_us`: cold, None where not taken), noise is IQR over
    median, `error` the relative Frobenius error against float64, `ratio_to_ours` a competitor's time over ours (over
    the default config's where ours was refused) with its 95 % interval over the rounds. A competitor is `right` within
    the factor that binds candidates (`oracle`): its error is at most twice that of the obvious half-precision
    implementation on the same input.
    """
    verdicts = [verdict for _, verdict in finals.finalists]
    verdict = verdicts[0] if verdicts else finals.control
    assert finals.floor is not None, "every final run times an empty kernel"
    least_us, bound = roofline(problem, device)
    yardstick = finals.control if isinstance(verdict, Rejection) else verdict
    measured = [_figures(one, problem, least_us, finals, yardstick) for one in finals.baselines]
    return {
        **_head(problem, limits, ours),
        "roofline_us": least_us,
        "roofline_bound": bound,
        "launch_floor_us": finals.floor.median_us,
        "launch_floor_noise": finals.floor.noise,
        "ours": {**ours, **_ours(verdict, problem, least_us, finals), "is_default": not verdicts},
        "default": _figures(finals.control, problem, least_us, finals, yardstick),
        "competitors": [
            *sorted(measured, key=lambda figures: float(figures["median_us"])),
            *({"name": name, "unavailable": why} for name, why in finals.unavailable.items()),
        ],
        "seed": finals.seed,
        "clocks": dict(finals.clocks),
        "cold_copies": finals.cold_copies,
    }


def refused(problem: Problem, limits: DeviceLimits, ours: Mapping[str, Any], refusal: Rejection) -> dict[str, Any]:
    """The row of a config that a gate refused before anything could run: no times, and the reason."""
    return {**_head(problem, limits, ours), "ours": {**ours, **_refusal(refusal)}, "competitors": []}


def best_competitor(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The fastest that is right."""
    return next((one for one in row["competitors"] if one.get("right")), None)


def _head(problem: Problem, limits: DeviceLimits, ours: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "label": problem.label,
        "shape": problem_fields(problem),
        "limits": limits.name,
        "method": METHOD,
        "flops": problem.flops,
        "bytes_moved": problem.bytes_moved,
    }


def _ours(verdict: Final | Rejection, problem: Problem, least_us: float, finals: Finals) -> dict[str, Any]:
    if isinstance(verdict, Rejection):
        return _refusal(verdict)
    figures = _figures(verdict, problem, least_us, finals, verdict)
    return figures | {
        "name": "ours",
        "ratio_to_default": verdict.ratio,
        "ratio_to_default_95": [verdict.ratio_low, verdict.ratio_high],
        "worst_check_error": max(check.rel_fro for check in verdict.checks),
        "repeats": verdict.checks[0].repeats,
    }


def _refusal(refusal: Rejection) -> dict[str, Any]:
    return {"rejected": refusal.reason, "gate": str(refusal.gate)}


def _figures(one: Final, problem: Problem, least_us: float, finals: Finals, yardstick: Final) -> dict[str, Any]:
    assert finals.floor is not None and one.deviation is not None, "every subject of a comparison is checked"
    low, ratio, high = ratio_interval(one.windows_us, yardstick.windows_us, finals.seed)
    return {
        "name": one.name,
        "median_us": one.median_us,
        "cold_median_us": one.cold_median_us,
        "noise": one.noise,
        "ratio_to_ours": ratio,
        "ratio_to_ours_95": [low, high],
        "tflops": problem.flops / one.median_us / 1e6,
        "roofline_share": least_us / one.median_us,
        "launch_floor_share": finals.floor.median_us / one.median_us,
        "error": one.deviation.rel_fro,
        "max_abs_error": one.deviation.max_abs,
        "nonfinite": one.deviation.nonfinite,
        "right": one.deviation.rel_fro <= BASELINE_FACTOR * finals.control.checks[0].baseline_rel_fro,
        "windows": len(one.windows_us),
        "launches_per_window": one.launches_per_window,
        "fastest_window_us": min(one.windows_us),
        "slowest_window_us": max(one.windows_us),
        "about": one.about,
    }
