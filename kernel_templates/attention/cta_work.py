"""What a CTA has to do, for the latency estimate, and the registers that it will want."""

from __future__ import annotations

from evoengine.problem import AttentionProblem
from evoengine.space import Values
from evoengine.template import Work

from .geometry import block_m


def work(values: Values, problem: AttentionProblem) -> Work:
    """An average CTA: under a causal mask, or with a split of the keys, the work of all CTAs is spread evenly."""
    rows, head_dim = block_m(values), problem.head_dim
    row_blocks = -(-problem.seq_q // rows)
    tiles = ragged = 0
    for block in range(row_blocks):
        keys = min(max((block + 1) * rows + problem.diagonal, 0), problem.seq_k) if problem.causal else problem.seq_k
        tiles += -(-keys // values["BLOCK_N"])
        ragged += keys > problem.seq_k // values["BLOCK_N"] * values["BLOCK_N"]
    split = values["SPLIT_KV"]
    steps = tiles / (row_blocks * split)
    keys_per_cta = steps * values["BLOCK_N"]
    warps = values["WARPS_M"] * values["WARPS_KV"]
    # cp.async instructions of one loading warp for K and V of a tile, 32 chunks of 16 bytes each.
    copies = 2 * values["BLOCK_N"] * (head_dim // 8) / 32 / (values["PRODUCER_WARPS"] or warps)
    # Key groups leave their shares in shared memory; CTAs of a split in L2, where the last one reads them all.
    share = 4.0 * rows * (head_dim + 2)
    merged = (values["WARPS_KV"] if values["WARPS_KV"] > 1 else 0) + (split if split > 1 else 0)
    return Work(
        tensor_flops=4.0 * rows * keys_per_cta * head_dim,
        exponentials=rows * keys_per_cta,
        l2_bytes=2.0 * head_dim * (2 * keys_per_cta + 2 * rows) + (2 * share if split > 1 else 0.0),
        smem_bytes=_fragment_bytes(values, head_dim, steps),
        steps=steps,
        compute_warps=warps,
        warpgroup_mma=values["WGMMA"] > 0,
        dedicated_loads=values["PRODUCER_WARPS"] > 0,
        loads_ahead=values["STAGES"] - values["OVERLAP"],  # K of the next tile has to be there too
        copies=copies * steps,
        slow_copies=copies * ragged / (row_blocks * split),
        merge_bytes=4.0 * merged * rows * head_dim,
        round_trips=3.0 if split > 1 else 0.0,
        registers=_registers(values, head_dim),
    )


def _fragment_bytes(values: Values, head_dim: int, steps: float) -> float:
    """Bytes of fragments: each warp its share of every K and V tile once for all of its rows, and its Q.

    Without wgmma by ldmatrix. With it four warps read K and V together, once for each of their row tiles.
    """
    warps = values["WARPS_M"] * values["WARPS_KV"]
    keys_per_warp = steps * values["BLOCK_N"] / values["WARPS_KV"]
    readings = values["ROW_TILES"] / 4 if values["WGMMA"] else 1
    query_rows = 16 * values["ROW_TILES"] * (1 if values["Q_IN_REGS"] else steps)
    return warps * (2 * readings * keys_per_warp + query_rows) * head_dim * 2.0


def _registers(values: Values, head_dim: int) -> int:
    """Output, scores of one or two tiles, Q where it stays, row statistics, and 45 for addresses and loop state."""
    rows, keys = 16 * values["ROW_TILES"], values["BLOCK_N"] // values["WARPS_KV"]
    scores = (1 + values["OVERLAP"]) * rows * keys // 32
    return rows * head_dim // 32 + scores + values["Q_IN_REGS"] * rows * head_dim // 64 + 4 * values["ROW_TILES"] + 45
