"""How far the interpreter is from the card: one case interpreted, and its output held against the recorded words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.calibration.cases import Case
from benchmarks.calibration.probes import CHAIN_STEPS, LANES, ProbeProblem
from evoengine.devices.interpreter import MODES, Program, execute
from evoengine.devices.interpreter.trial import initial_words
from evoengine.dtypes import BITS, ROUNDING, from_bits

Words = NDArray[np.unsignedinteger]

MMA_BOUND = 2.0**-20
"""Of |C| + sum |A| |B| and per mma. The card aligns its 17 terms to the largest and cuts them off a few bits below
float32's last place; numpy rounds each sum in float32."""
HALF_MMA_BOUND = 3 * 2.0**-11
"""The same with half-precision sums: the card may round two of them, numpy rounds one."""
EX2_ULPS = 2
"""Of ex2.approx.ftz.f32, over its whole range: the error that the CUDA Programming Guide 13.0 gives for exp2f."""
EX2_HALF_ULPS = 3
"""Of ex2.approx.f16x2: the PTX ISA 9.0 allows a relative error of 2^-9.9, which is up to 2.2 ulps; ours is rounded."""
ATTENTION_BOUND = 0.5
"""Relative Frobenius difference of attention outputs, in units of the dtype's rounding (2^-11, 2^-8)."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Between two outputs of one case. Any NaN equals any NaN; `nan_payloads` counts those whose bits differ.

    `classes` counts elements of which one is NaN or infinite and the other is not that. The other figures are over
    elements that are finite in both: `ulps` counts representable numbers between two, `relative` is the Frobenius norm
    of the difference over that of the card's output, `of_terms` the largest difference over the sum of the magnitudes
    that mma added up (0 for other probes).
    """

    elements: int
    unequal: int
    nan_payloads: int
    classes: int
    ulps: int
    relative: float
    of_terms: float


def interpret(case: Case, ptx: str) -> Words:
    """The output that a case's PTX gives in the interpreter, in its first mode: other tests compare the modes."""
    module = case.template.module
    inputs = case.inputs()
    tensors = module.tensors(case.launched)
    initial = {tensor.name: initial_words(tensor, inputs) for tensor in tensors}
    arguments = [argument.value for argument in module.arguments(case.values, case.launched)]
    launch = module.launch(case.values, case.launched)
    done = execute(Program(ptx, module.ENTRY), launch, arguments, initial, modes=MODES[:1])
    left: Words = done.buffers[0][case.output].view(initial[case.output].dtype)
    return left


def difference(case: Case, card: Words, interpreted: Words) -> Difference:
    """Compare the recorded part of two outputs of a case."""
    if case.result == "words":
        unequal = int((card != interpreted).sum())
        return Difference(len(card), unequal, 0, 0, 0, 0.0, 0.0)
    bits = BITS[case.result]
    theirs, ours = card.view(bits.newbyteorder("<")), interpreted.view(bits.newbyteorder("<"))
    a, b = from_bits(theirs, case.result), from_bits(ours, case.result)
    both_nan = np.isnan(a) & np.isnan(b)
    finite = np.isfinite(a) & np.isfinite(b)
    exact, near = a[finite].astype(np.float64), b[finite].astype(np.float64)
    norm = float(np.linalg.norm(exact))
    sizes = magnitudes(case)[finite] if _is_mma(case) else np.inf
    return Difference(
        elements=len(a),
        unequal=int(((theirs != ours) & ~both_nan).sum()),
        nan_payloads=int(((theirs != ours) & both_nan).sum()),
        classes=int((~finite & ~both_nan & (theirs != ours)).sum()),
        ulps=int(np.abs(_ordered(theirs) - _ordered(ours))[finite].max(initial=0)),
        relative=float(np.linalg.norm(near - exact)) / (norm or 1.0),
        of_terms=float((np.abs(near - exact) / sizes).max(initial=0.0)),
    )


def disagreement(case: Case, seen: Difference) -> str:
    """Why a difference is more than this case may have, with the numbers; empty where it is not."""
    if seen.classes:
        return f"{seen.classes} of {seen.elements} are NaN or infinite on one side alone"
    if _is_mma(case):
        bound = HALF_MMA_BOUND if case.result == "fp16" else MMA_BOUND * (CHAIN_STEPS if "chain" in case.name else 1)
        return f"off by {seen.of_terms:.3g} of its terms, over {bound:.3g}" if seen.of_terms > bound else ""
    if case.name.startswith("ex2"):
        most = EX2_HALF_ULPS if case.result == "fp16" else EX2_ULPS
        return f"off by {seen.ulps} ulps, over {most}" if seen.ulps > most else ""
    if case.is_probe:
        return f"{seen.unequal} of {seen.elements} differ in an exact instruction" if seen.unequal else ""
    bound = ATTENTION_BOUND * ROUNDING[case.result]
    return f"relative difference {seen.relative:.3g}, over {bound:.3g}" if seen.relative > bound else ""


def _is_mma(case: Case) -> bool:
    return case.name.startswith("mma")


def _ordered(words: Words) -> NDArray[np.int64]:
    """Floats of one width as integers in their order, neighbours one apart; both zeros are 0."""
    sign = 1 << (words.dtype.itemsize * 8 - 1)
    signed = words.astype(np.int64)
    return np.where(signed & sign, sign - signed, signed)


def magnitudes(case: Case) -> NDArray[np.float64]:
    """|C| + sum |A| |B| of every output element of an mma probe, flat, in the order of the output words.

    Fragment layouts: PTX ISA 9.0, mma.m16n8k16. At least the smallest normal number of the result's type, under which
    its own spacing is constant.
    """
    assert isinstance(case.launched, ProbeProblem)
    words = case.inputs()["x"].view(np.uint32).reshape(case.launched.probe.warps, LANES, -1)
    dtype = "fp16" if "_f16" in case.name else "bf16"
    lane = np.arange(LANES)
    row, pair = lane // 4, lane % 4 * 2
    c_words = words.shape[2] % 6  # 4 in float32, 2 in half precision
    c = from_bits(np.ascontiguousarray(words[:, :, :c_words]).view(BITS[case.result]), case.result)
    total = np.abs(c.astype(np.float64))
    for step in range(c_words, words.shape[2], 6):
        halves: NDArray[Any] = from_bits(np.ascontiguousarray(words[:, :, step : step + 6]).view(np.uint16), dtype)
        a, b = np.zeros((len(words), 16, 16)), np.zeros((len(words), 16, 8))
        for i in range(8):
            a[:, row + 8 * (i // 2 % 2), pair + i % 2 + 8 * (i // 4)] = np.abs(halves[:, :, i])
        for i in range(4):
            b[:, pair + i % 2 + 8 * (i // 2), row] = np.abs(halves[:, :, 8 + i])
        with np.errstate(invalid="ignore"):
            product = a @ b
        for i in range(4):
            total[:, :, i] += product[:, row + 8 * (i // 2), pair + i % 2]
    smallest = 2.0**-14 if case.result == "fp16" else 2.0**-126
    flat: NDArray[np.float64] = np.maximum(np.nan_to_num(total, nan=np.inf), smallest).reshape(-1)
    return flat
