"""The problems that a cubin must also solve: for every candidate, for finalists, and for the interpreter."""

from __future__ import annotations

import dataclasses

from evoengine.problem import AttentionProblem
from evoengine.space import Values
from evoengine.template import FullCheck, InputKind

from .geometry import PARTIAL_ROWS, block_m, partial_rows
from .input_kinds import constant, inputs, large, one_hot, peaky

LARGE_LOGITS = 16.0
"""Standard deviation of the logits where they are to be large: a third of the rows outgrow fp16 from tile to tile."""
EDGES = ((1023, 1025), (1024, 1023), (1025, 1024))
"""Lengths around 1024, as in FlashAttention's tests: twice the mission shape's, and one head of them is cheap."""
USUAL_SCALES = (0.01, 10.0)
"""The scales at which fp16 holds the scores of the peaky and the one-hot inputs; 1/sqrt(head_dim) is 0.06 to 0.18."""


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
    inputs that are not normal, and 64 heads at a time, as many CTAs as an H200 holds: FlashAttention's race test
    (tests/test_flash_attn.py) has 240.
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
