"""Planted bugs in who waits for whom: barriers, wait counts, hand-over between roles, merges, arrivals."""

from __future__ import annotations

from benchmarks.trust.planted.mutant import (
    CROWDED,
    GRID,
    MBARRIERS,
    NAMED,
    OVERLAPPED,
    PLAIN,
    WAITING,
    Mutant,
    edit,
)
from evoengine.problem import AttentionProblem
from evoengine.space import Values
from evoengine.verdict import Gate

WAIT = "ptx::cp_async_wait<2 * cfg::kStages - 2>();\n"
REFILL_V = "      if constexpr (!cfg::kLateLoads) refill_v(tile, slot);\n"
K_LANDED = "      " + WAIT + "      __syncthreads();\n" + REFILL_V
V_LANDED = "    " + WAIT + "    __syncthreads();\n    if constexpr (!cfg::kLateLoads) loader.load_k("
FIRST_K = (
    "      ptx::cp_async_wait<cfg::kOverlap ? cfg::kStages - 1 : 2 * cfg::kStages - 1>();\n      __syncthreads();\n"
)
SYNC = "__syncthreads();\n"
READ_V = "  consumer.accumulate<0>(at.v + slot * kSlotBytes);\n"
LEAVE_V = "  pipe.leave_v(tile, slot);\n"
GIVEN_BACK_FIRST = edit("kernel.cu", READ_V + LEAVE_V, LEAVE_V + READ_V)
DRIFTING = PLAIN | dict(WARPS_M=8, BLOCK_N=128, STAGES=1)
"""Two warps on each scheduler and long tiles: the one that is served first is done long before the other."""
AHEAD = DRIFTING | dict(STAGES=2)
"""And K of the next tile is there already: nothing else holds up the warp that is ahead."""
SIXTEEN = AHEAD | dict(WARPS_KV=2)
"""Four warps on each scheduler."""


def one_key_more(values: Values, heads: int, head_dim: int = 64) -> AttentionProblem:
    """Three whole tiles and a key: what is copied for the fourth is zeros but for a row. Zeros are not fetched from
    anywhere, and so land at once; what comes from L2 takes some hundred cycles, in which slower warps read on."""
    return AttentionProblem(batch=4, heads=heads, head_dim=head_dim, seq_k=3 * values["BLOCK_N"] + 1)


def refilled_early(name: str, values: Values, problem: AttentionProblem, hidden: str = "") -> Mutant:
    """The refill of the previous tile's V goes ahead of the barrier behind which all warps have read it.

    A race by the PTX memory model: a warp's cp.async writes and another warp's ldmatrix reads are of the same bytes,
    and no barrier orders one before the other (the last one both passed comes before the reads). What it costs on a
    card is a matter of how far apart the warps of a CTA drift while they read.
    """
    return Mutant(
        name,
        "copies to a slot that slower warps still read",
        edit("pipe.cuh", K_LANDED, f"      {WAIT}{REFILL_V}      {SYNC}"),
        reason="differ bit for bit",
        values=values,
        problem=problem,
        hidden=hidden,
    )


SYNCHRONISATION = (
    Mutant(
        "no_barrier_after_the_wait_for_k",
        "each warp knows of its own copies alone",
        edit("pipe.cuh", K_LANDED, K_LANDED.replace(f"      {SYNC}", "")),
        reason="differ bit for bit",
        values=WAITING,
        problem=CROWDED,
    ),
    Mutant(
        "no_barrier_after_the_wait_for_v",
        "the same for V, and K is overwritten while others still read it",
        edit("pipe.cuh", V_LANDED, V_LANDED.replace(f"    {SYNC}", "")),
        reason="differ bit for bit",
        values=WAITING,
        problem=CROWDED,
    ),
    Mutant(
        "no_barrier_after_the_first_k",
        "the same for the first tile",
        edit("pipe.cuh", FIRST_K, FIRST_K.replace(f"      {SYNC}", "")),
        reason="differ bit for bit",
        values=WAITING,
        problem=CROWDED,
    ),
    Mutant(
        "barrier_before_the_wait_for_k",
        "wait and barrier in the wrong order",
        edit("pipe.cuh", K_LANDED, f"      {SYNC}      {WAIT}{REFILL_V}"),
        reason="differ bit for bit",
        values=WAITING,
        problem=CROWDED,
    ),
    refilled_early(
        "slot_refilled_before_the_barrier",
        DRIFTING,
        CROWDED,
        hidden="a copy from L2 lands some hundred cycles after its issue: 300 launches on an H200 gave the same bits",
    ),
    refilled_early("slot_zeroed_before_the_barrier", AHEAD, one_key_more(AHEAD, heads=32)),
    refilled_early("slot_zeroed_before_the_barrier_of_16_warps", SIXTEEN, one_key_more(SIXTEEN, heads=32)),
    refilled_early("slot_zeroed_before_the_barrier_of_wide_heads", DRIFTING, one_key_more(DRIFTING, 32, head_dim=128)),
    Mutant(
        "wait_for_k_off_by_one",
        "cp.async.wait_group leaves one group more under way",
        edit("pipe.cuh", K_LANDED, K_LANDED.replace("kStages - 2", "kStages - 1")),
        reason="differ bit for bit",
        values=WAITING,
        problem=CROWDED,
    ),
    Mutant(
        "wait_for_v_off_by_one",
        "the same for V",
        edit("pipe.cuh", V_LANDED, V_LANDED.replace("kStages - 2", "kStages - 1")),
        reason="differ bit for bit",
        values=WAITING,
        problem=CROWDED,
    ),
    Mutant(
        "wait_for_q_off_by_one",
        "Q's fragments are read before Q is there",
        edit("pipe.cuh", "cfg::kStages : 2 * cfg::kStages>();", "cfg::kStages : 2 * cfg::kStages + 1>();"),
        reason="differ bit for bit",
        values=WAITING,
        problem=CROWDED,
    ),
    Mutant(
        "wait_for_a_pair_off_by_one",
        "OVERLAP does not wait for the youngest group",
        edit("pipe.cuh", "(cfg::kOverlap ? cfg::kStages - 2 : 0)", "(cfg::kOverlap ? cfg::kStages - 1 : 0)"),
        reason="differ bit for bit",
        values=OVERLAPPED | dict(STAGES=2, BLOCK_N=16, WARPS_M=4),
        problem=CROWDED,
    ),
    Mutant(
        "v_never_committed",
        "V joins the group of the next K, which is not waited for in time",
        edit("load.cuh", "    fetch_v(tile, slot);\n    ptx::cp_async_commit();\n", "    fetch_v(tile, slot);\n"),
        reason="differ bit for bit",
        values=WAITING,
        problem=CROWDED,
    ),
    Mutant(
        "named_barrier_of_k_not_awaited",
        "consumers of the named form start on K before the producer says so",
        edit("pipe.cuh", "    ptx::barrier_sync(kFullK + slot, cfg::kThreads);\n", ""),
        reason="",
        values=NAMED,
        problem=CROWDED,
    ),
    Mutant(
        "named_slot_given_back_too_early",
        "the producer may refill V while it is read",
        GIVEN_BACK_FIRST,
        reason="differ bit for bit",
        values=NAMED | dict(BLOCK_N=64),
        problem=CROWDED,
    ),
    Mutant(
        "mbarrier_slot_given_back_too_early",
        "the same where warps do not wait for each other",
        GIVEN_BACK_FIRST,
        values=MBARRIERS | dict(BLOCK_N=64),
        problem=CROWDED,
        unseen="a warp runs on after mbarrier.arrive until it waits, and so reads V before the producer has its turn",
    ),
    Mutant(
        "mbarrier_of_k_not_awaited",
        "consumers of the mbarrier form start on K before it has landed",
        edit("pipe.cuh", "ptx::mbarrier_wait(at(kFullK + slot), parity(tile));", "__syncwarp();"),
        reason="differ bit for bit",
        values=MBARRIERS,
        problem=CROWDED,
    ),
    Mutant(
        "slot_never_given_back",
        "a producer that waits for ever",
        edit("pipe.cuh", "    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(at(kind + slot));\n", ""),
        gate=Gate.TIMEOUT,
        reason="lacks 4 of 4 arrivals",
        values=MBARRIERS,
    ),
    Mutant(
        "mbarrier_of_q_not_awaited",
        "Q's fragments are read before all of Q is there",
        edit("pipe.cuh", "{ ptx::mbarrier_wait(at(kFullQ), 0); }", "{}"),
        reason="differ bit for bit",
        values=MBARRIERS,
        problem=CROWDED,
    ),
    Mutant(
        "groups_published_over_the_ring",
        "a fast key group's share overwrites keys that a slow one still reads",
        edit(
            "kernel.cu",
            f"    {SYNC[:-1]}                                         // the ring is free for the merge\n",
            "",
        ),
        reason="differ bit for bit",
        values=MBARRIERS | dict(WARPS_KV=2, STAGES=3),
        problem=CROWDED,
    ),
    Mutant(
        "groups_merged_too_early",
        "shares are read before all key groups have left theirs",
        edit("kernel.cu", f"    }}\n    {SYNC}  }}\n  const Output", "    }\n  }\n  const Output"),
        reason="differ bit for bit",
        values=PLAIN | dict(WARPS_KV=4, BLOCK_N=64),
        problem=CROWDED,
    ),
    Mutant(
        "split_counter_not_reset",
        "the second launch finds the arrivals of the first",
        edit(
            "split.cuh",
            "atomicInc(arrivals + cta / cfg::kSplitKv, ctas - 1);",
            "atomicAdd(arrivals + cta / cfg::kSplitKv, 1u);",
        ),
        reason="were never written",
        values=GRID,
    ),
    Mutant(
        "split_merged_by_the_wrong_cta",
        "the CTA with the last keys takes itself for the last to arrive",
        edit("split.cuh", "return *flag == ctas - 1;", "return cta % cfg::kSplitKv == ctas - 1;"),
        reason="differ bit for bit",
        values=GRID,
    ),
    Mutant(
        "split_without_fences",
        "nothing orders a CTA's partial result before its arrival",
        edit("split.cuh", "__threadfence();", "", times=2),
        values=GRID,
        unseen="memory is sequentially consistent in the interpreter",
        hidden="stores reach L2 long before the merging CTA, which has waited for its own arrival there, reads them",
    ),
)
