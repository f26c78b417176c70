"""When a number is not to be believed at once: the card is unfit for timing, or the time is too good to be true."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from evoengine.devices.estimate import L2_BYTES_PER_CLOCK
from evoengine.errors import UserError
from evoengine.hardware import DeviceLimits
from evoengine.problem import Problem
from evoengine.verdict import Measurement, Rejection

NOISY = 0.03
"""Relative standard deviation of the control's windows above which the card is not fit for timing: 24 pairs of such
windows tell a ratio to +-1.8 %, and what is worth shipping begins at 1 %."""
BUSY_PERCENT = 5
"""Load before we begin, in percent of the time, above which somebody else's kernels run beside ours."""
SUSPICIOUS = 0.9
"""Faster than this times the best so far is more often a fault than a find (Helion times such again)."""
PEAK_MARGIN = 1.1
"""Boost clocks exceed the datasheet's by a few per cent; beyond 10 % over its rates a time is not credible."""


REMEDY = (
    "small gaps cannot be told apart: close what else uses the card, lock its clocks (nvidia-smi -lgc), or go on all "
    "the same with --force"
)


def check_fit(environment: Mapping[str, Any], noise: float, *, force: bool) -> tuple[str, ...]:
    """Warnings about the card as it was found and as its control was timed.

    Other processes that hold the card without using it are only warned of: a notebook's context does no harm until it
    computes. `noise` is the control's, 0 where it has not been timed.

    Raises:
        UserError: without `force`, the card is busy or noisy.
    """
    reasons = []
    load, others = environment.get("other_load_percent") or 0, environment.get("other_processes") or 0
    if load > BUSY_PERCENT:
        reasons.append(f"the card was {load} % busy before evoengine began ({others or 'unseen'} other processes)")
    if noise > NOISY:
        reasons.append(f"the default config's own times vary by {noise:.1%} on this card (more than {NOISY:.0%})")
    if reasons and not force:
        raise UserError(f"{'; '.join(reasons)}: {REMEDY}")
    if others and load <= BUSY_PERCENT:
        reasons.append(f"{others} other processes hold this card, idle so far: times are noisy while they compute")
    return tuple(reasons)


def floor_us(problem: Problem, limits: DeviceLimits) -> float:
    """Microseconds that no kernel can beat in a warm window.

    The largest of operations over tensor rate, bytes over L2's bandwidth, and bytes that cannot be in L2 over DRAM's.
    """
    return max(
        problem.flops / (limits.tensor_tflops * 1e6),
        problem.bytes_moved / (L2_BYTES_PER_CLOCK * limits.sms * limits.clock_mhz),
        (problem.bytes_moved - limits.l2_bytes) / (limits.dram_gbps * 1e3),
    )


def doubt(median_us: float, best_us: float, problem: Problem, limits: DeviceLimits) -> str:
    """Why a time needs a second proof and a second timing in a fresh process; empty where it does not."""
    floor = floor_us(problem, limits)
    if median_us * PEAK_MARGIN < floor:
        return f"{median_us:.3f} us is above the roofline ({floor:.3f} us at the card's nominal rates)"
    if median_us < SUSPICIOUS * best_us:
        return f"{median_us:.3f} us is under {SUSPICIOUS} times the best so far, {best_us:.3f} us"
    return ""


def with_both(
    verdict: Measurement | Rejection, first: Measurement, why: str, problem: Problem, limits: DeviceLimits
) -> Measurement | Rejection:
    """The fresh process's verdict on a doubted time, with both numbers as its evidence."""
    evidence = {**verdict.evidence, "doubted": why, "doubted_median_us": first.median_us}
    if isinstance(verdict, Rejection):
        return replace(verdict, evidence=evidence)
    evidence["confirmed_median_us"] = verdict.median_us
    above = ("above_roofline",) if verdict.median_us * PEAK_MARGIN < floor_us(problem, limits) else ()
    return replace(verdict, evidence=evidence, flags=(*verdict.flags, "rechecked", *above))
