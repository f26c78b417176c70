"""The latency model: it must rank as the hardware does, and react to every resource it claims to know."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import fit_estimate
from evoengine.devices.estimate import (
    FITTED,
    LAUNCH_US,
    Costs,
    candidate_us,
    dram_bytes,
    estimate_us,
    expected_resources,
)
from evoengine.errors import UserError
from evoengine.hardware import CARDS
from evoengine.problem import AttentionProblem
from evoengine.space import load_space
from evoengine.template import Launch, Work, load_template, shipped
from evoengine.verdict import ResourceUsage

ROOT = Path(__file__).parent.parent
RECORDED = ROOT / "studies" / "h200" / "spaces" / "mission.jsonl.gz"
L4, H200 = CARDS["l4"], CARDS["h200"]
RESOURCES = ResourceUsage(128, 0, 0, 0, 0, 32 * 1024)
LAUNCH = Launch((58, 1, 1), 128, 32 * 1024)
WORK = Work(
    tensor_flops=8.4e6,
    exponentials=32768.0,
    l2_bytes=147456.0,
    smem_bytes=524288.0,
    steps=8.0,
    compute_warps=4,
    copies=64.0,
    registers=128,
)


@pytest.fixture(scope="module")
def mission() -> fit_estimate.Recording:
    return fit_estimate.read(RECORDED)


def test_the_recorded_mission_space_is_ranked_as_measured(mission: fit_estimate.Recording) -> None:
    judged = fit_estimate.judge(mission, FITTED)

    assert judged["configs"] > 2000
    assert judged["spearman"] >= 0.85
    assert judged["spearman_before_compiling"] >= 0.85
    assert judged["best_place_percent"] <= 5.0


@pytest.mark.parametrize("name", ["s1024", "d128"])
def test_shapes_that_were_not_fitted_are_ranked_too(name: str) -> None:
    judged = fit_estimate.judge(fit_estimate.read(RECORDED.with_name(f"{name}.jsonl.gz")), FITTED)

    assert judged["spearman"] >= 0.85
    assert judged["best_place_percent"] <= 5.0


@pytest.mark.parametrize(
    "path", sorted((ROOT / "studies" / "h200" / "searched").glob("*.gz")), ids=lambda path: path.name
)
def test_what_searches_measured_is_ranked_too(path: Path) -> None:
    """Their choice, so mostly fast configs, with and without wgmma, which nothing was fitted to."""
    all_are_fast = "S512_D64_fp16_causal" in path.name  # 0.71 of 280 configs in a search that began near the best
    assert fit_estimate.judge(fit_estimate.read(path), FITTED)["spearman"] >= (0.7 if all_are_fast else 0.75)


def test_wgmma_has_the_whole_tensor_rate_and_a_warpgroup_waits_for_it() -> None:
    by_warps, by_warpgroups = (replace(WORK, compute_warps=8, warpgroup_mma=on) for on in (False, True))
    alone, twice = replace(by_warpgroups, compute_warps=4), replace(LAUNCH, grid=(2 * H200.sms, 1, 1))
    us = {work: estimate_us(LAUNCH, work, RESOURCES, H200) for work in (by_warps, by_warpgroups, alone)}

    assert us[by_warpgroups] < us[by_warps]
    assert us[by_warpgroups] < us[alone] < estimate_us(twice, alone, RESOURCES, H200) < 2 * us[alone] - LAUNCH_US


def test_a_recording_is_estimated_as_searches_estimate(mission: fit_estimate.Recording) -> None:
    """What L2 does not hold comes from device memory, here of a card with less of it."""
    little = replace(H200, l2_bytes=mission.problem.bytes_moved - 1, dram_gbps=100.0)
    some = replace(mission.part(np.arange(len(mission.cases)) < 3), limits=little)
    module = some.template.module
    expected = [candidate_us(module, values, some.problem, little, used) for values, used in some.cases]
    held = [estimate_us(module.launch(v, some.problem), module.work(v, some.problem), u, little) for v, u in some.cases]

    assert expected == list(some.estimates(FITTED))
    assert all(us > without for us, without in zip(expected, held, strict=True))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not JSON|holds"),
        ('{"device": "a toaster"}\n', "was recorded on 'a toaster': known are NVIDIA A100"),
        ('{"device": "NVIDIA L4"}\n', "is no recording of configs as `record_space` writes it .KeyError..problem"),
        ('{"device": "NVIDIA L4", "problem": {"heds": 8}}\n', "problem has an unknown field 'heds'"),
        ('{"device": "NVIDIA L4", "problem": {}}\n{"median_us": 1}\n', "is no recording of configs .* .KeyError"),
    ],
)
def test_what_is_no_recording_is_one_line_with_its_path(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text(text)

    with pytest.raises(UserError, match=rf"some\.jsonl .*({says})"):
        fit_estimate.read(path)
    with pytest.raises(UserError, match=r"none\.jsonl does not exist"):
        fit_estimate.read(tmp_path / "none.jsonl")


def test_the_costs_are_those_of_the_artefact() -> None:
    artefact = json.loads((ROOT / "studies" / "h200" / "estimate.json").read_text())

    assert artefact["costs"] == asdict(FITTED), artefact["command"]


def test_a_fit_finds_the_costs_that_made_the_times(mission: fit_estimate.Recording) -> None:
    made = replace(FITTED, step_clocks=700.0, load_clocks=400.0, spill_clocks=12.0, merge_line_clocks=3.0)
    some = mission.part(np.random.default_rng(0).random(len(mission.cases)) < 0.05)
    some = replace(some, measured=some.estimates(made))

    assert fit_estimate.log_error([some], fit_estimate.START) > 0.1
    assert fit_estimate.log_error([some], fit_estimate.fit([some], fit_estimate.START)) < 0.01


@pytest.mark.parametrize("name", [field.name for field in fields(Costs)])
def test_every_cost_counts(mission: fit_estimate.Recording, name: str) -> None:
    """Clocks lengthen, overlap shortens: no config moves the other way, and some move."""
    some = mission.part(np.random.default_rng(0).random(len(mission.cases)) < 0.05)
    change = np.log(some.estimates(replace(FITTED, **{name: 2 * getattr(FITTED, name)})) / some.estimates(FITTED))
    sign = -1.0 if name.endswith("overlap") else 1.0

    assert (sign * change).min() > -1e-12
    assert (sign * change).max() > 0.01


def test_the_ranking_agrees_with_a_recorded_sweep() -> None:
    recorded = json.loads((Path(__file__).parent / "data" / "attention_h200.json").read_text())
    template, problem = load_template(shipped("kernel_templates") / "attention"), AttentionProblem()
    default = load_space(shipped("search_spaces") / "attention.py").default
    estimated, measured = [], []
    for warps_m, block_n, warps_kv, stages, registers, median_us in recorded["rows"]:
        values = {**default, "WARPS_M": warps_m, "BLOCK_N": block_n, "WARPS_KV": warps_kv, "STAGES": stages}
        launch, work = template.module.launch(values, problem), template.module.work(values, problem)
        resources = ResourceUsage(registers, 0, 0, 0, 0, launch.smem_bytes)
        estimated.append(estimate_us(launch, work, resources, H200))
        measured.append(median_us)
    spearman = fit_estimate.spearman(np.array(estimated), np.array(measured))
    ratios = np.array(estimated) / np.array(measured)
    best_ten = np.array(measured)[np.argsort(estimated, kind="stable")[:10]]

    assert 180 == len(measured)
    assert spearman > 0.95
    assert 0.5 < ratios.min() < ratios.max() < 1.2
    assert best_ten.max() < np.quantile(measured, 0.15)


@pytest.mark.parametrize(
    ("launch", "work", "resources"),
    [
        (LAUNCH, replace(WORK, tensor_flops=8.4e8), RESOURCES),
        (LAUNCH, replace(WORK, exponentials=3e5), RESOURCES),
        (LAUNCH, replace(WORK, l2_bytes=1e7), RESOURCES),
        (LAUNCH, replace(WORK, smem_bytes=1e7), RESOURCES),
        (LAUNCH, replace(WORK, steps=32.0), RESOURCES),
        (LAUNCH, replace(WORK, copies=640.0), RESOURCES),
        (LAUNCH, replace(WORK, slow_copies=32.0), RESOURCES),
        (LAUNCH, replace(WORK, merge_bytes=65536.0), RESOURCES),
        (LAUNCH, replace(WORK, compute_warps=2), RESOURCES),  # half of the SM's quarters idle
        (LAUNCH, WORK, replace(RESOURCES, spill_store_bytes=400, spill_load_bytes=400)),
        (replace(LAUNCH, grid=(59, 1, 1)), WORK, RESOURCES),  # one SM gets a second CTA
        (replace(LAUNCH, grid=(58 * 8, 1, 1)), WORK, RESOURCES),
        (replace(LAUNCH, grid=(58 * 8, 1, 1), smem_bytes=90 * 1024), WORK, RESOURCES),
    ],
)
def test_more_of_anything_takes_longer(launch: Launch, work: Work, resources: ResourceUsage) -> None:
    plain = estimate_us(LAUNCH, WORK, RESOURCES, L4)

    assert estimate_us(launch, work, resources, L4) > plain > LAUNCH_US


@dataclass(frozen=True)
class Moves:
    """A problem, as far as memory goes."""

    bytes_moved: int


def test_no_estimate_is_below_what_memory_allows() -> None:
    held, outgrown = (Moves(L4.l2_bytes + more) for more in (0, 1))
    least_us = outgrown.bytes_moved / (L4.dram_gbps * 1e3)
    us = estimate_us(LAUNCH, WORK, RESOURCES, L4, from_dram_bytes=dram_bytes(outgrown, L4))  # type: ignore[arg-type]
    more_work = replace(WORK, exponentials=3e5)

    assert 0 == dram_bytes(held, L4)  # type: ignore[arg-type]
    assert us > least_us > estimate_us(LAUNCH, WORK, RESOURCES, L4)
    assert us < estimate_us(LAUNCH, more_work, RESOURCES, L4, from_dram_bytes=outgrown.bytes_moved), "and still ranks"


def test_co_resident_ctas_hide_latency() -> None:
    many = replace(LAUNCH, grid=(58 * 3, 1, 1))
    alone = replace(many, smem_bytes=90 * 1024)

    assert estimate_us(many, WORK, RESOURCES, L4) < estimate_us(alone, WORK, RESOURCES, L4)


def test_loads_are_hidden_by_warps_of_their_own_and_by_tiles_ahead() -> None:
    plain = estimate_us(LAUNCH, WORK, RESOURCES, L4)

    assert estimate_us(LAUNCH, replace(WORK, dedicated_loads=True), RESOURCES, L4) < plain
    assert estimate_us(LAUNCH, replace(WORK, loads_ahead=2.0), RESOURCES, L4) < plain


def test_a_cta_more_than_fits_starts_another_wave() -> None:
    fits_three = replace(LAUNCH, smem_bytes=30 * 1024)
    times = [estimate_us(replace(fits_three, grid=(58 * n, 1, 1)), WORK, RESOURCES, L4) for n in (1, 2, 3, 4)]
    second, third, fourth = np.diff(times)

    assert fourth > 1.5 * max(second, third)


def test_before_compiling_registers_are_what_the_bounds_leave() -> None:
    free = expected_resources(LAUNCH, WORK, L4)
    bound = expected_resources(replace(LAUNCH, min_ctas=6), WORK, L4)

    assert (128, 0) == (free.registers, free.spill_bytes)
    assert (80, 8 * 48) == (bound.registers, bound.spill_bytes)
    assert estimate_us(LAUNCH, WORK, None, L4) == estimate_us(LAUNCH, WORK, free, L4)


def test_a_faster_card_is_faster() -> None:
    assert estimate_us(LAUNCH, WORK, RESOURCES, CARDS["l40s"]) < estimate_us(LAUNCH, WORK, RESOURCES, L4)


def test_what_does_not_fit_has_no_estimate() -> None:
    with pytest.raises(ValueError, match="no CTA"):
        estimate_us(replace(LAUNCH, smem_bytes=128 * 1024), WORK, RESOURCES, L4)
