"""What bounds a kernel, in one line, from the figures that Nsight Compute measured. Pure functions.

The thresholds are those of Nsight Compute's own rules: SOLBottleneck calls a kernel well utilised from 80 % of the peak
of compute or memory on, and suspects latency below 60 % of both; the warp state rule names a stall reason from 30 % of
a warp's time on where the schedulers issue in less than 80 % of their cycles. The reasons' meanings are those of its
Profiling Guide ("Warp Stall Reasons").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BUSY_PCT = 80.0
LATENCY_PCT = 60.0
STALL_SHARE = 0.3
CONFLICT_SHARE = 0.1
"""Bank conflicts from this share of shared-memory wavefronts on are named. A judgement: what they cost at most is the
wavefronts they add."""
NOT_WAITING = ("selected", "not_selected")
"""States of a warp that issues, or could: an eligible warp that another one was preferred to waits for nothing."""

STALLS = {
    "barrier": "other warps at a barrier",
    "branch_resolving": "a branch target",
    "dispatch_stall": "the dispatcher",
    "drain": "stores to leave at the end",
    "gmma": "warpgroup matrix instructions",
    "imc_miss": "a constant cache miss",
    "lg_throttle": "a full queue of global memory instructions",
    "long_scoreboard": "data from L2 or device memory",
    "math_pipe_throttle": "a busy math pipe",
    "membar": "a memory fence",
    "mio_throttle": "a full queue of shared-memory instructions",
    "misc": "something that has no name",
    "no_instruction": "an instruction cache miss or a jump",
    "not_selected": "its turn",
    "selected": "nothing: it issues",
    "short_scoreboard": "data from shared memory or special functions",
    "sleeping": "the end of a nanosleep",
    "tex_throttle": "a full queue of texture instructions",
    "wait": "a fixed latency of its own last instruction",
}
"""What a warp of each state waits for. `gmma` exists on sm_90 alone."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Percentages of a peak, 0 to 100; None where this chip has no such counter.

    `sm_pct` and `memory_pct` are the speed-of-light figures of compute and memory, `issue_pct` the cycles in which a
    scheduler issued, `occupancy_pct` the warps resident on an SM over those that it can hold, `waves` the grid over the
    CTAs that the card holds at once. `bank_conflicts` is the share of shared-memory wavefronts that conflicts added.
    `stalls` are warps in each state for every issued instruction.
    """

    sm_pct: float | None
    memory_pct: float | None
    tensor_pct: float | None
    issue_pct: float | None
    l1_pct: float | None
    l2_pct: float | None
    dram_pct: float | None
    occupancy_pct: float | None
    waves: float | None
    bank_conflicts: float | None
    stalls: Mapping[str, float]

    def stall_shares(self) -> list[tuple[str, float]]:
        """The share of a warp's time in each state, the largest first."""
        total = sum(self.stalls.values())
        shares = [(name, value / total) for name, value in self.stalls.items()] if total else []
        return sorted(shares, key=lambda one: -one[1])


def columns(profile: Mapping[str, Any]) -> dict[str, str]:
    """A stored profile's figures as tables show them, in percent, by the heads of their columns."""
    figures = Figures(**profile["figures"])
    conflicts = None if figures.bank_conflicts is None else 100.0 * figures.bank_conflicts
    shown = {
        "SM": figures.sm_pct,
        "tensor": figures.tensor_pct,
        "issue": figures.issue_pct,
        "L1": figures.l1_pct,
        "L2": figures.l2_pct,
        "DRAM": figures.dram_pct,
        "warps": figures.occupancy_pct,
        "conflicts": conflicts,
    }
    return {head: "-" if value is None else f"{value:.0f}" for head, value in shown.items()}


def waits(profile: Mapping[str, Any], most: int = 3) -> str:
    """What a warp of a stored profile waits for, the longest first."""
    shares = [one for one in Figures(**profile["figures"]).stall_shares() if one[0] not in NOT_WAITING]
    return ", ".join(f"{name} {share:.0%}" for name, share in shares[:most])


def diagnose(figures: Figures) -> str:
    """One line: the busiest part of the card, or what warps wait for where no part is busy."""
    compute, memory = figures.sm_pct or 0.0, figures.memory_pct or 0.0
    parts = [_latency(figures) if max(compute, memory) < LATENCY_PCT else _throughput(figures, compute, memory)]
    if figures.waves is not None and figures.waves < 1.0:
        parts.append(f"the grid fills {figures.waves:.0%} of the card")
    if figures.bank_conflicts is not None and figures.bank_conflicts >= CONFLICT_SHARE:
        parts.append(f"{figures.bank_conflicts:.0%} of shared-memory wavefronts are bank conflicts")
    return "; ".join(parts)


def _throughput(figures: Figures, compute: float, memory: float) -> str:
    how = "bound by" if max(compute, memory) >= BUSY_PCT else "mostly bound by"
    if compute >= memory:
        units = {"the tensor pipe": figures.tensor_pct, "issue slots": figures.issue_pct}
        what, total = "compute", compute
    else:
        units = {"L1 and shared memory": figures.l1_pct, "L2": figures.l2_pct, "device memory": figures.dram_pct}
        what, total = "memory", memory
    known = {name: value for name, value in units.items() if value is not None}
    unit = max(known, key=lambda name: known[name], default="")
    return f"{how} {what} ({total:.0f}% of its peak{unit and f', {unit} at {known[unit]:.0f}%'})"


def _latency(figures: Figures) -> str:
    waiting = [(name, share) for name, share in figures.stall_shares() if name not in NOT_WAITING]
    busiest = max(figures.sm_pct or 0.0, figures.memory_pct or 0.0)
    if not waiting:
        return f"bound by latency (nothing above {busiest:.0f}% of its peak)"
    name, share = waiting[0]
    idle = figures.issue_pct is None or figures.issue_pct < BUSY_PCT
    blamed = f"{share:.0%} of a warp's time is waiting for {STALLS.get(name, name)}"
    if share < STALL_SHARE or not idle:
        blamed = f"no wait stands out, the largest is for {STALLS.get(name, name)} with {share:.0%} of a warp's time"
    return f"bound by latency: {blamed}"
