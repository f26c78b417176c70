"""Planted bugs in what is read and written where: tiles, rows, heads, fragments, swizzle, splits, tails."""

from __future__ import annotations

from benchmarks.trust.planted.mutant import (
    BF16,
    CAUSAL,
    GRID,
    OVERLAPPED,
    PLAIN,
    Edit,
    Mutant,
    edit,
)
from evoengine.verdict import Gate

K_FRAGMENT = "tile_offset<cfg::kBlockN>(warp_key + (lane & 7) + ((lane >> 4) << 3), d * 2 + ((lane >> 3) & 1));"
ROW = "first_row + i * 16 + h * 8 + (lane >> 2)"

INDICES = (
    Mutant(
        "last_tile_dropped",
        "a loop that ends one trip early",
        edit("kernel.cu", "tile + kStep <= whole : tile < tiles;", "tile + kStep <= whole : tile < tiles - 1;"),
        values=PLAIN,
    ),
    Mutant(
        "stale_v",
        "V of the tile before: the slot's index lags",
        edit(
            "kernel.cu",
            "consumer.accumulate<0>(at.v + slot * kSlotBytes);",
            "consumer.accumulate<0>(at.v + (tile > 0 ? (slot + cfg::kStages - 1) % cfg::kStages : slot) * kSlotBytes);",
        ),
        reason="",
        values=PLAIN | dict(STAGES=3),
    ),
    Mutant(
        "overlap_reads_this_tiles_k",
        "OVERLAP takes K of the next tile from this tile's slot",
        edit("kernel.cu", "? i + 1 : tile + i + 1) % cfg::kStages;", "? i : tile + i) % cfg::kStages;"),
        reason="",
        values=OVERLAPPED,
    ),
    Mutant(
        "two_rows_swapped",
        "the first two rows of every head change places on their way out",
        edit("consumer.cuh", f"const int row = {ROW};\n", f"const int row = ({ROW}) ^ ({ROW} < 2);\n"),
        values=PLAIN,
    ),
    Mutant(
        "last_row_unwritten",
        "a tail guard that is one too strict",
        edit("consumer.cuh", "if (row < seq_q) {", "if (row + 1 < seq_q) {"),
        reason="output words were never written",
        values=PLAIN,
    ),
    Mutant(
        "a_row_too_many_stored",
        "a tail guard that is one too lax: a store out of bounds",
        edit("consumer.cuh", "if (row < seq_q) {", "if (row <= seq_q) {"),
        gate=Gate.RUNTIME,
        reason="lanes outside every buffer, first at o + ",
        values=PLAIN,
    ),
    Mutant(
        "wrong_gqa_head",
        "query heads take key heads in turns, not in groups",
        edit("kernel.cu", ": head / queries_per_kv;", ": head % kv_heads;"),
        values=PLAIN,
        problem=BF16,
    ),
    Mutant(
        "wrong_batch_stride",
        "K and V of a batch are sought at the distance of Q's",
        edit(
            "kernel.cu",
            "static_cast<long long>(batch) * kv_heads + kv_head;",
            "static_cast<long long>(batch) * heads + kv_head;",
        ),
        gate=Gate.RUNTIME,
        reason="outside every buffer",
        values=PLAIN,
        problem=BF16,
    ),
    Mutant(
        "k_read_without_swizzle",
        "the reader's layout is not the writer's",
        edit(
            "consumer.cuh",
            "tile_k + " + K_FRAGMENT,
            "tile_k + (warp_key + (lane & 7) + ((lane >> 4) << 3)) * cfg::kHeadDim * 2"
            " + (d * 2 + ((lane >> 3) & 1)) * 16;",
        ),
        values=PLAIN,
    ),
    Mutant(
        "v_read_a_chunk_beside",
        "V's columns of 8 change places in pairs",
        edit(
            "consumer.cuh",
            "tile_offset<cfg::kBlockN>(warp_key + (lane & 15), d * 2 + (lane >> 4));",
            "tile_offset<cfg::kBlockN>(warp_key + (lane & 15), d * 2 + 1 - (lane >> 4));",
        ),
        values=PLAIN,
    ),
    Mutant(
        "tiles_misaligned",
        "16-byte accesses at addresses of 8",
        edit("storage.cuh", "chunk * 8) * 2);", "chunk * 8) * 2 + 8);"),
        gate=Gate.RUNTIME,
        reason="misaligned",
        values=PLAIN,
    ),
    Mutant(
        "q_fragment_of_wrong_lanes",
        "lanes 8 to 15 address the rows of lanes 0 to 7",
        edit("consumer.cuh", "warp_row + i * 16 + (lane & 15);", "warp_row + i * 16 + (lane & 7);"),
        values=PLAIN,
    ),
    Mutant(
        "k_fragments_mixed",
        "an mma gets one register of another column",
        edit("consumer.cuh", "q[i][cfg::kQInRegs ? d : 0], b[0], b[1]);", "q[i][cfg::kQInRegs ? d : 0], b[0], b[3]);"),
        values=PLAIN,
    ),
    Mutant(
        "p_fragments_swapped",
        "rows and keys of P change places between two registers",
        (
            Edit("ptx.cuh", "to[1] = pack(", "to[3] = pack("),
            Edit("ptx.cuh", "to[3] = pack(high", "to[1] = pack(high"),
        ),
        values=PLAIN,
    ),
    Mutant(
        "tail_of_a_tile_uninitialised",
        "rows beyond the last key keep what shared memory held",
        edit("load.cuh", "      ptx::cp_async_or_zero(tile", "      if (inside) ptx::cp_async_or_zero(tile"),
        reason="NaN",
        values=PLAIN,
    ),
    Mutant(
        "a_key_too_many_read",
        "a row beyond the last key is loaded: of the next head, or of nobody",
        edit("load.cuh", "first + this_row < rows;", "first + this_row <= rows;"),
        gate=Gate.RUNTIME,
        reason="outside every buffer",
        values=PLAIN,
    ),
    Mutant(
        "heavy_first_off_by_one",
        "HEAVY_FIRST begins a block behind the last: the first is never done",
        edit("kernel.cu", "gridDim.z - 1 - blockIdx.z", "gridDim.z - blockIdx.z"),
        reason="output words were never written",
        values=PLAIN | dict(HEAVY_FIRST=1),
        problem=CAUSAL,
    ),
    Mutant(
        "split_reads_v_from_the_start",
        "the CTAs of SPLIT_KV move on in K but not in V",
        edit("kernel.cu", "    v += static_cast<long long>(first_key) * cfg::kHeadDim;\n", ""),
        values=GRID,
    ),
    Mutant(
        "split_keeps_the_diagonal",
        "the CTAs of SPLIT_KV renumber their keys but not the mask",
        edit("kernel.cu", "    diagonal -= first_key;\n", ""),
        values=GRID,
        problem=CAUSAL,
    ),
)
