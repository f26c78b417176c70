# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""A flash-attention forward kernel in Triton: the opponent that every CUDA programmer could write in an afternoon.

Online softmax over key tiles with fp32 accumulation (Dao, arXiv:2307.08691), exponentials to base 2 with the scale
folded into one multiply-add. Importing this module imports Triton.
"""

import triton
import triton.language as tl


@triton.jit
def _walk(
    acc,
    total,
    highest,
    q,
    k_ptr,
    v_ptr,
    rows,
    first,
    last,
    seq_k,
    diagonal,
    scale_log2,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Key tiles from `first` to `last`. Only MASKED tiles may hold a key that some row does not see."""
    dims = tl.arange(0, HEAD_DIM)
    for start in tl.range(first, last, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k_tile = k_ptr + keys[None, :] * HEAD_DIM + dims[:, None]
        v_tile = v_ptr + keys[:, None] * HEAD_DIM + dims[None, :]
        k = tl.load(k_tile, mask=keys[None, :] < seq_k, other=0.0) if MASKED else tl.load(k_tile)
        scores = tl.dot(q, k)
        if MASKED:
            visible = keys[None, :] < seq_k
            if CAUSAL:
                visible = visible & (keys[None, :] <= rows[:, None] + diagonal)
            scores = tl.where(visible, scores, float("-inf"))
        new = tl.maximum(highest, tl.max(scores, 1) * scale_log2)
        # a row that has seen no key yet: -inf minus -inf would be NaN
        pivot = tl.where(new == float("-inf"), 0.0, new) if MASKED else new
        weights = tl.exp2(scores * scale_log2 - pivot[:, None])
        rescale = tl.exp2(highest - pivot)
        total = total * rescale + tl.sum(weights, 1)
        acc = acc * rescale[:, None]
        v = tl.load(v_tile, mask=keys[:, None] < seq_k, other=0.0) if MASKED else tl.load(v_tile)
        acc = tl.dot(weights.to(v.dtype), v, acc)
        highest = new
    return acc, total, highest


@triton.jit
def attention_forward(
    q_ptr,
    k_ptr,
    v_ptr,
    o_ptr,
    scale_log2,
    seq_q,
    seq_k,
    heads,
    group,
    diagonal,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    RAGGED_Q: tl.constexpr,
    RAGGED_K: tl.constexpr,
):
    """One program: BLOCK_M query rows of one head. Grid (row blocks, heads, batch); contiguous tensors."""
    block = tl.program_id(0)
    if CAUSAL:  # the longest rows first, so that the last wave is short
        block = tl.num_programs(0) - 1 - block
    head = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    queries = (batch * heads + head) * seq_q * HEAD_DIM
    keys = (batch * (heads // group) + head // group) * seq_k * HEAD_DIM
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    offsets = rows[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    if RAGGED_Q:
        q = tl.load(q_ptr + queries + offsets, mask=rows[:, None] < seq_q, other=0.0)
    else:
        q = tl.load(q_ptr + queries + offsets)
    acc = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    if CAUSAL:
        last = tl.minimum(seq_k, tl.maximum((block + 1) * BLOCK_M + diagonal, 0))
        full = tl.minimum(seq_k, tl.maximum(block * BLOCK_M + diagonal + 1, 0)) // BLOCK_N * BLOCK_N
    else:
        last = seq_k
        full = seq_k // BLOCK_N * BLOCK_N
    acc, total, highest = _walk(
        acc, total, highest, q, k_ptr + keys, v_ptr + keys, rows, 0, full, seq_k, diagonal, scale_log2,
        HEAD_DIM, BLOCK_N, CAUSAL, False,
    )  # fmt: skip
    if CAUSAL or RAGGED_K:
        acc, total, highest = _walk(
            acc, total, highest, q, k_ptr + keys, v_ptr + keys, rows, full, last, seq_k, diagonal, scale_log2,
            HEAD_DIM, BLOCK_N, CAUSAL, True,
        )  # fmt: skip
    output = acc / tl.where(total == 0.0, 1.0, total)[:, None]  # a row that sees no key is zero
    if RAGGED_Q:
        tl.store(o_ptr + queries + offsets, output.to(o_ptr.dtype.element_ty), mask=rows[:, None] < seq_q)
    else:
        tl.store(o_ptr + queries + offsets, output.to(o_ptr.dtype.element_ty))
