"""The host's side of the probes: for each instruction its inputs, and how its outputs are to be read.

It has what a build and a launch ask of a template's module. There is no reference: the card is the truth here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from evoengine.dtypes import Arrays, to_bits
from evoengine.space import Values
from evoengine.template import Argument, Launch, Tensor

ENTRY = "evo_probe"
LANES = 32
CHAIN_STEPS = 8
RING_TURNS = 7
"""Of a ring of two slots: every parity of both comes up twice, but the last."""

Words = NDArray[np.uint32]
Fill = Callable[[np.random.Generator, int], Words]
"""From a generator and a number of warps, words of shape (warps, 32, reads)."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One instruction, or one way to wait for others.

    `reads` and `writes` are words per lane; `result` says what the written words hold. `warps` are those of the whole
    grid, `cta_warps` those of a CTA.
    """

    name: str
    warps: int
    reads: int
    writes: int
    fill: Fill
    result: Literal["words", "fp32", "fp16", "bf16"]
    cta_warps: int = 1


def _floats(values: NDArray[Any]) -> Words:
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, np.float32).view(np.uint32)


def _special() -> Words:
    """Floats at which something changes: zeros, infinities, NaN, ends of ranges, ties."""
    around = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, 2.0**-149, -(2.0**-149), 2.0**-126, 3.4028235e38]
    # The largest fp16 is 65504, what rounds to infinity begins at 65520; its subnormals; ties in fp16 and in bf16.
    around += [65504.0, 65519.996, 65520.0, -65536.0, 2.0**-24, 2.0**-25, 1.5 * 2.0**-25, 2.0**-14 - 2.0**-26]
    around += [1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 3.3961775e38, 2.0**-133, 2.0**-134]
    nans = np.array([0x7FC00000, 0xFFC00001, 0x7F800001, 0x7FFFFFFF], np.uint32)
    return np.concatenate([_floats(np.array(around)), nans])


def _any_floats(rng: np.random.Generator, shape: tuple[int, ...]) -> Words:
    """Random bits, so that every exponent comes up, a quarter of them replaced by special floats."""
    words = rng.integers(0, 2**32, shape, np.uint32)
    return np.where(rng.random(shape) < 0.25, rng.choice(_special(), shape), words)


def _mma(dtype: str, steps: int) -> Fill:
    """C, then A and B of each step; warp w takes one of seven kinds of number."""
    # Exponents whose products stay finite: fp16 ends at 2^15; bf16 reaches down into float32's subnormals.
    wide = (-12, 6) if dtype == "fp16" else (-30, 30)
    tiny = 2.0**-24 if dtype == "fp16" else 2.0**-133

    def fill(rng: np.random.Generator, warps: int) -> Words:
        kind = np.arange(warps)[:, None, None] % 7
        halves = rng.standard_normal((warps, LANES, 12 * steps), np.float32)
        c = rng.standard_normal((warps, LANES, 4), np.float32)
        c = np.where(kind == 1, 0.0, c)
        halves = np.where(kind == 2, np.ldexp(halves, rng.integers(*wide, halves.shape)), halves)
        c = np.where(kind == 2, np.ldexp(c, rng.integers(-24, 24, c.shape)), c)
        subnormal = rng.integers(-127, 128, halves.shape) * tiny
        halves = np.where((kind == 3) & (rng.random(halves.shape) < 0.5), subnormal, halves)
        c = np.where(kind == 3, c * tiny, c)
        c = np.where(kind == 4, np.round(c * 2.0**20), c)  # products far below C: their low bits go
        halves = np.where(kind == 5, np.ldexp(halves, -7 if dtype == "fp16" else -70), halves)
        c = np.where(kind == 5, np.ldexp(c, -140), c)
        # In A and C alone: an infinite product of B's would meet one of the other sign, or zero, in every element.
        rare = rng.choice(np.array([np.inf, -np.inf, np.nan, 0.0], np.float32), halves.shape)
        in_a = np.arange(12 * steps) % 12 < 8
        halves = np.where((kind == 6) & in_a & (rng.random(halves.shape) < 0.01), rare, halves)
        c = np.where((kind == 6) & (rng.random(c.shape) < 0.05), np.float32(-np.inf), c)
        packed = np.ascontiguousarray(to_bits(halves.astype(np.float32), dtype)).view(np.uint32)
        return np.concatenate([_floats(c), packed], axis=2)

    return fill


def _ldmatrix(rng: np.random.Generator, warps: int) -> Words:
    rows = rng.integers(0, 2**32, (warps, LANES, 4), np.uint32)
    return np.concatenate([rows, rng.integers(0, LANES, (warps, LANES, 1), np.uint32)], axis=2)


def _shfl(rng: np.random.Generator, warps: int) -> Words:
    """Lane operands up to 63, past the warp; the first warps have the clamp of __shfl, the others any."""
    shape = (warps, LANES, 1)
    usual = rng.choice(np.array([0, 31, 0x1C1F, 0x181F, 0x1800], np.uint32), (warps, 1, 1))
    anything = rng.integers(0, 2**13, shape, np.uint32)
    clamp = np.where(np.arange(warps)[:, None, None] < warps // 2, usual, anything)
    return np.concatenate([rng.integers(0, 2**32, shape, np.uint32), rng.integers(0, 64, shape, np.uint32), clamp], 2)


def _vote(rng: np.random.Generator, warps: int) -> Words:
    """None, all, all but one, one, then about half."""
    yes = rng.integers(0, 2, (warps, LANES, 1), np.uint32)
    yes[:4, :, 0] = np.array([0, 1, 1, 0], np.uint32)[:, None]
    yes[2, 31], yes[3, 17] = 0, 1
    return yes


def _cp_async(rng: np.random.Generator, warps: int) -> Words:
    words = rng.integers(0, 2**32, (warps, LANES, 8), np.uint32)
    words[:, :, 4] = np.arange(warps * LANES).reshape(warps, LANES) % 17
    return words


def _ex2(rng: np.random.Generator, warps: int) -> Words:
    """Exponents that softmax has (-40 to 0) in half of the warps, every finite result in a quarter, then anything."""
    shape = (warps, LANES, 1)
    kind = np.arange(warps)[:, None, None] % 4
    finite = np.where(kind < 2, rng.uniform(-40, 0, shape), rng.uniform(-150, 129, shape))
    return np.where(kind == 3, _any_floats(rng, shape), _floats(finite))


def _pairs(rng: np.random.Generator, warps: int) -> Words:
    """Every ordered pair of special floats, then any: signed zeros and NaNs meet in both orders."""
    words = _any_floats(rng, (warps * LANES, 2))
    first, second = np.meshgrid(_special(), _special())
    words[: first.size] = np.stack([first.ravel(), second.ravel()], axis=1)
    return words.reshape(warps, LANES, 2)


def _arithmetic(rng: np.random.Generator, warps: int) -> Words:
    """Numbers of one size, where the sum of fma cancels, in half of the warps; anything in the others."""
    shape = (warps, LANES, 3)
    near = rng.standard_normal(shape, np.float32)
    near[:, :, 2] = -near[:, :, 0] * near[:, :, 1] * rng.choice(np.array([1, 1, 0.5, 3], np.float32), shape[:2])
    return np.where(np.arange(warps)[:, None, None] % 2 == 0, _floats(near), _any_floats(rng, shape))


def _half_mma(rng: np.random.Generator, warps: int) -> Words:
    """C, A and B of one size; warp w has C alone, products far below C, subnormals, or sums beyond 65504."""
    kind = np.arange(warps)[:, None, None] % 5
    halves = rng.standard_normal((warps, LANES, 16), np.float32)
    factors = halves[:, :, 4:]
    factors *= np.select([kind == 1, kind == 2, kind == 3, kind == 4], [0.0, 2.0**-5, 2.0**-8, 2.0**7], 1.0)
    halves[:, :, :4] *= np.where(kind == 3, 2.0**-14, 1.0)
    return np.ascontiguousarray(to_bits(halves, "fp16")).view(np.uint32)


def _half_ex2(rng: np.random.Generator, warps: int) -> Words:
    """Every half-precision number: the even words low, the odd ones high."""
    return np.arange(2**16, dtype=np.uint16).view(np.uint32).reshape(warps, LANES, 1)


def _words(reads: int) -> Fill:
    return lambda rng, warps: rng.integers(0, 2**32, (warps, LANES, reads), np.uint32)


PROBES = (
    Probe("mma_f16", 42, 10, 4, _mma("fp16", 1), "fp32"),
    Probe("mma_bf16", 42, 10, 4, _mma("bf16", 1), "fp32"),
    Probe("mma_chain_f16", 14, 4 + 6 * CHAIN_STEPS, 4, _mma("fp16", CHAIN_STEPS), "fp32"),
    Probe("mma_chain_bf16", 14, 4 + 6 * CHAIN_STEPS, 4, _mma("bf16", CHAIN_STEPS), "fp32"),
    Probe("ldmatrix_x4", 4, 5, 4, _ldmatrix, "words"),
    Probe("ldmatrix_x4_trans", 4, 5, 4, _ldmatrix, "words"),
    Probe("shfl_bfly", 16, 3, 2, _shfl, "words"),
    Probe("shfl_idx", 16, 3, 2, _shfl, "words"),
    Probe("shfl_up", 16, 3, 2, _shfl, "words"),
    Probe("shfl_down", 16, 3, 2, _shfl, "words"),
    Probe("cp_async_16", 6, 8, 4, _cp_async, "words"),
    Probe("cvt_rn_f16x2", 64, 2, 1, _pairs, "fp16"),
    Probe("cvt_rn_bf16x2", 64, 2, 1, _pairs, "bf16"),
    Probe("ex2_approx_ftz", 96, 1, 1, _ex2, "fp32"),
    Probe("max_f32", 64, 2, 1, _pairs, "fp32"),
    Probe("fma_add_mul_rcp_div", 48, 3, 5, _arithmetic, "fp32"),
    Probe("vote_any_all_ballot", 8, 1, 3, _vote, "words"),
    Probe("mma_half_f16", 30, 8, 2, _half_mma, "fp16"),
    Probe("ex2_approx_f16x2", 1024, 1, 1, _half_ex2, "fp16"),
    Probe("mbarrier_ring", 8, 4 * (1 + RING_TURNS), 4, _words(4 * (1 + RING_TURNS)), "words", cta_warps=2),
    Probe("last_cta", 12, 1, 1, _words(1), "words", cta_warps=2),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeProblem:
    """One probe on its inputs, by its place in PROBES."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("number",)

    number: int = 0

    @property
    def probe(self) -> Probe:
        return PROBES[self.number]

    @property
    def label(self) -> str:
        return self.probe.name

    @property
    def flops(self) -> int:
        return 0

    @property
    def bytes_moved(self) -> int:
        return 4 * LANES * self.probe.warps * (self.probe.reads + self.probe.writes)


def defines(values: Values, problem: ProbeProblem) -> dict[str, int]:
    probe = problem.probe
    return {
        "EVO_PROBE": problem.number,
        "EVO_READS": probe.reads,
        "EVO_WRITES": probe.writes,
        "EVO_THREADS": LANES * probe.cta_warps,
    }


def launch(values: Values, problem: ProbeProblem) -> Launch:
    probe = problem.probe
    return Launch((probe.warps // probe.cta_warps, 1, 1), LANES * probe.cta_warps, 0)


def tensors(problem: ProbeProblem) -> tuple[Tensor, ...]:
    """Words travel as fp32: bits that nothing converts."""
    probe = problem.probe
    return (
        Tensor("x", "input", (probe.warps, LANES, probe.reads), "fp32"),
        Tensor("y", "output", (probe.warps, LANES, probe.writes), "fp32"),
        Tensor("parts", "scratch", (probe.warps, LANES), "fp32"),
        Tensor("count", "scratch", (1,), "int32"),
    )


def arguments(values: Values, problem: ProbeProblem) -> tuple[Argument, ...]:
    return tuple(Argument("tensor", tensor.name) for tensor in tensors(problem))


def inputs(problem: ProbeProblem, seed: int) -> Arrays:
    probe = problem.probe
    words = probe.fill(np.random.default_rng([seed, problem.number]), probe.warps)
    return {"x": np.ascontiguousarray(words, np.uint32).view(np.float32)}
