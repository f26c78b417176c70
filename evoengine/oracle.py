"""The correctness rule: is this output as right as the obvious half-precision implementation?

The rule is FlashAttention's (tests/test_flash_attn.py): a kernel may be at most twice as wrong, against a
high-precision reference, as plain code in the kernel's own precision on the same input. A fixed tolerance cannot do
this job: attention's output shrinks like 1/sqrt(seq), so 1e-2 accepts a kernel that drops its last key tile at long
sequences. Held here as a maximum, as a relative Frobenius norm for each slice (each batch and head) and row by row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evoengine.dtypes import ROUNDING, Arrays, References, from_bits
from evoengine.errors import TemplateError, UserError
from evoengine.problem import Problem
from evoengine.template import Template, Tensor
from evoengine.verdict import Check

BASELINE_FACTOR = 2.0
"""How much more wrong than the baseline a candidate may be: FlashAttention's forward factor."""
ROW_FACTOR = 4.0
"""The same for the worst row, which fluctuates more; a swapped or missing row is at 1000x and more."""
FLOOR_ROUNDINGS = {"fp16": 0.5, "bf16": 0.5, "fp32": 16.0}
"""Relative error, in roundings to the output's dtype, below which no baseline is taken for better: an exact one
(all-equal inputs) must not demand an exact candidate. A half-precision output is rounded once, from fp32; an fp32
output holds the errors of fp32 arithmetic: a log-sum-exp over 16 k keys, emulated, is off by 2.2 roundings."""
POISON = (0x7FDA, 0xFFA5)
"""Two words that are NaN in fp16 and in bf16, with private payloads, alternated: no kernel computes them."""


@dataclass(frozen=True)
class InputSet:
    """One input with its truth and its baseline, made once and used for every candidate."""

    name: str
    problem: Problem
    seed: int
    inputs: Arrays
    reference: References
    baseline: Arrays


@dataclass(frozen=True, slots=True)
class Observed:
    """What was seen of one output while it was produced; bits, not values."""

    outputs: Mapping[str, NDArray[np.unsignedinteger]]
    poison_left: int = 0
    guard_hits: int = 0
    inputs_changed: bool = False
    repeats: int = 1
    repeat_mismatches: int = 0
    seconds: float = 0.0


def make_input_set(template: Template, problem: Problem, seed: int, name: str) -> InputSet:
    """Inputs, float64 reference and half-precision baseline of one problem.

    Raises:
        TemplateError: the reference is NaN or +inf. It may be -inf, which an output must then be too: the logarithm of
            nothing.
        UserError: the baseline is not, because the problem overflows its dtype: no error is over a limit of NaN, so
            that every output would pass.
    """
    inputs = template.module.inputs(problem, seed)
    with np.errstate(over="ignore", invalid="ignore"):
        reference = template.module.reference(problem, inputs)
        baseline = template.module.baseline(problem, inputs)
    for tensor, values in reference.items():
        if not (np.isfinite(values) | np.isneginf(values)).all():
            raise TemplateError(f"template {template.name}: the reference of {tensor} is not finite at {problem.label}")
    for tensor, rounded in baseline.items():
        if not (np.isfinite(rounded) | (rounded == reference[tensor])).all():
            raise UserError(
                f"the baseline of {tensor} is not finite at {problem.label}, so that no output could be judged by it: "
                "choose another shape or scale"
            )
    return InputSet(name, problem, seed, inputs, reference, baseline)


def check(template: Template, input_set: InputSet, observed: Observed) -> Check:
    """Judge one observed output. The first output tensor carries the error figures; every one must pass."""
    outputs = [tensor for tensor in template.module.tensors(input_set.problem) if tensor.role == "output"]
    errors = [_errors(tensor, input_set, observed.outputs[tensor.name]) for tensor in outputs]
    reason = _conduct(observed) or next((error.reason for error in errors if error.reason), "")
    first = next((error for error in errors if error.reason), errors[0])
    return Check(
        input_set=input_set.name,
        shape=input_set.problem.label,
        seed=input_set.seed,
        max_abs=first.max_abs,
        baseline_max_abs=first.baseline_max_abs,
        rel_fro=first.rel_fro,
        baseline_rel_fro=first.baseline_rel_fro,
        worst_row=first.worst_row,
        poison_left=observed.poison_left,
        guard_hits=observed.guard_hits,
        nonfinite=first.nonfinite,
        inputs_changed=observed.inputs_changed,
        repeats=observed.repeats,
        repeat_mismatches=observed.repeat_mismatches,
        seconds=observed.seconds,
        reason=reason,
    )


def _conduct(observed: Observed) -> str:
    if observed.poison_left:
        return f"{observed.poison_left} output words were never written"
    if observed.guard_hits:
        return f"{observed.guard_hits} guard words outside a buffer were overwritten"
    if observed.inputs_changed:
        return "the kernel changed its inputs"
    if observed.repeat_mismatches:
        return f"{observed.repeat_mismatches} of {observed.repeats} repeats differ bit for bit: a race"
    return ""


@dataclass(frozen=True, slots=True)
class _Errors:
    max_abs: float
    baseline_max_abs: float
    rel_fro: float
    baseline_rel_fro: float
    worst_row: float
    nonfinite: int
    reason: str


def _errors(tensor: Tensor, input_set: InputSet, bits: NDArray[np.unsignedinteger]) -> _Errors:
    truth = input_set.reference[tensor.name].reshape(tensor.shape)
    baseline = input_set.baseline[tensor.name].reshape(tensor.shape).astype(np.float64)
    with np.errstate(invalid="ignore"):  # poison that was left is a signalling NaN in bf16 and fp32
        output = from_bits(bits, tensor.dtype).reshape(tensor.shape).astype(np.float64)
    nothing = np.isneginf(truth)
    nonfinite = int((~np.isfinite(output) & ~nothing).sum())
    if nonfinite:
        return _Errors(np.inf, 0.0, np.inf, 0.0, np.inf, nonfinite, f"{nonfinite} values are NaN or infinite")
    something = int((output[nothing] != -np.inf).sum())
    if something:
        return _Errors(np.inf, 0.0, np.inf, 0.0, np.inf, 0, f"{something} values are not the -inf that they should be")
    truth, baseline, output = (np.where(nothing, 0.0, values) for values in (truth, baseline, output))
    floor = ROUNDING[tensor.dtype] * FLOOR_ROUNDINGS[tensor.dtype]
    peak = float(np.abs(truth).max())
    max_abs = float(np.abs(output - truth).max())
    baseline_max = max(float(np.abs(baseline - truth).max()), floor * peak)
    fro, baseline_fro = _relative(output, truth, (-2, -1)), _relative(baseline, truth, (-2, -1))
    slice_limit = BASELINE_FACTOR * np.maximum(baseline_fro, floor)
    row, baseline_row = _relative(output, truth, (-1,)), _relative(baseline, truth, (-1,))
    row_limit = ROW_FACTOR * max(float(baseline_row.max()), floor)
    rel_fro, worst_row = float(fro.max()), float(row.max())
    reason = ""
    if max_abs > BASELINE_FACTOR * baseline_max:
        reason = f"max error {max_abs:.3g} is over {BASELINE_FACTOR:g}x the baseline's {baseline_max:.3g}"
    elif (fro > slice_limit).any():
        worst = int((fro / slice_limit).argmax())
        reason = f"relative error {fro.flat[worst]:.3g} of slice {worst} is over {slice_limit.flat[worst]:.3g}"
    elif worst_row > row_limit:
        reason = f"row {int(row.argmax())} has relative error {worst_row:.3g}, over {row_limit:.3g}"
    elif output[truth == 0.0].any() and (output[(truth == 0.0).all(axis=-1)] != 0.0).any():
        reason = "a row that sees no key is not zero"
    return _Errors(max_abs, baseline_max, rel_fro, float(baseline_fro.max()), worst_row, 0, reason)


def _relative(value: NDArray[np.float64], truth: NDArray[np.float64], axes: tuple[int, ...]) -> NDArray[np.float64]:
    """Norm of the error over norm of the truth along `axes`; rows much smaller than the average count as average."""
    axes = axes if value.ndim >= len(axes) else (-1,)
    error = np.sqrt(np.square(value - truth).sum(axis=axes))
    norm = np.sqrt(np.square(truth).sum(axis=axes))
    typical = float(np.sqrt(np.square(norm).mean()))
    return np.asarray(error / np.maximum(norm, typical if typical > 0 else 1.0), np.float64)
