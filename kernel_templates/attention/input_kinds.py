"""Inputs: the random ones that every check has, and those that show what random ones hide."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from evoengine.dtypes import Arrays, rounded
from evoengine.problem import AttentionProblem

from .geometry import tensors

HOT = 44.0
"""exp(-44) is 8e-20: thousands of such keys beside one of weight 1 are under half a rounding of fp32."""
LARGEST_SCORE = 60000.0
"""Under fp16's 65504: the half-precision baseline must stay finite."""


def inputs(problem: AttentionProblem, seed: int) -> Arrays:
    """Standard normal Q, K and V: most planted bugs (benchmarks/trust/planted) show on them."""
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
