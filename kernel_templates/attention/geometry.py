"""What the host has to know of a config's shape: tiles, threads, shared memory, grid, buffers."""

from __future__ import annotations

from evoengine.problem import AttentionProblem
from evoengine.space import Values
from evoengine.template import Launch, Tensor

MAX_BLOCK_M = 256
MAX_SPLIT_KV = 16
PARTIAL_ROWS = 256 * MAX_BLOCK_M
"""Rows of partial results that there is scratch for, 17 MB at head_dim 64: with 256 CTAs no card idles any more."""


def block_m(values: Values) -> int:
    """Query rows per CTA."""
    return 16 * values["ROW_TILES"] * values["WARPS_M"]


def threads(values: Values) -> int:
    return 32 * (values["WARPS_M"] * values["WARPS_KV"] + values["PRODUCER_WARPS"])


def smem_bytes(values: Values, head_dim: int) -> int:
    """sizeof(SharedStorage) of storage.cuh, which asserts that this is the same number.

    The larger of Q with the K/V ring, and the fp32 partial results that the key groups leave for the merge.
    """
    main = 2 * head_dim * (block_m(values) + 2 * values["STAGES"] * values["BLOCK_N"])
    groups = values["WARPS_KV"]
    merge_rows = block_m(values) if groups > 1 else 1
    merge = 4 * groups * merge_rows * (head_dim + 8 + 2)
    barriers = 8 * (4 * values["STAGES"] + 1) if values["MBARRIER"] else 0
    return -(-max(main, merge) // 128) * 128 + -(-barriers // 128) * 128


def grid(values: Values) -> tuple[tuple[str, int, int], ...]:
    """Each grid dimension as (field of the problem, tile, times): ceil(field / tile) * times CTAs."""
    rows = ("seq_q", block_m(values), values["SPLIT_KV"])
    others = (("heads", 1, 1), ("batch", 1, 1))
    return (*others, rows) if values["HEAVY_FIRST"] else (rows, *others)


def launch(values: Values, problem: AttentionProblem) -> Launch:
    x, y, z = (-(-getattr(problem, field) // tile) * times for field, tile, times in grid(values))
    return Launch((x, y, z), threads(values), smem_bytes(values, problem.head_dim), values["MIN_CTAS"])


def tensors(problem: AttentionProblem) -> tuple[Tensor, ...]:
    queries = (problem.batch, problem.heads, problem.seq_q, problem.head_dim)
    keys = (problem.batch, problem.kv_heads, problem.seq_k, problem.head_dim)
    lse = (Tensor("lse", "output", queries[:3], "fp32"),) if problem.lse else ()
    heads = problem.batch * problem.heads
    partial_rows = min(MAX_SPLIT_KV * heads * (problem.seq_q + MAX_BLOCK_M - 1), PARTIAL_ROWS)
    return (
        Tensor("q", "input", queries, problem.dtype),
        Tensor("k", "input", keys, problem.dtype),
        Tensor("v", "input", keys, problem.dtype),
        Tensor("o", "output", queries, problem.dtype),
        *lse,
        Tensor("partials", "scratch", (partial_rows, problem.head_dim + 2), "fp32"),
        Tensor("arrivals", "scratch", (heads * -(-problem.seq_q // 16),), "int32"),
    )


def partial_rows(values: Values, problem: AttentionProblem) -> int:
    """Rows of partial results that all CTAs of a launch leave in scratch; none without a split of the keys."""
    return launch(values, problem).ctas * block_m(values) if values["SPLIT_KV"] > 1 else 0


def scratch(values: Values, problem: AttentionProblem) -> dict[str, int]:
    """Bytes of each scratch tensor that a launch of this config uses; `tensors` has the most that any config does."""
    if values["SPLIT_KV"] == 1:
        return {}
    rows = partial_rows(values, problem)
    counters = launch(values, problem).ctas // values["SPLIT_KV"]
    return {"partials": 4 * rows * (problem.head_dim + 2), "arrivals": 4 * counters}
