"""Our own Triton flash attention, tuned over its whole config list: what an afternoon with another tool gives."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from evoengine.devices.cuda.baselines.call import Call, Stopwatch, Unavailable
from evoengine.devices.cuda.serve import FatalCudaError
from evoengine.hardware import DeviceLimits
from evoengine.problem import AttentionProblem

BLOCKS_M, BLOCKS_N, WARPS, STAGES = (32, 64, 128), (32, 64, 128), (2, 4, 8), (1, 2, 3, 4)
FINALISTS = 5
"""Configs that are timed again beside each other: an estimate from one window is good to a few per cent."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One config of the kernel."""

    block_m: int
    block_n: int
    warps: int
    stages: int

    def __str__(self) -> str:
        return f"BLOCK_M {self.block_m}, BLOCK_N {self.block_n}, {self.warps} warps, {self.stages} stages"


def tiles(problem: AttentionProblem, limits: DeviceLimits) -> list[Tile]:
    """Every config but those that are certain to fail, to spill or to equal another one.

    Triton keeps at least stages - 1 buffers of K and of V; scores and output are fp32 in the registers of the program's
    threads; no more stages than key tiles are ever under way.
    """
    found = []
    for tile in itertools.starmap(Tile, itertools.product(BLOCKS_M, BLOCKS_N, WARPS, STAGES)):
        smem_bytes = 2 * 2 * problem.head_dim * tile.block_n * max(tile.stages - 1, 1)
        registers = tile.block_m * (problem.head_dim + tile.block_n) // (32 * tile.warps)
        if smem_bytes > limits.smem_per_block or registers > limits.registers_per_thread:
            continue
        if tile.stages > max(-(-problem.seq_k // tile.block_n), 1):
            continue
        found.append(tile)
    return found


def tune(
    problem: AttentionProblem, inputs: Sequence[torch.Tensor], limits: DeviceLimits, clock: Stopwatch
) -> tuple[Call, str]:
    """The fastest config on this card as a call, and a line that says which one it is.

    Every config gets one window, the best `FINALISTS` are then timed in turn by the clock of the candidates.

    Raises:
        Unavailable: Triton is not installed, the head_dim is no power of two, or no config runs.
    """
    try:
        import triton
    except ImportError as error:
        raise Unavailable(f"triton is not installed ({error})") from error
    if problem.head_dim & (problem.head_dim - 1):
        raise Unavailable(f"a Triton block is a power of two, head_dim {problem.head_dim} is not")
    output = torch.empty_like(inputs[0])
    makers = {tile: launcher(problem, inputs, output, tile) for tile in tiles(problem, limits)}
    # What does not compile fails again, with its reason, when it is called below.
    with (
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
        triton.AsyncCompileMode(pool, ignore_errors=True),
    ):
        for make in makers.values():
            make(True)
    estimates: dict[Tile, float] = {}
    failures: list[str] = []
    for tile, make in makers.items():
        try:
            make(False)
            estimates[tile] = clock.estimate_call(lambda make=make: make(False))  # type: ignore[misc]
        except FatalCudaError:
            raise
        except Exception as error:  # out of resources, or a compiler that gives up: one config less
            failures.append(f"{type(error).__name__}: {error}")
    if not estimates:
        raise Unavailable(f"none of {len(makers)} configs runs: {failures[0] if failures else 'none fits the card'}")
    best = sorted(estimates, key=lambda tile: estimates[tile])[:FINALISTS]
    calls: list[Call] = [lambda make=makers[tile]: make(False) for tile in best]  # type: ignore[misc]
    medians = clock.median_us(calls)
    winner = medians.index(min(medians))
    failed = f", {len(failures)} of them do not run" if failures else ""
    return calls[winner], f"{best[winner]}: the best of {len(makers)} configs{failed}; triton {triton.__version__}"


def launcher(
    problem: AttentionProblem, inputs: Sequence[torch.Tensor], output: torch.Tensor, tile: Tile
) -> Callable[[bool], torch.Tensor]:
    """A function that compiles the kernel (True), or launches it on Q, K, V (False) and returns `output`."""
    from evoengine.devices.cuda.baselines.triton_kernel import attention_forward

    query, key, value = inputs
    grid = (-(-problem.seq_q // tile.block_m), problem.heads, problem.batch)
    arguments = (
        query,
        key,
        value,
        output,
        problem.scale * math.log2(math.e),
        problem.seq_q,
        problem.seq_k,
        problem.heads,
        problem.heads // problem.kv_heads,
        problem.diagonal,
    )
    options = {
        "HEAD_DIM": problem.head_dim,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "CAUSAL": problem.causal,
        "RAGGED_Q": problem.seq_q % tile.block_m != 0,
        "RAGGED_K": problem.seq_k % tile.block_n != 0,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }

    def launch(only_compile: bool) -> torch.Tensor:
        if only_compile:
            attention_forward.warmup(*arguments, grid=grid, **options)
        else:
            attention_forward[grid](*arguments, **options)
        return output

    return launch
