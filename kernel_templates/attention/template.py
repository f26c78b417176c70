"""The host's side of the attention template: macros, launch, shared-memory model, inputs, truth and baseline."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from evoengine.dtypes import Arrays, References, rounded
from evoengine.problem import AttentionProblem
from evoengine.space import Values
from evoengine.template import Argument, FullCheck, InputKind, Launch, Tensor, Work

ENTRY = "evo_attention"
PROBLEM = AttentionProblem
THREADED_SCORES = 2**20
"""Scores a head from which the reference runs heads on threads; below, 20 ms a head, threads gain little."""

LARGE_LOGITS = 16.0
"""Standard deviation of the logits where they are to be large: a third of the rows outgrow fp16 from tile to tile."""

MAX_BLOCK_M = 256
MAX_SPLIT_KV = 16
PARTIAL_ROWS = 256 * MAX_BLOCK_M
"""Rows of partial results that there is scratch for, 17 MB at head_dim 64: with 256 CTAs no card idles any more."""

AXES = (
    "WARPS_M",
    "ROW_TILES",
    "BLOCK_N",
    "WARPS_KV",
    "STAGES",
    "PRODUCER_WARPS",
    "MBARRIER",
    "UNROLL",
    "LATE_LOADS",
    "Q_IN_REGS",
    "OVERLAP",
    "LAZY_RESCALE",
    "SUM_MMA",
    "MASK_SPLIT",
    "ONE_TILE",
    "HEAVY_FIRST",
    "SPLIT_KV",
    "MIN_CTAS",
)
LAUNCH_AXES = (
    "WARPS_M",
    "ROW_TILES",
    "BLOCK_N",
    "WARPS_KV",
    "STAGES",
    "PRODUCER_WARPS",
    "MBARRIER",
    "HEAVY_FIRST",
    "SPLIT_KV",
    "MIN_CTAS",
)


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


def defines(values: Values, problem: AttentionProblem) -> dict[str, int]:
    macros = {f"EVO_{name}": values[name] for name in AXES}
    macros["EVO_HEAD_DIM"] = problem.head_dim
    macros["EVO_CAUSAL"] = int(problem.causal)
    macros["EVO_DTYPE"] = ("fp16", "bf16").index(problem.dtype)
    macros["EVO_LSE"] = int(problem.lse)
    macros["EVO_SMEM_BYTES"] = smem_bytes(values, problem.head_dim)
    return macros


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


def arguments(values: Values, problem: AttentionProblem) -> tuple[Argument, ...]:
    split = values["SPLIT_KV"] > 1
    if partial_rows(values, problem) > PARTIAL_ROWS:
        raise ValueError(f"{partial_rows(values, problem)} rows of partial results, scratch holds {PARTIAL_ROWS}")
    return (
        *(Argument("tensor", tensor.name) for tensor in tensors(problem) if tensor.role != "scratch" or split),
        Argument("int32", problem.seq_q),
        Argument("int32", problem.seq_k),
        Argument("int32", problem.kv_heads),
        Argument("int32", problem.heads // problem.kv_heads),
        Argument("int32", problem.diagonal),
        Argument("float32", problem.scale * math.log2(math.e)),
    )


def inputs(problem: AttentionProblem, seed: int) -> Arrays:
    """Standard normal Q, K and V: the distribution under which every planted bug of correctness.md shows."""
    return {
        tensor.name: rounded(
            np.random.default_rng([seed, index]).standard_normal(tensor.shape, np.float32), tensor.dtype
        )
        for index, tensor in enumerate(tensors(problem))
        if tensor.role == "input"
    }


def peaky(problem: AttentionProblem, seed: int) -> Arrays:
    """Queries times 3 and keys that grow: few keys carry a row, and its maximum outgrows by more than 2^8, tile after
    tile, what it was in the first.

    V is a ramp over keys plus a ramp over columns, of another height for each head, so that whatever is read in the
    wrong place shows by more than its rounding.
    """
    drawn = inputs(problem, seed)
    growth = np.linspace(0.25, 1.75, problem.seq_k, dtype=np.float32)[:, None]
    keys, columns = np.linspace(-1, 1, problem.seq_k)[:, None], np.linspace(-0.5, 0.5, problem.head_dim)
    height = 1 + np.arange(problem.batch * problem.kv_heads).reshape(problem.batch, problem.kv_heads, 1, 1) / 16
    changed = {"q": 3 * drawn["q"], "k": growth * drawn["k"], "v": (height * (keys + columns)).astype(np.float32)}
    return {name: rounded(values, problem.dtype) for name, values in changed.items()}


def one_hot(problem: AttentionProblem, seed: int) -> Arrays:
    """Every query gives all of its weight to one key, so that its output is that key's row of V, bit for bit.

    Keys are vectors of signs, no two alike, and a query is its key times what puts the score `HOT` above the next best:
    exp(-HOT) is lost beside 1 in fp32, and at scores of a few hundred fp32 arithmetic makes of 1 at most 1 + 3e-5,
    which half precision rounds to 1. Under a causal mask every other query's key is the last one that it sees.
    """
    drawn, draw = inputs(problem, seed), np.random.default_rng([seed, 3])
    keys = draw.choice(np.array([-1, 1], np.float32), drawn["k"].shape)
    number = np.arange(problem.seq_k)
    bits = range(problem.seq_k.bit_length())
    keys[..., bits] = np.stack([number >> bit & 1 for bit in bits], axis=-1) * 2 - 1
    row = np.arange(problem.seq_q)
    hot = draw.permutation(problem.seq_k)[row % problem.seq_k]
    if problem.causal:
        seen = np.clip(row + problem.diagonal + 1, 1, problem.seq_k)
        hot = np.where(row % 2, hot % seen, seen - 1)
    queries = keys.repeat(problem.heads // problem.kv_heads, axis=1)[:, :, hot]
    size = HOT / ((problem.head_dim - _nearest(keys)) * problem.scale)
    return drawn | {"q": rounded(queries * np.float32(size), problem.dtype), "k": keys}


def _nearest(keys: NDArray[np.float32]) -> float:
    """The largest product of two different keys of a head, 512 keys at a time: there may be thousands."""
    count, nearest = keys.shape[-2], -np.inf
    for start in range(0, count, 512):
        some = np.arange(start, min(start + 512, count))
        products = keys[..., some, :] @ keys.swapaxes(-1, -2)
        products[..., some - start, some] = -np.inf
        nearest = max(nearest, float(products.max()))
    return nearest


def large(problem: AttentionProblem, seed: int) -> Arrays:
    """Uniform up to 30, or to what keeps every score within fp16: exp of a score that nothing was taken from is inf."""
    most = min(30.0, math.sqrt(LARGEST_SCORE / (problem.head_dim * max(problem.scale, 1.0))))
    draw = np.random.default_rng(seed)
    return {
        name: rounded(draw.uniform(-most, most, like.shape).astype(np.float32), problem.dtype)
        for name, like in inputs(problem, seed).items()
    }


def constant(problem: AttentionProblem, seed: int) -> Arrays:
    """All scores equal, all of V 1000: 66 keys add up to more than fp16 holds."""
    return {name: np.full_like(like, 1000 if name == "v" else 1) for name, like in inputs(problem, seed).items()}


EDGES = ((1023, 1025), (1024, 1023), (1025, 1024))
"""Lengths around 1024, as in FlashAttention's tests: twice the mission shape's, and one head of them is cheap."""
HOT = 44.0
"""exp(-44) is 8e-20: thousands of such keys beside one of weight 1 are under half a rounding of fp32."""
LARGEST_SCORE = 60000.0
"""Under fp16's 65504: the half-precision baseline must stay finite."""
USUAL_SCALES = (0.01, 10.0)
"""The scales at which fp16 holds the scores of the peaky and the one-hot inputs; 1/sqrt(head_dim) is 0.06 to 0.18."""


def _heads(problem: AttentionProblem) -> Iterator[tuple[int, int, int]]:
    group = problem.heads // problem.kv_heads
    for b in range(problem.batch):
        for h in range(problem.heads):
            yield b, h, h // group


def _hidden(problem: AttentionProblem, rows: slice) -> NDArray[np.bool_]:
    """True where a query row must not see a key; shape (rows, seq_k)."""
    row = np.arange(rows.start, rows.stop)[:, None]
    key = np.arange(problem.seq_k)[None, :]
    return key > row + problem.diagonal if problem.causal else np.zeros((len(row), problem.seq_k), np.bool_)


def _row_blocks(problem: AttentionProblem) -> Iterator[slice]:
    """Row slices of at most 2^21 scores (16 MB in fp64), so that long sequences fit in memory on every core."""
    step = max(1, 2**21 // problem.seq_k)
    for start in range(0, problem.seq_q, step):
        yield slice(start, min(start + step, problem.seq_q))


def _each_head(problem: AttentionProblem, work: Callable[[int, int, int], None]) -> None:
    """Every head on a thread of its own, as many at a time as there are cores: numpy computes outside the GIL.

    Two seconds a head at 4096 keys make a minute for 32 heads one after the other.
    """
    if problem.seq_q * problem.seq_k < THREADED_SCORES:
        for head in _heads(problem):
            work(*head)
        return
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for done in [pool.submit(work, *head) for head in _heads(problem)]:
            done.result()


def reference(problem: AttentionProblem, inputs: Arrays) -> References:
    """softmax(scale * Q K^T) V in float64, zero where a row sees no key; ln sum exp(scale * q k), -inf there."""
    out = np.zeros((problem.batch, problem.heads, problem.seq_q, problem.head_dim), np.float64)
    lse = np.zeros(out.shape[:3], np.float64)

    def head(b: int, h: int, kv: int) -> None:
        k = inputs["k"][b, kv].astype(np.float64)
        v = inputs["v"][b, kv].astype(np.float64)
        for rows in _row_blocks(problem):
            scores = inputs["q"][b, h, rows].astype(np.float64) @ k.T * problem.scale
            weights, lse[b, h, rows] = _softmax(scores, _hidden(problem, rows))
            out[b, h, rows] = weights @ v

    _each_head(problem, head)
    return {"o": out, "lse": lse} if problem.lse else {"o": out}


def baseline(problem: AttentionProblem, inputs: Arrays) -> Arrays:
    """Plain attention in the tensors' own precision: fp32 sums, every intermediate rounded to the dtype.

    This is `out_pt` of FlashAttention's tests (tests/test_flash_attn.py, attention_ref with upcast=False). The
    log-sum-exp is fp32, over the rounded scores.
    """
    out = np.zeros((problem.batch, problem.heads, problem.seq_q, problem.head_dim), np.float32)
    lse = np.zeros(out.shape[:3], np.float32)

    def head(b: int, h: int, kv: int) -> None:
        k, v = inputs["k"][b, kv], inputs["v"][b, kv]
        for rows in _row_blocks(problem):
            products = rounded(inputs["q"][b, h, rows] @ k.T, problem.dtype)
            scores = rounded(products * np.float32(problem.scale), problem.dtype)
            weights, lse[b, h, rows] = _softmax(scores, _hidden(problem, rows))
            out[b, h, rows] = rounded(rounded(weights.astype(np.float32), problem.dtype) @ v, problem.dtype)

    _each_head(problem, head)
    return {"o": out, "lse": lse} if problem.lse else {"o": out}


def _softmax(
    scores: NDArray[np.floating], hidden: NDArray[np.bool_]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """The rows' weights, and the logarithm of what they were divided by."""
    scores = np.where(hidden, -np.inf, scores)
    highest = scores.max(axis=-1, keepdims=True)
    highest = np.where(np.isfinite(highest), highest, 0.0).astype(scores.dtype)
    weights = np.exp(scores - highest)
    total = weights.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):  # a row that sees no key
        lse = (highest + np.log(total))[..., 0]
    return np.asarray(weights / np.where(total > 0, total, 1.0).astype(scores.dtype)), np.asarray(lse)


def _masks(problem: AttentionProblem, seq_q: int, seq_k: int) -> tuple[int, ...]:
    """Diagonals worth checking: bottom-right, and one that leaves the first three rows without a key."""
    return (seq_k - seq_q, -3) if problem.causal else (0,)


def _large_logits(problem: AttentionProblem, seq_k: int) -> AttentionProblem:
    """15 rows of the problem with logits of standard deviation 16, where the default scale gives 1.

    Only there do maxima grow by more than fp16 holds, so that who forgets or keeps one overflows.
    """
    scale = max(problem.scale, LARGE_LOGITS * problem.head_dim**-0.5)
    diagonal = seq_k - 15 if problem.causal else 0
    return dataclasses.replace(problem, seq_q=15, seq_k=seq_k, scale=scale, diagonal=diagonal)


def check_problems(values: Values, problem: AttentionProblem) -> tuple[AttentionProblem, ...]:
    """Lengths that no tile size divides or that fill no tile, grouped heads, seq_q != seq_k, rows that see no key.

    And more keys than are timed, with large logits.
    """
    grouped = dataclasses.replace(problem, batch=2, heads=4, kv_heads=2)
    lengths = ((203, 331), (37, values["BLOCK_N"] // 2 + 3))
    ragged = (
        dataclasses.replace(grouped, seq_q=seq_q, seq_k=seq_k, diagonal=diagonal)
        for seq_q, seq_k in lengths
        for diagonal in _masks(problem, seq_q, seq_k)
    )
    return (*ragged, _large_logits(grouped, problem.seq_k + 37))


def full_checks(values: Values, problem: AttentionProblem) -> tuple[FullCheck, ...]:
    """Lengths at the edges of tiles and of 1024, other groups of heads, masks that hide blocks of rows or nothing,
    inputs that are not normal, and 64 heads at a time: FlashAttention's race test has 60.
    """
    rows, keys = block_m(values), values["BLOCK_N"]

    def at(q: int, k: int, heads: tuple[int, int] = (4, 2), batch: int = 1, hidden: int = 0) -> AttentionProblem:
        """Bottom-right under a causal mask, and every row sees `hidden` keys less."""
        shape = dataclasses.replace(problem, batch=batch, heads=heads[0], kv_heads=heads[1], seq_q=q, seq_k=k)
        return dataclasses.replace(shape, diagonal=k - q - hidden) if problem.causal else shape

    plain = InputKind("lengths", inputs)
    lengths = [at(rows, keys), at(rows + 1, keys + 1), *(at(q, k, (1, 1)) for q, k in EDGES)]
    groups = [at(65, 97, (6, 2)), at(65, 97, (5, 1), batch=3)]
    masks = [at(rows + 21, 131, hidden=113), at(131, 97, hidden=-131)] if problem.causal else []
    kinds = [InputKind("large", large), InputKind("constant", constant, ("o",))]
    if USUAL_SCALES[0] <= problem.scale <= USUAL_SCALES[1]:
        kinds += [InputKind("peaky", peaky), InputKind("one hot", one_hot, ("o",))]
    return (
        *(FullCheck(plain, one) for one in (*lengths, *groups, *masks)),
        *(FullCheck(kind, at(203, 331, batch=2)) for kind in kinds),
        FullCheck(InputKind("races", inputs), _many_heads(values, at(251, 267, (8, 4), batch=8)), races=True),
    )


def _many_heads(values: Values, problem: AttentionProblem) -> AttentionProblem:
    """64 heads, or as many as there is scratch for where keys are split; either is a grid of 256 CTAs or more."""
    if partial_rows(values, problem) <= PARTIAL_ROWS:
        return problem
    short = dataclasses.replace(problem, seq_q=block_m(values))
    batch = PARTIAL_ROWS // (partial_rows(values, short) // problem.batch)
    return dataclasses.replace(short, batch=max(1, min(batch, problem.batch)))


def small_problems(values: Values, problem: AttentionProblem) -> tuple[AttentionProblem, ...]:
    """Enough tiles to wrap the ring, the last one ragged, in two blocks of rows; less than one tile; large logits.

    The second is for the zero-fill of rows that do not exist: after a wrap, finite stale keys would hide its lack. It
    is small enough for two batches and two groups of heads. A split of the keys wraps the ring in all of its CTAs but
    the last, which are left with less or nothing.
    """
    part = values["BLOCK_N"] // 2 + 3
    tiles = values["SPLIT_KV"] * values["STAGES"] + 1
    if values["MBARRIER"]:
        tiles = max(tiles, 2 * values["SPLIT_KV"] * values["STAGES"])  # and a part: every slot's parity comes back to 0
    one, two = (dataclasses.replace(problem, batch=n, heads=2 * n, kv_heads=n) for n in (1, 2))
    lengths = ((one, block_m(values) + 5, values["BLOCK_N"] * tiles + part), (two, 5, part))
    ragged = (
        dataclasses.replace(heads, seq_q=seq_q, seq_k=seq_k, diagonal=diagonal)
        for heads, seq_q, seq_k in lengths
        for diagonal in _masks(problem, seq_q, seq_k)
    )
    return (*ragged, _large_logits(one, 2 * values["SPLIT_KV"] * values["BLOCK_N"] + part))


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
        dedicated_loads=values["PRODUCER_WARPS"] > 0,
        loads_ahead=values["STAGES"] - values["OVERLAP"],  # K of the next tile has to be there too
        copies=copies * steps,
        slow_copies=copies * ragged / (row_blocks * split),
        merge_bytes=4.0 * merged * rows * head_dim,
        round_trips=3.0 if split > 1 else 0.0,
        registers=_registers(values, head_dim),
    )


def _fragment_bytes(values: Values, head_dim: int, steps: float) -> float:
    """Bytes that ldmatrix reads: each warp its share of every K and V tile once for all of its rows, and its Q."""
    warps = values["WARPS_M"] * values["WARPS_KV"]
    keys_per_warp = steps * values["BLOCK_N"] / values["WARPS_KV"]
    query_rows = 16 * values["ROW_TILES"] * (1 if values["Q_IN_REGS"] else steps)
    return warps * (2 * keys_per_warp + query_rows) * head_dim * 2.0


def _registers(values: Values, head_dim: int) -> int:
    """Output, scores of one or two tiles, Q where it stays, row statistics, and 45 for addresses and loop state."""
    rows, keys = 16 * values["ROW_TILES"], values["BLOCK_N"] // values["WARPS_KV"]
    scores = (1 + values["OVERLAP"]) * rows * keys // 32
    return rows * head_dim // 32 + scores + values["Q_IN_REGS"] * rows * head_dim // 64 + 4 * values["ROW_TILES"] + 45
