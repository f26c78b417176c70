"""The correctness rule: right outputs pass, and every planted bug of a flash-attention kernel is refused."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from evoengine.dtypes import from_bits, rounded, to_bits
from evoengine.errors import TemplateError, UserError
from evoengine.oracle import POISON, InputSet, Observed, check, make_input_set
from evoengine.problem import AttentionProblem, parse_shape
from evoengine.template import Template, TemplateModule, Tensor, load_template, shipped
from evoengine.verdict import Check

TEMPLATE = load_template(shipped("kernel_templates") / "attention")
TILE = 64

SHAPES = (
    "1,2,512,64",
    "1,2,512,64,causal",
    "2,4,203,64,kv_heads=2,seq_k=331",
    "2,4,203,64,kv_heads=2,seq_k=331,causal,diagonal=128",
    "2,4,203,64,kv_heads=2,seq_k=331,causal,diagonal=-3",
    "1,1,512,128",
    "1,1,1,64,seq_k=700",
)
DTYPES = ("fp16", "bf16")
ONLY = "values are not the -inf, the zero or the exact number that they should be"


@cache
def input_set(shape: str, dtype: str = "fp16") -> InputSet:
    return make_input_set(TEMPLATE, parse_shape(AttentionProblem, f"{shape},dtype={dtype}"), 7, "planted")


def flash(made: InputSet, bug: str = "", tile: int = TILE) -> NDArray[np.float32]:
    """Tiled attention with an online softmax: fp32 sums, P rounded to the dtype; `bug` says what is wrong with it."""
    problem = cast(AttentionProblem, made.problem)
    out = np.zeros((problem.batch, problem.heads, problem.seq_q, problem.head_dim), np.float32)
    for b, h in np.ndindex(problem.batch, problem.heads):
        kv = h * problem.kv_heads // problem.heads
        if bug == "wrong key head":
            kv = h % problem.kv_heads
        out[b, h] = _flash_head(
            made.inputs["q"][b, h], made.inputs["k"][b, kv], made.inputs["v"][b, kv], problem, bug, tile
        )
    return out


def _flash_head(
    q: NDArray[np.float32],
    k: NDArray[np.float32],
    v: NDArray[np.float32],
    problem: AttentionProblem,
    bug: str,
    tile: int,
) -> NDArray[np.float32]:
    scale = np.float32(problem.scale * (1.01 if bug == "scale off by 1 %" else 1.0))
    diagonal = problem.diagonal + {"causal one key too many": 1, "causal one key too few": -1}.get(bug, 0)
    starts = list(range(0, problem.seq_k, tile))
    if bug == "last tile dropped":
        starts.pop()
    row_max = np.full((problem.seq_q, 1), -np.inf, np.float32)
    row_sum = np.zeros((problem.seq_q, 1), np.float32)
    out = np.zeros((problem.seq_q, problem.head_dim), np.float32)
    for start in starts:
        stop = min(start + tile, problem.seq_k)
        keys, values = k[start:stop], v[start:stop]
        if start == tile:
            if bug == "stale V tile":
                values = v[: stop - start]
            if bug == "stale K row":
                keys = np.concatenate([k[:1], keys[1:]])
        scores = q @ keys.T * scale
        if problem.causal:
            row, key = np.arange(problem.seq_q)[:, None], np.arange(start, stop)[None, :]
            scores = np.where(key > row + diagonal, np.float32(-np.inf), scores)
        highest = np.maximum(row_max, scores.max(axis=1, keepdims=True))
        base = np.where(np.isfinite(highest), highest, np.float32(0))
        p = np.exp(scores - base)
        rescale = np.exp(row_max - base)
        row_sum = row_sum * rescale + p.sum(axis=1, keepdims=True)
        if not (bug == "a rescale missing" and start == starts[-1]):
            out = out * rescale
        out = out + rounded(p, problem.dtype) @ values
        row_max = highest
    return np.asarray(out / np.where(row_sum > 0, row_sum, np.float32(1)), np.float32)


def spoil(out: NDArray[np.float32], made: InputSet, bug: str) -> None:
    """Bugs that show in the finished output."""
    match bug:
        case "two rows swapped":
            out[0, 0, [7, 8]] = out[0, 0, [8, 7]]
        case "last row zero":
            out[-1, -1, -1] = 0
        case "all zeros":
            out[:] = 0
        case "mean of V":
            out[:] = made.inputs["v"].mean(axis=2, keepdims=True).repeat(out.shape[1] // made.inputs["v"].shape[1], 1)
        case "one value NaN":
            out[0, -1, 5, 3] = np.nan
        case "overflow":
            out[0, 0, 9, 9] = np.inf
        case "three of four rows unwritten":
            for quarter in (1, 2, 3):
                out[:, :, quarter::4] = 0


def judge(made: InputSet, out: NDArray[np.float32], **conduct: int | bool) -> Check:
    dtype = cast(AttentionProblem, made.problem).dtype
    return check(TEMPLATE, made, Observed({"o": to_bits(out, dtype)}, **conduct))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tile", [16, 64, 512])
def test_a_correct_kernel_passes_with_room_to_spare(shape: str, dtype: str, tile: int) -> None:
    made = input_set(shape, dtype)
    verdict = judge(made, flash(made, tile=tile), repeats=50, seconds=0.5)

    assert "" == verdict.reason
    assert verdict.max_abs < 1.5 * verdict.baseline_max_abs
    assert verdict.rel_fro < 0.75 * verdict.baseline_rel_fro
    assert ("planted", made.problem.label, 7, 50, 0.5, 0) == (
        verdict.input_set,
        verdict.shape,
        verdict.seed,
        verdict.repeats,
        verdict.seconds,
        verdict.nonfinite,
    )


BUGS = (
    "scale off by 1 %",
    "last tile dropped",
    "stale V tile",
    "stale K row",
    "a rescale missing",
    "two rows swapped",
    "last row zero",
    "all zeros",
    "mean of V",
    "three of four rows unwritten",
    "one value NaN",
    "overflow",
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ["1,2,512,64", "2,4,203,64,kv_heads=2,seq_k=331"])
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_refused(bug: str, shape: str, dtype: str) -> None:
    made = input_set(shape, dtype)
    out = flash(made, bug)
    spoil(out, made, bug)
    verdict = judge(made, out)

    assert "" != verdict.reason
    if bug in ("one value NaN", "overflow"):
        assert (1, "1 values are NaN or infinite") == (verdict.nonfinite, verdict.reason)
    else:
        assert "over 2x the baseline's" in verdict.reason
        assert verdict.max_abs > 2 * verdict.baseline_max_abs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bug", ["causal one key too many", "causal one key too few"])
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if "causal" in shape])
def test_a_mask_that_is_off_by_one_is_refused(bug: str, shape: str, dtype: str) -> None:
    made = input_set(shape, dtype)

    assert "" != judge(made, flash(made, bug)).reason


def test_a_kernel_that_reads_the_wrong_key_head_is_refused() -> None:
    made = input_set("2,4,203,64,kv_heads=2,seq_k=331")

    assert "" != judge(made, flash(made, "wrong key head")).reason


def test_a_fixed_tolerance_would_have_accepted_what_is_refused_here() -> None:
    made = input_set("1,1,2048,64")
    out = flash(made, "scale off by 1 %")

    assert np.allclose(out, made.reference["o"], rtol=1e-2, atol=1.1e-2)
    assert "" != judge(made, out).reason


@pytest.mark.parametrize(
    ("conduct", "reason"),
    [
        ({"poison_left": 3}, "3 output words were never written"),
        ({"guard_hits": 2}, "2 guard words outside a buffer were overwritten"),
        ({"inputs_changed": True}, "the kernel changed its inputs"),
        ({"repeats": 50, "repeat_mismatches": 4}, "4 of 50 repeats differ bit for bit: a race"),
    ],
)
def test_a_right_answer_does_not_excuse_misconduct(conduct: dict[str, int | bool], reason: str) -> None:
    made = input_set("1,2,512,64")
    verdict = judge(made, flash(made), **conduct)

    assert reason == verdict.reason
    for name, value in conduct.items():
        assert value == getattr(verdict, name)


def limits(made: InputSet) -> tuple[float, NDArray[np.float64], float]:
    """The baseline's maximum error, its relative norm for each head, and that of its worst row."""
    truth, baseline = made.reference["o"], made.baseline["o"].astype(np.float64)
    error = baseline - truth
    slices = np.sqrt(np.square(error).sum(axis=(-2, -1)) / np.square(truth).sum(axis=(-2, -1)))
    rows = np.sqrt(np.square(error).sum(axis=-1) / np.square(truth).sum(axis=-1))
    return float(np.abs(error).max()), slices, float(rows.max())


def test_noise_all_over_one_head_is_refused_though_no_value_is_far_off() -> None:
    made = input_set("1,2,512,64")
    peak, slices, _ = limits(made)
    out = flash(made)
    truth = made.reference["o"][0, 1]
    signs = np.random.default_rng(0).choice([-1.0, 1.0], truth.shape)
    out[0, 1] = truth + 3 * slices[0, 1] * np.sqrt(np.square(truth).mean()) * signs
    verdict = judge(made, out)

    assert verdict.max_abs < 2 * peak
    assert "of slice 1 is over" in verdict.reason
    assert pytest.approx(3 * slices[0, 1], rel=0.05) == verdict.rel_fro


def test_one_noisy_row_is_refused_though_no_value_and_no_head_is_far_off() -> None:
    made = input_set("1,2,512,64")
    peak, slices, worst = limits(made)
    out = flash(made)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], 64)
    out[0, 1, 300] = made.reference["o"][0, 1, 300] + 1.5 * peak * signs
    verdict = judge(made, out)

    assert verdict.max_abs < 2 * peak
    assert verdict.rel_fro < 2 * slices.min()
    assert verdict.worst_row > 4 * worst
    assert f"row {512 + 300} has relative error" in verdict.reason


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_figures_are_those_of_their_definition_whatever_was_judged_before(dtype: str) -> None:
    made = input_set("2,4,203,64,kv_heads=2,seq_k=331,causal,diagonal=-3", dtype)
    judge(made, 2 * flash(made))
    verdict = judge(made, flash(made))
    truth, plain = made.reference["o"], made.baseline["o"].astype(np.float64)
    out = rounded(flash(made), dtype).astype(np.float64)

    def relative(values: NDArray[np.float64], axis: tuple[int, ...]) -> NDArray[np.float64]:
        norms = np.sqrt(np.square(truth).sum(axis))
        return np.sqrt(np.square(values - truth).sum(axis)) / np.maximum(norms, np.sqrt(np.square(norms).mean()))

    slices, rows = (-2, -1), (-1,)
    assert np.abs(out - truth).max() == pytest.approx(verdict.max_abs)
    assert np.abs(plain - truth).max() == pytest.approx(verdict.baseline_max_abs)
    assert relative(out, slices).max() == pytest.approx(verdict.rel_fro)
    assert relative(plain, slices).max() == pytest.approx(verdict.baseline_rel_fro)
    assert relative(out, rows).max() == pytest.approx(verdict.worst_row)
    assert (relative(out, slices) / relative(plain, slices)).max() == pytest.approx(verdict.fro_ratio)
    assert relative(out, rows).max() / relative(plain, rows).max() == pytest.approx(verdict.row_ratio)


def test_half_of_each_limit_passes() -> None:
    made = input_set("1,2,512,64")
    _, slices, _ = limits(made)
    truth = made.reference["o"]
    signs = np.random.default_rng(0).choice([-1.0, 1.0], truth.shape)
    out = (truth + slices.min() * np.sqrt(np.square(truth).mean()) * signs).astype(np.float32)

    assert "" == judge(made, out).reason


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [1e-6, -1e-6])
def test_rows_that_see_no_key_must_be_exactly_zero(dtype: str, value: float) -> None:
    made = input_set("2,4,203,64,kv_heads=2,seq_k=331,causal,diagonal=-3", dtype)
    out = flash(made)
    assert not out[:, :, :3].any()
    out[1, 2, 2, 60] = value

    assert f"1 {ONLY}" == judge(made, out).reason


@pytest.mark.parametrize("dtype", DTYPES)
def test_minus_zero_is_zero(dtype: str) -> None:
    made = input_set("2,4,203,64,kv_heads=2,seq_k=331,causal,diagonal=-3", dtype)
    out = flash(made)
    out[:, :, :3] = -0.0

    assert "" == judge(made, out).reason


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_exact_baseline_does_not_demand_an_exact_candidate(dtype: str) -> None:
    problem = AttentionProblem(heads=1, seq_q=128, dtype=dtype)
    inputs = {name: np.ones((1, 1, 128, 64), np.float32) for name in "qkv"}
    made = InputSet(
        "ones",
        problem,
        0,
        inputs,
        TEMPLATE.module.reference(problem, inputs),
        TEMPLATE.module.baseline(problem, inputs),
    )
    below_one = from_bits(to_bits(np.ones(1, np.float32), dtype) - np.uint16(1), dtype)[0]

    assert 0.0 == np.abs(made.baseline["o"] - made.reference["o"]).max()
    assert "" == judge(made, flash(made, tile=16)).reason
    assert "" == judge(made, np.full((1, 1, 128, 64), below_one, np.float32)).reason
    assert "" != judge(made, np.full((1, 1, 128, 64), 2 * below_one - 1, np.float32)).reason


def test_poison_is_nan_in_every_dtype_and_none_that_a_conversion_gives() -> None:
    words = np.array(POISON, np.uint16)
    pairs = np.array([POISON[0] << 16 | POISON[1], POISON[1] << 16 | POISON[0]], np.uint32)
    conversions = {int(to_bits(np.array([np.nan], np.float32), dtype)[0]) for dtype in DTYPES}

    for dtype in DTYPES:
        assert np.isnan(from_bits(words, dtype)).all()
    assert np.isnan(from_bits(pairs, "fp32")).all()
    assert not {*conversions, 0x7FFF} & set(POISON)  # 0x7FFF is the NaN of the device's own cvt (PTX ISA)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_output_left_poisoned_is_refused_even_if_nobody_counted(dtype: str) -> None:
    made = input_set("1,2,512,64", dtype)
    words = to_bits(flash(made), dtype).copy()
    words[0, 0, 5, :2] = POISON
    verdict = check(TEMPLATE, made, Observed({"o": words}))

    assert (2, "2 values are NaN or infinite") == (verdict.nonfinite, verdict.reason)


def test_the_same_problem_and_seed_make_the_same_inputs() -> None:
    first = make_input_set(TEMPLATE, AttentionProblem(heads=1, seq_q=16), 3, "a")
    again = make_input_set(TEMPLATE, AttentionProblem(heads=1, seq_q=16), 3, "b")
    other = make_input_set(TEMPLATE, AttentionProblem(heads=1, seq_q=16), 4, "a")

    for name in "qkv":
        np.testing.assert_array_equal(first.inputs[name], again.inputs[name])
        assert not np.array_equal(first.inputs[name], other.inputs[name])


def test_a_problem_that_overflows_its_baseline_is_refused_before_anything_passes_against_nan() -> None:
    # scores of 50 at scale 20000 are 1e6, infinite in fp16
    with pytest.raises(UserError, match=r"baseline of o is not finite at B1_H1_S64_D64_fp16_scale20000.*choose"):
        make_input_set(TEMPLATE, AttentionProblem(heads=1, seq_q=64, scale=20000.0), 0, "large")


def two_outputs(**broken: float) -> tuple[Template, InputSet]:
    """A template with a second, fp32 output beside the first; `broken` puts a value into its reference."""
    tensors = (Tensor("o", "output", (4, 8), "fp16"), Tensor("lse", "output", (4,), "fp32"))
    truth = {"o": np.linspace(1, 2, 32).reshape(4, 8), "lse": np.linspace(1, 2, 4)}
    for name, value in broken.items():
        truth[name].flat[0] = value
    module = SimpleNamespace(
        tensors=lambda problem: tensors,
        inputs=lambda problem, seed: {},
        reference=lambda problem, inputs: truth,
        baseline=lambda problem, inputs: {
            tensor.name: rounded(truth[tensor.name].astype(np.float32), tensor.dtype) for tensor in tensors
        },
    )
    template = Template(Path("two"), cast(TemplateModule, module))
    return template, make_input_set(template, AttentionProblem(), 0, "two")


def test_every_output_must_pass_and_the_failing_one_is_reported() -> None:
    template, made = two_outputs()
    right = {"o": to_bits(made.baseline["o"], "fp16"), "lse": to_bits(made.baseline["lse"], "fp32")}
    wrong = {**right, "lse": to_bits(made.baseline["lse"] * np.float32(1.001), "fp32")}
    verdict = check(template, made, Observed(wrong))

    assert "" == check(template, made, Observed(right)).reason
    assert "max error is over 2x the baseline's" in verdict.reason
    assert pytest.approx(0.002, rel=0.01) == verdict.max_abs


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_reference_that_is_not_finite_is_the_templates_fault(value: float) -> None:
    with pytest.raises(TemplateError, match=r"template two: the reference of lse is not finite"):
        two_outputs(lse=value)


def test_minus_infinity_is_right_where_the_truth_is_and_nowhere_else() -> None:
    template, made = two_outputs(lse=-np.inf)
    right = {"o": to_bits(made.baseline["o"], "fp16"), "lse": to_bits(made.baseline["lse"], "fp32")}

    def reason(index: int, value: float) -> str:
        values = made.baseline["lse"].copy()
        values[index] = value
        return check(template, made, Observed({**right, "lse": to_bits(values, "fp32")})).reason

    assert -np.inf == made.baseline["lse"][0]
    assert "" == check(template, made, Observed(right)).reason
    for value in (0.0, -1e30, np.inf, np.nan):
        assert f"1 {ONLY}" == reason(0, value)
    assert "1 values are NaN or infinite" == reason(1, -np.inf)
    assert "max error" in reason(1, 1.34)  # 4/3 is right


def test_a_baseline_that_is_minus_infinity_alone_is_refused() -> None:
    template, _ = two_outputs()
    template.module.baseline = lambda problem, inputs: {  # type: ignore[method-assign]
        "o": np.full((4, 8), -np.inf, np.float32),
        "lse": np.zeros(4, np.float32),
    }

    with pytest.raises(UserError, match="baseline of o is not finite"):
        make_input_set(template, AttentionProblem(), 0, "two")


def test_an_fp32_output_may_be_off_by_some_roundings_even_if_the_baseline_is_exact() -> None:
    template, made = two_outputs()
    exact = dict(made.baseline) | {"lse": made.reference["lse"].astype(np.float32)}
    peak = np.float32(2.0**-23)  # the last bit of 1 to 2

    def passes(bits: int) -> bool:
        words = {"o": to_bits(exact["o"], "fp16"), "lse": to_bits(exact["lse"] + bits * peak, "fp32")}
        return not check(template, made, Observed(words)).reason

    assert [True, True, False] == [passes(bits) for bits in (1, 16, 40)]
