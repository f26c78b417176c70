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
from dataclasses import dataclass, field
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
    _standards: dict[str, _Standard] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def sha256(self) -> str:
        """Of the inputs: two checks with one digest saw the same numbers."""
        hasher = hashlib.sha256()
        for name, values in sorted(self.inputs.items()):
            hasher.update(f"{name}{values.shape}".encode())
            hasher.update(np.ascontiguousarray(values).tobytes())
        return hasher.hexdigest()

    def standard(self, tensor: Tensor) -> _Standard:
        """What an output tensor is held against. Kept: a check at 1x8x512x64 takes 1 ms with it, 10 ms without."""
        if tensor.name not in self._standards:
            self._standards[tensor.name] = _Standard.of(tensor, self)
        return self._standards[tensor.name]


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


@dataclass(frozen=True)
class _Standard:
    """What an output tensor is held against: all that does not depend on the output, computed once an input set.

    `truth` is the reference with zeros where it is -inf (`nothing`, None where it never is). `norms` and `row_norms`
    are what errors of slices and rows are relative to, `unseen` marks rows of the truth that are zero (None: no such
    row), `exact` is the one right answer where there is but one.
    """

    truth: NDArray[np.float64]
    nothing: NDArray[np.bool_] | None
    unseen: NDArray[np.bool_] | None
    exact: NDArray[np.float32] | None
    norms: NDArray[np.float64]
    row_norms: NDArray[np.float64]
    baseline_max: float
    baseline_fro: NDArray[np.float64]
    """Of each slice, at least the floor below which no baseline is taken for better."""
    baseline_rel_fro: float
    baseline_row: float

    @classmethod
    def of(cls, tensor: Tensor, input_set: InputSet) -> _Standard:
        reference = input_set.reference[tensor.name].reshape(tensor.shape)
        plain = input_set.baseline[tensor.name].reshape(tensor.shape).astype(np.float64)
        nothing = np.isneginf(reference)
        truth = np.where(nothing, 0.0, reference) if nothing.any() else reference
        unseen = (truth == 0.0).all(axis=-1)
        error = np.where(nothing, 0.0, plain) - truth
        wrong, whole = _squares(error), _squares(truth)
        norms, row_norms = _norms(_slices(whole)), _norms(whole)
        floor = ROUNDING[tensor.dtype] * FLOOR_ROUNDINGS[tensor.dtype]
        fro = np.sqrt(_slices(wrong)) / norms
        return cls(
            truth=truth,
            nothing=nothing if nothing.any() else None,
            unseen=unseen if unseen.any() else None,
            exact=rounded(truth.astype(np.float32), tensor.dtype) if tensor.name in input_set.exact else None,
            norms=norms,
            row_norms=row_norms,
            baseline_max=max(_largest(error), floor * _largest(truth)),
            baseline_fro=np.maximum(fro, floor),
            baseline_rel_fro=float(fro.max()),
            baseline_row=max(float((np.sqrt(wrong) / row_norms).max()), floor),
        )


def _errors(tensor: Tensor, input_set: InputSet, bits: NDArray[np.unsignedinteger]) -> _Errors:
    standard = input_set.standard(tensor)
    with np.errstate(invalid="ignore"):  # poison that was left is a signalling NaN in bf16 and fp32
        output = from_bits(bits, tensor.dtype).reshape(tensor.shape).astype(np.float64)
    inexact = 0
    finite = np.isfinite(output)
    if standard.nothing is not None:
        inexact = int((output[standard.nothing] != -np.inf).sum())
        finite |= standard.nothing
    nonfinite = finite.size - int(np.count_nonzero(finite))
    if nonfinite or inexact:
        far = float("inf")
        return _Errors(far, 0.0, far, 0.0, far, far, far, far, nonfinite=nonfinite, inexact=inexact)
    if standard.nothing is not None:
        output[standard.nothing] = 0.0
    if standard.unseen is not None:  # rows that see no key
        inexact += int((output[standard.unseen] != 0.0).sum())
    if standard.exact is not None:
        inexact += int((output != standard.exact).sum())
    error = np.subtract(output, standard.truth, out=output)
    max_abs = _largest(error)
    wrong = _squares(error)
    fro, row = np.sqrt(_slices(wrong)) / standard.norms, np.sqrt(wrong) / standard.row_norms
    slices = fro / standard.baseline_fro
    most = standard.baseline_max
    return _Errors(
        max_abs=max_abs,
        baseline_max_abs=most,
        rel_fro=float(fro.max()),
        baseline_rel_fro=standard.baseline_rel_fro,
        worst_row=float(row.max()),
        max_ratio=max_abs / most if most else 0.0,  # all of the truth is zero: `inexact` judges
        fro_ratio=float(slices.max()),
        row_ratio=float(row.max()) / standard.baseline_row,
        slice_at=int(slices.argmax()),
        row_at=int(row.argmax()),
        inexact=inexact,
    )


def _squares(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum of squares of each row."""
    return np.asarray(np.einsum("...d,...d->...", values, values), np.float64)


def _slices(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums over the rows of each slice; a vector is one row and one slice."""
    return np.asarray(rows.sum(axis=-1) if rows.ndim else rows, np.float64)


def _norms(squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Norms of the truth; those much smaller than the average count as average."""
    norms = np.sqrt(squares)
    typical = float(np.sqrt(squares.mean()))
    return np.asarray(np.maximum(norms, typical if typical > 0 else 1.0), np.float64)


def _largest(values: NDArray[np.float64]) -> float:
    return max(float(values.max()), -float(values.min()))
