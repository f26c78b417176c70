"""The truth in float64, and plain attention in the tensors' own precision: a candidate's error is held against it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from evoengine.dtypes import Arrays, References, rounded
from evoengine.problem import AttentionProblem

THREADED_SCORES = 2**20
"""Scores a head from which the reference runs heads on threads; below, 20 ms a head, threads gain little."""


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
