"""The correctness rule: is this output as right as the obvious half-precision implementation?

The rule is FlashAttention's (tests/test_flash_attn.py): a kernel may be at most twice as wrong, against a
high-precision reference, as plain code in the kernel's own precision on the same input. A fixed tolerance cannot do
this job: attention's output shrinks like 1/sqrt(seq), so 1e-2 accepts a kernel that drops its last key tile at long
sequences. Held here as a maximum, as a relative Frobenius norm for each slice (each batch and head) and row by row.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from evoengine.dtypes import ROUNDING, Arrays, References, from_bits, rounded
from evoengine.errors import TemplateError, UserError
from evoengine.problem import Problem
from evoengine.template import InputKind, Template, Tensor
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


@dataclass(frozen=True, slots=True)
class Factors:
    """How much more wrong than the baseline an output may be: as a whole and in any slice, and in its worst row."""

    whole: float = BASELINE_FACTOR
    row: float = ROW_FACTOR

    @classmethod
    def of(cls, whole: float) -> Factors:
        """Both in their usual proportion."""
        return cls(whole, whole * ROW_FACTOR / BASELINE_FACTOR)


USUAL = Factors()


@dataclass(frozen=True)
class InputSet:
    """One input with its truth and its baseline, made once and used for every candidate.

    Outputs in `exact` must be the reference rounded to their dtype.
    """

    name: str
    problem: Problem
    seed: int
    inputs: Arrays
    reference: References
    baseline: Arrays
    exact: tuple[str, ...] = ()

    @cached_property
    def sha256(self) -> str:
        """Of the inputs: two checks with one digest saw the same numbers."""
        hasher = hashlib.sha256()
        for name, values in sorted(self.inputs.items()):
            hasher.update(f"{name}{values.shape}".encode())
            hasher.update(np.ascontiguousarray(values).tobytes())
        return hasher.hexdigest()


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


def make_input_set(
    template: Template, problem: Problem, seed: int, name: str, kind: InputKind | None = None
) -> InputSet:
    """Inputs, float64 reference and half-precision baseline of one problem; drawn as `kind` says.

    Raises:
        TemplateError: the reference is NaN or +inf. It may be -inf, which an output must then be too: the logarithm of
            nothing.
        UserError: the baseline is not, because the problem overflows its dtype: no error is over a limit of NaN, so
            that every output would pass.
    """
    inputs = (kind.draw if kind else template.module.inputs)(problem, seed)
    with np.errstate(over="ignore", invalid="ignore"):
        reference = template.module.reference(problem, inputs)
        baseline = template.module.baseline(problem, inputs)
    for tensor, values in reference.items():
        if not (np.isfinite(values) | np.isneginf(values)).all():
            raise TemplateError(f"template {template.name}: the reference of {tensor} is not finite at {problem.label}")
    for tensor, plain in baseline.items():
        if not (np.isfinite(plain) | (plain == reference[tensor])).all():
            raise UserError(
                f"the baseline of {tensor} is not finite at {problem.label}, so that no output could be judged by it: "
                "choose another shape or scale"
            )
    return InputSet(name, problem, seed, inputs, reference, baseline, kind.exact if kind else ())


def check(template: Template, input_set: InputSet, observed: Observed) -> Check:
    """Judge one observed output. The first output tensor carries the error figures, or the first that fails."""
    outputs = [tensor for tensor in template.module.tensors(input_set.problem) if tensor.role == "output"]
    errors = [_errors(tensor, input_set, observed.outputs[tensor.name]) for tensor in outputs]
    reported = next((one for one in errors if one.fails(USUAL)), errors[0])
    in_slice, in_row = max(errors, key=lambda one: one.fro_ratio), max(errors, key=lambda one: one.row_ratio)
    found = Check(
        input_set=input_set.name,
        shape=input_set.problem.label,
        seed=input_set.seed,
        max_abs=reported.max_abs,
        baseline_max_abs=reported.baseline_max_abs,
        rel_fro=reported.rel_fro,
        baseline_rel_fro=reported.baseline_rel_fro,
        worst_row=reported.worst_row,
        poison_left=observed.poison_left,
        guard_hits=observed.guard_hits,
        nonfinite=sum(one.nonfinite for one in errors),
        inputs_changed=observed.inputs_changed,
        repeats=observed.repeats,
        repeat_mismatches=observed.repeat_mismatches,
        seconds=observed.seconds,
        input_sha256=input_set.sha256,
        inexact=sum(one.inexact for one in errors),
        max_ratio=max(one.max_ratio for one in errors),
        fro_ratio=in_slice.fro_ratio,
        row_ratio=in_row.row_ratio,
        slice_at=in_slice.slice_at,
        row_at=in_row.row_at,
    )
    return dataclasses.replace(found, reason=failure(found))


def failure(check: Check, factors: Factors = USUAL) -> str:
    """Why a check fails under `factors`, by what is stored of it alone; empty where it passes.

    A check without ratios, of an older study, is judged by its counts, and fails where it failed then.
    """
    if check.poison_left:
        return f"{check.poison_left} output words were never written"
    if check.guard_hits:
        return f"{check.guard_hits} guard words outside a buffer were overwritten"
    if check.inputs_changed:
        return "the kernel changed its inputs"
    if check.repeat_mismatches:
        return f"{check.repeat_mismatches} of {check.repeats} repeats differ bit for bit: a race"
    if check.nonfinite:
        return f"{check.nonfinite} values are NaN or infinite"
    if check.inexact:
        return f"{check.inexact} values are not the -inf, the zero or the exact number that they should be"
    if check.max_ratio is None or check.fro_ratio is None or check.row_ratio is None:
        return check.reason
    for what, ratio, most in (
        ("max error is", check.max_ratio, factors.whole),
        (f"relative error of slice {check.slice_at} is", check.fro_ratio, factors.whole),
        (f"row {check.row_at} has relative error", check.row_ratio, factors.row),
    ):
        if ratio > most:
            return f"{what} over {most:g}x the baseline's: {ratio:.3g}x"
    return ""


@dataclass(frozen=True, slots=True)
class _Errors:
    max_abs: float
    baseline_max_abs: float
    rel_fro: float
    baseline_rel_fro: float
    worst_row: float
    max_ratio: float
    fro_ratio: float
    row_ratio: float
    slice_at: int = 0
    row_at: int = 0
    nonfinite: int = 0
    inexact: int = 0

    def fails(self, factors: Factors) -> bool:
        whole = max(self.max_ratio, self.fro_ratio)
        return bool(self.nonfinite or self.inexact or whole > factors.whole or self.row_ratio > factors.row)


def _errors(tensor: Tensor, input_set: InputSet, bits: NDArray[np.unsignedinteger]) -> _Errors:
    truth = input_set.reference[tensor.name].reshape(tensor.shape)
    baseline = input_set.baseline[tensor.name].reshape(tensor.shape).astype(np.float64)
    with np.errstate(invalid="ignore"):  # poison that was left is a signalling NaN in bf16 and fp32
        output = from_bits(bits, tensor.dtype).reshape(tensor.shape).astype(np.float64)
    nothing = np.isneginf(truth)
    nonfinite = int((~np.isfinite(output) & ~nothing).sum())
    inexact = int((output[nothing] != -np.inf).sum())
    if nonfinite or inexact:
        far = float("inf")
        return _Errors(far, 0.0, far, 0.0, far, far, far, far, nonfinite=nonfinite, inexact=inexact)
    truth, baseline, output = (np.where(nothing, 0.0, values) for values in (truth, baseline, output))
    floor = ROUNDING[tensor.dtype] * FLOOR_ROUNDINGS[tensor.dtype]
    peak = float(np.abs(truth).max())
    max_abs = float(np.abs(output - truth).max())
    baseline_max = max(float(np.abs(baseline - truth).max()), floor * peak)
    fro, baseline_fro = _relative(output, truth, (-2, -1)), _relative(baseline, truth, (-2, -1))
    slices = fro / np.maximum(baseline_fro, floor)
    row, baseline_row = _relative(output, truth, (-1,)), _relative(baseline, truth, (-1,))
    if (truth == 0.0).any():
        unseen = (truth == 0.0).all(axis=-1)  # rows that see no key
        inexact += int((output[unseen] != 0.0).sum())
    if tensor.name in input_set.exact:
        inexact += int((output != rounded(truth.astype(np.float32), tensor.dtype)).sum())
    return _Errors(
        max_abs=max_abs,
        baseline_max_abs=baseline_max,
        rel_fro=float(fro.max()),
        baseline_rel_fro=float(baseline_fro.max()),
        worst_row=float(row.max()),
        max_ratio=max_abs / baseline_max if baseline_max else 0.0,  # all of the truth is zero: `inexact` judges
        fro_ratio=float(slices.max()),
        row_ratio=float(row.max()) / max(float(baseline_row.max()), floor),
        slice_at=int(slices.argmax()),
        row_at=int(row.argmax()),
        inexact=inexact,
    )


def _relative(value: NDArray[np.float64], truth: NDArray[np.float64], axes: tuple[int, ...]) -> NDArray[np.float64]:
    """Norm of the error over norm of the truth along `axes`; rows much smaller than the average count as average."""
    axes = axes if value.ndim >= len(axes) else (-1,)
    error = np.sqrt(np.square(value - truth).sum(axis=axes))
    norm = np.sqrt(np.square(truth).sum(axis=axes))
    typical = float(np.sqrt(np.square(norm).mean()))
    return np.asarray(error / np.maximum(norm, typical if typical > 0 else 1.0), np.float64)
