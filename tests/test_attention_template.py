"""The attention template: its host side against torch and the kernel's own text, its knobs against real compiles."""

from __future__ import annotations

import dataclasses
import itertools
import random
import re
import struct
import sys
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from evoengine.build import Builder, BuildRequest
from evoengine.dtypes import rounded
from evoengine.errors import TemplateError
from evoengine.gates import Ceilings, hardware_rules
from evoengine.hardware import card
from evoengine.problem import DTYPE_BYTES, AttentionProblem, parse_shape
from evoengine.space import Point, Values, load_space
from evoengine.template import load_template, shipped
from evoengine.verdict import Artifact, Gate, Rejection

TEMPLATE = load_template(shipped("kernel_templates") / "attention")
MODULE = TEMPLATE.module
TRUTH = sys.modules[MODULE.reference.__module__]
SPACE = load_space(shipped("search_spaces") / "attention.py")
WGMMA = [axis.name for axis in SPACE].index("WGMMA")
HARDWARE = hardware_rules(TEMPLATE, tuple(axis.name for axis in SPACE), Ceilings())
MISSION = AttentionProblem()
MASKED = AttentionProblem(causal=True)
"""The mission shape with a causal mask, under which no knob is out of use."""
H200 = card("h200")

SOURCES = {name: content.decode() for name, content in TEMPLATE.device_sources.items()}
MACROS = set(re.findall(r"\bEVO_[A-Z_]+\b", SOURCES["config.cuh"]))

SHAPES = (
    "1,2,64,64",
    "2,2,37,128",
    "1,4,50,64,kv_heads=2,seq_k=23",
    "1,2,33,64,causal",
    "1,4,40,64,kv_heads=1,seq_k=70,causal,diagonal=30",
    "1,2,40,64,seq_k=20,causal,diagonal=-20",
    "1,2,20,64,seq_k=50,causal,diagonal=-3",
    "1,1,1,64,seq_k=99",
    "2,1,48,64,scale=0.3",
    "1,4,40,32,kv_heads=2,seq_k=50,causal,diagonal=-3,lse",
)


def request(values: Values, problem: AttentionProblem = MISSION, **changed: int) -> BuildRequest:
    return BuildRequest({**MODULE.defines(values, problem), **changed}, MODULE.launch(values, problem).smem_bytes)


def build(requests: Sequence[BuildRequest], arch: str = "sm_89") -> list[Artifact | Rejection]:
    """Through the run's own cache: what two tests ask for is compiled once."""
    with Builder(TEMPLATE, arch, jobs=2) as builder:
        return builder.build(requests)


def machine_code(artifact: Artifact) -> bytes:
    """The kernel's instructions: its .text section, without what the cubin says about it (ELF-64, gABI)."""
    elf = artifact.cubin.read_bytes()
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    text = [
        elf[offset : offset + length]
        for name, _, _, _, offset, length in headers
        if elf[headers[names][4] + name :].startswith(f".text.{MODULE.ENTRY}\0".encode())
    ]
    assert 1 == len(text)
    return text[0]


# --- the kernel's text ---------------------------------------------------------------------------------------------


def test_the_kernel_includes_no_cuda_header() -> None:
    assert {"config.cuh", "kernel.cu"} <= set(SOURCES)
    for name, text in SOURCES.items():
        assert "#include <" not in text, name


def test_macros_are_read_in_one_place() -> None:
    for name, text in SOURCES.items():
        assert name == "config.cuh" or "EVO_" not in text, name


def test_the_host_defines_exactly_the_macros_that_the_kernel_demands() -> None:
    demanded = set(re.findall(r'#ifndef (EVO_\w+)\n#error "EVO missing \1"\n#endif', SOURCES["config.cuh"]))

    assert MACROS == demanded
    assert demanded == set(MODULE.defines(SPACE.default, MISSION))
    assert {f"EVO_{axis.name}" for axis in SPACE} < demanded


@pytest.mark.parametrize(("lse", "split"), [(False, 1), (True, 1), (False, 4), (True, 16)])
def test_arguments_follow_the_kernels_parameter_list(lse: bool, split: int) -> None:
    problem = AttentionProblem(
        batch=2, heads=6, kv_heads=2, seq_q=30, seq_k=50, causal=True, diagonal=-7, scale=0.25, dtype="bf16", lse=lse
    )
    signature = re.search(rf"\b{MODULE.ENTRY}\((.*?)\)\s*{{", SOURCES["kernel.cu"], re.DOTALL)
    assert signature is not None
    optional = dict(re.findall(r"#define ([A-Z]+)_PARAMETERS? (.+)", SOURCES["config.cuh"]))
    text = signature[1].replace("LSE_PARAMETER", optional["LSE"] if lse else "")
    text = text.replace("SPLIT_PARAMETERS", optional["SPLIT"] if split > 1 else "")
    parameters = [" ".join(parameter.split()) for parameter in text.split(",")]
    roles = {tensor.name: tensor.role for tensor in MODULE.tensors(problem)}
    scalars = {
        "seq_q": 30,
        "seq_k": 50,
        "kv_heads": 2,
        "queries_per_kv": 3,
        "diagonal": -7,
        "scale_log2": pytest.approx(0.25 * 1.4426950408889634),
    }

    declared = []
    for parameter in parameters:
        kind, name = parameter.rsplit(" ", 1)
        match kind:
            case "const u16* __restrict__":
                assert "input" == roles[name]
                declared.append(("tensor", name))
            case "u16* __restrict__" | "float* __restrict__":
                assert ("output", name == "lse") == (roles[name], kind.startswith("float"))
                declared.append(("tensor", name))
            case "float*" | "unsigned int*":  # written by one CTA and read by another: not restrict
                assert ("scratch", name == "arrivals") == (roles[name], kind.startswith("unsigned"))
                declared.append(("tensor", name))
            case "int":
                declared.append(("int32", scalars[name]))
            case "float":
                declared.append(("float32", scalars[name]))
            case _:
                pytest.fail(f"unknown parameter {parameter}")

    values = {**SPACE.default, "SPLIT_KV": split}
    assert declared == [(argument.kind, argument.value) for argument in MODULE.arguments(values, problem)]


# --- launch and problems -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seq_q", [1, 63, 64, 65, 512])
def test_the_grid_covers_every_row_once(seq_q: int) -> None:
    values = {**SPACE.default, "WARPS_M": 2, "ROW_TILES": 2, "WARPS_KV": 2, "PRODUCER_WARPS": 1, "MIN_CTAS": 3}
    problem = AttentionProblem(batch=3, heads=5, seq_q=seq_q)
    launch = MODULE.launch(values, problem)

    # 2 * 2 * 16 rows a CTA; 2 * 2 consumer warps and a producer
    assert ((seq_q + 63) // 64, 5, 3) == launch.grid
    assert ((seq_q + 63) // 64 * 4, 5, 3) == MODULE.launch({**values, "SPLIT_KV": 4}, problem).grid
    assert (5, 3, (seq_q + 63) // 64 * 4) == MODULE.launch({**values, "SPLIT_KV": 4, "HEAVY_FIRST": 1}, problem).grid
    assert (5 * 32, 3) == (launch.block, launch.min_ctas)
    assert MODULE.defines(values, problem)["EVO_SMEM_BYTES"] == launch.smem_bytes


@pytest.mark.parametrize("shape", SHAPES)
def test_tensors_have_the_problems_shapes_and_bytes(shape: str) -> None:
    problem = parse_shape(AttentionProblem, shape)
    tensors = {tensor.name: tensor for tensor in MODULE.tensors(problem)}
    inputs = MODULE.inputs(problem, 1)

    moved = [tensor for tensor in tensors.values() if tensor.role != "scratch"]
    assert problem.bytes_moved == sum(DTYPE_BYTES[tensor.dtype] * int(np.prod(tensor.shape)) for tensor in moved)
    assert {"q", "k", "v"} == set(inputs)
    for name, array in inputs.items():
        assert tensors[name].shape == array.shape
        np.testing.assert_array_equal(rounded(array, "fp16"), array)
    assert {name: array.shape for name, array in MODULE.reference(problem, inputs).items()} == {
        name: tensor.shape for name, tensor in tensors.items() if tensor.role == "output"
    }


@pytest.mark.parametrize("shape", ["1,8,512,64", "1,8,512,128,causal,dtype=bf16", "1,1,1,64,seq_k=1"])
def test_problems_to_check_run_the_same_cubin_through_its_ragged_ends(shape: str) -> None:
    problem = parse_shape(AttentionProblem, shape)
    values = {**SPACE.default, "STAGES": 3}
    checked, small = MODULE.check_problems(values, problem), MODULE.small_problems(values, problem)

    for other in (*checked, *small):
        assert isinstance(other, AttentionProblem)
        assert MODULE.defines(values, problem) == MODULE.defines(values, other)
        assert other.seq_q % 16
        assert other.seq_k % 16
        assert other.seq_q != other.seq_k
        assert other.heads > other.kv_heads
    for problems in (checked, small):  # 64 rows a CTA, 64 keys a tile
        assert any(other.seq_q > 64 and other.seq_k > (3 + 1) * 64 for other in problems)  # refills a slot of the ring
        assert any(
            other.seq_q < 64 and other.seq_k < 64 for other in problems
        )  # keys to fill with zeros on fresh memory
    assert max(other.seq_q for other in small) < 2 * 64
    for problems in (checked, small):
        assert problem.causal == any(other.diagonal < 0 for other in problems)  # rows without a key


@pytest.mark.parametrize("shape", ["1,8,512,64", "1,8,16,128,seq_k=8192,causal,diagonal=8176", "2,1,700,96,seq_k=99"])
def test_scratch_holds_what_every_split_leaves_there(shape: str) -> None:
    problem = parse_shape(AttentionProblem, shape)
    rules = [rule for rule in SPACE.rules if rule.id in ("split_needed", "rows_used")]

    def asks_for_too_much(values: Values, other: AttentionProblem) -> bool:
        held = {tensor.name: 4 * int(np.prod(tensor.shape)) for tensor in MODULE.tensors(other)}
        return any(count > held[name] for name, count in MODULE.scratch(values, other).items())

    largest = 0
    for warps, tiles, split in itertools.product((1, 2, 4, 8), (1, 2), (1, 2, 4, 8, 16)):
        values = {**SPACE.default, "WARPS_M": warps, "ROW_TILES": tiles, "SPLIT_KV": split}
        others = (*MODULE.check_problems(values, problem), *MODULE.small_problems(values, problem))
        assert not any(asks_for_too_much(values, other) for other in others)
        if not any(rule.check(values, problem, H200) for rule in rules):
            assert not asks_for_too_much(values, problem)
            largest = max(largest, MODULE.scratch(values, problem).get("partials", 0))

    assert {} == MODULE.scratch(SPACE.default, problem)
    # 256 CTAs, rows of at least 16 queries, and for each the output, its maximum and its sum
    assert largest >= 4 * 16 * (problem.head_dim + 2) * 16


def test_a_split_beyond_the_scratch_is_the_spaces_mistake() -> None:
    huge = AttentionProblem(batch=8, heads=32)

    assert MODULE.arguments(SPACE.default, huge)
    with pytest.raises(ValueError, match="2097152 rows of partial results, scratch holds 65536"):
        MODULE.arguments({**SPACE.default, "SPLIT_KV": 16}, huge)


@pytest.mark.parametrize("split", [1, 4])
def test_the_work_of_all_ctas_is_the_work_of_the_problem(split: int) -> None:
    values = {**SPACE.default, "SPLIT_KV": split}
    launch, work = MODULE.launch(values, MISSION), MODULE.work(values, MISSION)
    rows = 2 * 64 * (2 * 512 / split + 2 * 64)  # K and V of the CTA's keys, its queries and output

    assert MISSION.flops == launch.ctas * work.tensor_flops
    assert 8 * 512 * 512 == launch.ctas * work.exponentials
    assert 512 / 64 / split == work.steps
    # a split writes and reads 64 rows of partial results, and waits for L2 at the end
    assert rows + (split > 1) * 2 * 4 * 64 * (64 + 2) == work.l2_bytes
    assert (split > 1) == (work.round_trips > 0)
    assert 4 * 64 * 64 * (split if split > 1 else 0) == work.merge_bytes


# --- truth and baseline --------------------------------------------------------------------------------------------


def scaled_dot_product(problem: AttentionProblem, inputs: dict[str, NDArray[np.float32]]) -> NDArray[np.float64]:
    """torch's answer in float64; rows without a key are whatever torch makes of them."""
    q, k, v = (torch.from_numpy(inputs[name]).double() for name in "qkv")
    mask = None
    if problem.causal:
        seen = np.arange(problem.seq_k)[None, :] <= np.arange(problem.seq_q)[:, None] + problem.diagonal
        mask = torch.from_numpy(seen)
    out = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=problem.scale, enable_gqa=True
    )
    return out.numpy()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_reference_is_torchs_attention_in_float64(shape: str) -> None:
    problem = parse_shape(AttentionProblem, shape)
    inputs = MODULE.inputs(problem, 3)
    blind = min(max(-problem.diagonal, 0), problem.seq_q) if problem.causal else 0
    truth = MODULE.reference(problem, inputs)["o"]

    np.testing.assert_allclose(truth[:, :, blind:], scaled_dot_product(problem, inputs)[:, :, blind:], 1e-12, 1e-13)
    assert not truth[:, :, :blind].any()
    assert truth[:, :, blind:].all()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_log_sum_exp_is_torchs_and_the_baselines_error_that_of_its_scores(shape: str) -> None:
    problem = dataclasses.replace(parse_shape(AttentionProblem, shape), lse=True)
    inputs = MODULE.inputs(problem, 3)
    q, k = (torch.from_numpy(inputs[name]).double() for name in "qk")
    scores = problem.scale * q @ k.repeat_interleave(problem.heads // problem.kv_heads, 1).mT
    if problem.causal:
        visible = np.arange(problem.seq_k)[None, :] <= np.arange(problem.seq_q)[:, None] + problem.diagonal
        scores = scores.masked_fill(~torch.from_numpy(visible), -torch.inf)
    expected = torch.logsumexp(scores, -1).numpy()
    truth, baseline = MODULE.reference(problem, inputs)["lse"], MODULE.baseline(problem, inputs)["lse"]
    seen = np.isfinite(expected)

    np.testing.assert_allclose(truth, expected, 1e-12, 1e-13)
    np.testing.assert_array_equal(seen, np.isfinite(baseline))
    assert 1e-6 < np.abs(baseline[seen] - truth[seen]).max() < 1e-2


def test_the_plain_causal_mask_is_torchs_own() -> None:
    problem = AttentionProblem(heads=2, seq_q=40, causal=True)
    inputs = MODULE.inputs(problem, 3)
    q, k, v = (torch.from_numpy(inputs[name]).double() for name in "qkv")
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).numpy()

    np.testing.assert_allclose(MODULE.reference(problem, inputs)["o"], expected, 1e-12, 1e-13)


def test_the_heads_of_a_large_problem_are_computed_on_threads_and_each_lands_in_its_place() -> None:
    problem = AttentionProblem(batch=2, heads=4, kv_heads=2, seq_q=1030, causal=True)
    assert problem.seq_q * problem.seq_k > TRUTH.THREADED_SCORES
    inputs = MODULE.inputs(problem, 3)
    truth = MODULE.reference(problem, inputs)["o"]
    rounded = MODULE.baseline(problem, inputs)["o"]

    np.testing.assert_allclose(truth, scaled_dot_product(problem, inputs), 1e-11, 1e-13)
    assert np.linalg.norm(rounded - truth) / np.linalg.norm(truth) < 1e-3


def test_what_fails_on_a_thread_is_not_lost() -> None:
    def fails(b: int, h: int, kv: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        TRUTH._each_head(AttentionProblem(seq_q=1030), fails)


@pytest.mark.parametrize("what", ["reference", "baseline"])
def test_long_sequences_are_computed_in_blocks_of_rows(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    long = AttentionProblem(heads=1, seq_q=40, seq_k=2**17)
    # 2^21 scores are 16 rows of 2^17 keys
    assert [slice(0, 16), slice(16, 32), slice(32, 40)] == list(TRUTH._row_blocks(long))

    problem = AttentionProblem(heads=2, seq_q=40, causal=True, diagonal=-3)
    inputs = MODULE.inputs(problem, 3)
    whole = getattr(MODULE, what)(problem, inputs)["o"]
    monkeypatch.setattr(TRUTH, "_row_blocks", lambda problem: (slice(0, 7), slice(7, 32), slice(32, 40)))

    # sums in another order: the last bit of fp64, or of fp16 where it rounds the other way
    tolerance = 1e-12 if what == "reference" else 2.0**-10
    np.testing.assert_allclose(getattr(MODULE, what)(problem, inputs)["o"], whole, tolerance, tolerance)


@pytest.mark.parametrize(("dtype", "low", "high"), [("fp16", 1e-4, 2e-3), ("bf16", 1e-3, 2e-2)])
@pytest.mark.parametrize("shape", ["1,2,512,64", *SHAPES])
def test_the_baselines_error_is_that_of_its_precision(shape: str, dtype: str, low: float, high: float) -> None:
    problem = parse_shape(AttentionProblem, f"{shape},dtype={dtype}")
    inputs = MODULE.inputs(problem, 3)
    truth, baseline = MODULE.reference(problem, inputs)["o"], MODULE.baseline(problem, inputs)["o"]
    error = np.linalg.norm(baseline - truth) / np.linalg.norm(truth)

    assert low < error < high
    np.testing.assert_array_equal(rounded(baseline, dtype), baseline)
    assert not baseline[truth == 0.0].any()


# --- compiles ------------------------------------------------------------------------------------------------------


def largest_families(points: Sequence[Point]) -> dict[str, list[Point]]:
    """For each axis the largest set of points that differ in it alone; of equal ones the closest to the default."""
    table = np.array(points)
    distance = sum(
        np.array([axis.steps(index, own) for index in range(len(axis.choices))])[column]
        for axis, own, column in zip(SPACE, SPACE.point(SPACE.default), table.T, strict=True)
    )
    places = np.cumprod([1, *(len(axis.choices) for axis in SPACE)])[:-1]
    found = {}
    for at, axis in enumerate(SPACE):
        others = table @ np.where(np.arange(len(places)) == at, 0, places)
        _, group, sizes = np.unique(others, return_inverse=True, return_counts=True)
        closest = np.where(sizes[group] == sizes.max(), distance, np.inf).argmin()
        found[axis.name] = [points[one] for one in np.flatnonzero(group == group[closest])]
    return found


@pytest.fixture(scope="module")
def families() -> dict[str, dict[Point, Artifact]]:
    """For each axis, configs that differ in it alone, compiled for an L4, and one more for each choice not among them.

    Feasible by the limits of an H200, because an L4's 99 KB hold no tile of 512 keys; the instructions are the same.
    """
    points = [point for point in SPACE.feasible(MASKED, H200, HARDWARE).points if point[WGMMA] == 0]
    asked = {name: family for name, family in largest_families(points).items() if len(family) > 1}
    asked["rest"] = [
        min(point for point in points if point[i] == choice)
        for i, axis in enumerate(SPACE)
        if axis.name in asked
        for choice in set(range(len(axis.choices))) - {point[i] for point in asked[axis.name]}
    ]
    flat = sorted({point for group in asked.values() for point in group})
    results = dict(zip(flat, build([request(SPACE.config_at(point).values, MASKED) for point in flat]), strict=True))
    refused = {
        SPACE.config_at(point).label: result for point, result in results.items() if isinstance(result, Rejection)
    }
    assert {} == refused
    return {
        name: {point: result for point in group if isinstance(result := results[point], Artifact)}
        for name, group in asked.items()
    }


@pytest.mark.parametrize("axis", [axis.name for axis in SPACE if axis.name != "WGMMA"])
def test_every_knob_changes_the_machine_code(families: dict[str, dict[Point, Artifact]], axis: str) -> None:
    built = list(families[axis].values())
    codes = {machine_code(artifact) for artifact in built}

    assert len(built) > 1
    if axis == "MIN_CTAS":  # promises that the registers keep anyway change nothing
        assert len(codes) > 1
        assert min(artifact.resources.registers for artifact in built) < max(
            artifact.resources.registers for artifact in built
        )
    else:
        assert len(built) == len(codes)
    assert len(built) == len({artifact.cubin_sha256 for artifact in built})


def test_every_choice_of_every_axis_compiles(families: dict[str, dict[Point, Artifact]]) -> None:
    built = {point: artifact for group in families.values() for point, artifact in group.items()}

    for i, axis in enumerate(SPACE):
        assert {*range(len(axis.choices))} - ({1, 2} if i == WGMMA else set()) == {point[i] for point in built}, (
            axis.name
        )
    for point, artifact in built.items():
        values = SPACE.config_at(point).values
        assert 32 < artifact.resources.registers <= 255
        assert 1 <= artifact.resources.barriers <= 16
        assert (values["PRODUCER_WARPS"] > 0 and not values["MBARRIER"]) == (artifact.resources.barriers > 1)
        assert 0 == artifact.resources.static_smem_bytes
        assert MODULE.launch(values, MISSION).smem_bytes == artifact.resources.smem_bytes


@pytest.mark.parametrize(
    "shape", ["1,8,512,64", "1,8,512,64,causal,dtype=bf16", "1,8,512,128", "1,8,512,128,causal,dtype=bf16"]
)
def test_the_shared_memory_model_is_that_of_the_compiler(shape: str) -> None:
    problem = parse_shape(AttentionProblem, shape)
    points = SPACE.feasible(problem, H200, HARDWARE).points
    sample = [SPACE.config_at(point).values for point in random.Random(shape).sample(points, 3)]
    results = build([request(values, problem) for values in sample], H200.arch)

    # storage.cuh asserts that sizeof(SharedStorage) is EVO_SMEM_BYTES
    assert [] == [result.reason for result in results if isinstance(result, Rejection)]


LOOP_BOUND = dict(SPACE.default)
MBARRIERS = {**SPACE.default, "PRODUCER_WARPS": 1, "MBARRIER": 1}
MERGE_BOUND = {**SPACE.default, "WARPS_M": 8, "WARPS_KV": 4, "STAGES": 1}


@pytest.mark.parametrize(
    ("values", "smem_bytes"),
    [
        (LOOP_BOUND, 2 * 64 * (64 + 2 * 2 * 64)),  # Q, two slots of K and V
        (MBARRIERS, 2 * 64 * (64 + 2 * 2 * 64) + 128),  # 9 barriers of 8 bytes beside it
        (MERGE_BOUND, 4 * 4 * 128 * (72 + 2)),  # 4 groups' fp32 shares of 128 rows, maximum and sum beside them
    ],
)
def test_a_model_off_by_one_unit_does_not_compile(values: Values, smem_bytes: int) -> None:
    assert smem_bytes == MODULE.launch(values, MISSION).smem_bytes
    right, *wrong = build([request(values, EVO_SMEM_BYTES=smem_bytes + difference) for difference in (0, -128, 128)])

    assert isinstance(right, Artifact)
    for result in wrong:
        assert isinstance(result, Rejection)
        assert (Gate.COMPILE, "smem_model") == (result.gate, result.evidence["rule"])


@pytest.mark.parametrize("macro", ["EVO_STAGES", "EVO_SMEM_BYTES", "EVO_CAUSAL"])
def test_a_missing_macro_is_the_templates_fault(macro: str) -> None:
    defines = {name: value for name, value in MODULE.defines(SPACE.default, MISSION).items() if name != macro}

    with pytest.raises(TemplateError, match=rf"needs the macro {macro}\b"):
        build([BuildRequest(defines, 0)])


def test_impossible_combinations_stop_the_compile_by_the_name_of_a_rule() -> None:
    wrong: list[tuple[str, Values, dict[str, int]]] = [
        ("head_dim", {}, {"EVO_HEAD_DIM": 80}),
        ("dtype", {}, {"EVO_DTYPE": 2}),
        ("mbarrier", {"MBARRIER": 1}, {}),
        ("overlap_stages", {"STAGES": 1, "OVERLAP": 1}, {}),
        ("late_loads", {"PRODUCER_WARPS": 1, "LATE_LOADS": 1}, {}),
        ("one_tile", {"OVERLAP": 1, "ONE_TILE": 1}, {}),
        ("heavy_first", {"HEAVY_FIRST": 1}, {}),
        ("row_tiles", {}, {"EVO_ROW_TILES": 3}),
        ("keys_per_warp", {"BLOCK_N": 48, "WARPS_KV": 2}, {}),
        ("threads_per_cta", {"WARPS_M": 8, "WARPS_KV": 4, "PRODUCER_WARPS": 1}, {}),
        ("split_kv", {}, {"EVO_SPLIT_KV": 0}),
        ("stages", {}, {"EVO_STAGES": 0}),
        ("named_barriers", {"STAGES": 6, "PRODUCER_WARPS": 1, "BLOCK_N": 16}, {}),
        ("wgmma_warps", {"WGMMA": 1, "WARPS_M": 2}, {}),
        ("wgmma_columns", {"WGMMA": 1, "BLOCK_N": 32}, {}),
        ("wgmma_rows", {"WGMMA": 1, "ROW_TILES": 2, "Q_IN_REGS": 0}, {}),
        ("wgmma_overlap", {"WGMMA": 1, "OVERLAP": 1}, {}),
        ("setmaxnreg_producers", {"WGMMA": 2, "PRODUCER_WARPS": 2, "STAGES": 1}, {}),
        ("setmaxnreg_registers", {"WGMMA": 2, "PRODUCER_WARPS": 4, "STAGES": 1}, {}),
        ("setmaxnreg_registers", {"WGMMA": 2, "PRODUCER_WARPS": 4, "STAGES": 1, "MIN_CTAS": 6}, {}),
    ]
    results = build([request({**SPACE.default, **values}, **macros) for _, values, macros in wrong], H200.arch)
    wrong.append(("wgmma_arch", {"WGMMA": 1}, {}))
    results += build([request({**SPACE.default, "WGMMA": 1})], "sm_90")

    assert [rule for rule, _, _ in wrong] == [
        result.evidence.get("rule") if isinstance(result, Rejection) else "compiled" for result in results
    ]
    for result in results:
        assert isinstance(result, Rejection)
        assert Gate.COMPILE == result.gate


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_90a"])
def test_the_kernel_compiles_for_the_cards_around_its_target(arch: str) -> None:
    causal = dataclasses.replace(MISSION, causal=True, dtype="bf16")
    with_producer = {**SPACE.default, "PRODUCER_WARPS": 1, "WARPS_KV": 2, "SPLIT_KV": 2}
    for result in build([request(SPACE.default), request(with_producer, causal)], arch):
        assert isinstance(result, Artifact)
        assert arch == result.arch
        assert 0 == result.resources.spill_bytes


@pytest.mark.parametrize("shape", ["1,8,512,64", "1,8,512,128,causal,dtype=bf16,lse", "1,8,512,256"])
def test_wgmma_is_built_for_hopper_without_other_multiplications(shape: str) -> None:
    problem = parse_shape(AttentionProblem, shape)
    small = {**SPACE.default, "STAGES": 1, "Q_IN_REGS": 0}
    for values in (small, {**small, "Q_IN_REGS": 1}, {**small, "WARPS_M": 8, "PRODUCER_WARPS": 2, "MBARRIER": 1}):
        by_warps, by_warpgroups = build([request({**values, "WGMMA": on}, problem) for on in (0, 1)], H200.arch)
        assert isinstance(by_warps, Artifact)
        assert isinstance(by_warpgroups, Artifact)
        assert by_warps.resources.smem_bytes == by_warpgroups.resources.smem_bytes
        assert 0 == by_warpgroups.ptx.read_text().count("mma.sync")
        assert 0 == by_warps.ptx.read_text().count("wgmma")
        # scores: 64 keys by head_dim in steps of 16; P V: 4 steps of 16 keys for each 64 columns
        assert 0 == by_warpgroups.ptx.read_text().count("wgmma.mma_async") % (2 * problem.head_dim // 16)


@pytest.mark.parametrize(
    ("changed", "at_launch", "computing"),
    [
        ({"WARPS_KV": 2, "BLOCK_N": 256, "MBARRIER": 1}, 168, 232),
        ({"WARPS_M": 8, "BLOCK_N": 128}, 168, 232),
        ({"MIN_CTAS": 2, "BLOCK_N": 128, "SPLIT_KV": 2}, 128, 216),
    ],
)
def test_producers_give_up_registers_for_wgmma(changed: dict[str, int], at_launch: int, computing: int) -> None:
    """By launch bounds alone these spill, or ptxas makes every wgmma wait for the one before (C7512)."""
    values = {**SPACE.default, "PRODUCER_WARPS": 4, "STAGES": 1, "WGMMA": 2, **changed}
    without, with_them = build([request({**values, "WGMMA": on}) for on in (1, 2)], H200.arch)
    assert isinstance(without, Artifact)
    assert isinstance(with_them, Artifact)

    given_up = re.findall(r"setmaxnreg\.(\w+)\.sync\.aligned\.u32 (\d+)", with_them.ptx.read_text())
    assert {("dec", "40"), ("inc", str(computing))} == set(given_up)
    assert at_launch == with_them.resources.registers
    assert 128 * 40 + (64 * values["WARPS_M"] * values["WARPS_KV"] // 2) * computing <= 65536 // values["MIN_CTAS"]
    assert 0 == with_them.resources.spill_bytes
    assert without.resources.smem_bytes == with_them.resources.smem_bytes
    assert 0 == without.ptx.read_text().count("setmaxnreg")


def test_problem_axes_are_compiled_in() -> None:
    problems = [
        MISSION,
        dataclasses.replace(MISSION, causal=True),
        dataclasses.replace(MISSION, dtype="bf16"),
        AttentionProblem(head_dim=128),
        dataclasses.replace(MISSION, lse=True),
    ]
    built = [result for result in build([request(SPACE.default, p) for p in problems]) if isinstance(result, Artifact)]

    assert len(problems) == len({machine_code(artifact) for artifact in built})
