"""Planted bugs in what only wgmma has: its view of shared memory, descriptors, operands, warps that go together."""

from __future__ import annotations

from benchmarks.trust.planted.mutant import CAUSAL, PLAIN, Edit, Mutant, edit
from evoengine.problem import AttentionProblem
from evoengine.verdict import Gate

WGMMA = PLAIN | dict(WARPS_M=4, BLOCK_N=64, STAGES=1, WGMMA=1)
FROM_SHARED = WGMMA | dict(WARPS_M=8, Q_IN_REGS=0)
"""Two warpgroups, which read Q from shared memory."""
PANELS = AttentionProblem(head_dim=128, heads=2)
GIVEN_UP = FROM_SHARED | dict(WARPS_M=4, BLOCK_N=128, WARPS_KV=2, PRODUCER_WARPS=4, MBARRIER=1, WGMMA=2)
"""Two warpgroups that share a tile's keys, and one that loads and gives up registers."""
SWIZZLED = "  if constexpr (cfg::kWgmma) return"
SLICE = "return ((slice / 4 * kTileRows + row) * kRowBytes + slice % 4 * 32) >> 4;"

WARPGROUPS = (
    Mutant(
        "copies_not_seen_by_wgmma",
        "wgmma reads what cp.async wrote without a fence between their proxies",
        edit("warpgroup.cuh", 'asm volatile("fence.proxy.async.shared::cta;\\n" ::: "memory");', ""),
        reason="without a fence.proxy.async",
        gate=Gate.RUNTIME,
        values=WGMMA,
        hidden="the copies have landed behind a barrier: a card may show them to wgmma all the same",
    ),
    Mutant(
        "wgmma_depth_not_advanced",
        "every slice of 16 columns of K is the first",
        edit("warpgroup.cuh", SLICE, SLICE.replace(" + slice % 4 * 32", "")),
        values=WGMMA,
    ),
    Mutant(
        "wgmma_panels_not_advanced",
        "the second 64 columns of a row are the first again",
        edit("warpgroup.cuh", SLICE, SLICE.replace("slice / 4 * kTileRows + ", "")),
        values=WGMMA,
        problem=PANELS,
    ),
    Mutant(
        "wgmma_without_swizzle",
        "the descriptor tells another order of 16-byte chunks than that in which they were written",
        edit("storage.cuh", SWIZZLED, "  chunk ^= cfg::kWgmma ? row & 1 : 0;\n" + SWIZZLED),
        values=WGMMA,
    ),
    Mutant(
        "v_as_if_transposed",
        "the rows of V are taken for columns",
        (
            Edit("warpgroup.cuh", 'WGMMA_OF("f16", "1", ', 'WGMMA_OF("f16", "0", '),
            Edit("warpgroup.cuh", 'WGMMA_OF("bf16", "1", ', 'WGMMA_OF("bf16", "0", '),
        ),
        gate=Gate.RUNTIME,
        reason="outside the",
        values=WGMMA,
    ),
    Mutant(
        "rows_of_the_first_warpgroup",
        "every warpgroup multiplies the Q of the first",
        edit("warpgroup.cuh", "descriptor(tile_q + (row - row % kRows) * kRowBytes)", "descriptor(tile_q)"),
        values=FROM_SHARED,
    ),
    Mutant(
        "scores_added_up",
        "the accumulator of the tile before is kept",
        edit("warpgroup.cuh", "q[i][d], k, d > 0);", "q[i][d], k, true);"),
        values=WGMMA,
    ),
    Mutant(
        "warps_of_a_warpgroup_part",
        "how many tiles need no mask is a matter of each warp, so that four execute two copies of the loop",
        edit("consumer.cuh", "first_row - warp_row % warpgroup::kRows : first_row", "first_row : first_row"),
        gate=Gate.RUNTIME,
        reason="do not all execute the same",
        values=WGMMA | dict(MASK_SPLIT=1),
        problem=CAUSAL,
        hidden="undefined: a card may pair what the two copies issue, which is of the same shape",
    ),
    Mutant(
        "registers_never_given_up",
        "the producers keep theirs, and the others wait for them",
        edit("kernel.cu", "  warpgroup::shrink();\n", ""),
        gate=Gate.TIMEOUT,
        reason="wait for 64 more registers a thread each, 0 are free",
        values=GIVEN_UP,
    ),
    Mutant(
        "merge_counts_on_producers",
        "16 of every 64 rows of the output are left to warps that have exited",
        edit("config.cuh", "kSetmaxnreg ? kConsumerThreads : kThreads;", "kThreads;"),
        reason="were never written",
        values=GIVEN_UP,
    ),
)
