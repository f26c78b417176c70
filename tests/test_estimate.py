"""The latency model: it must rank as the hardware does, and react to every resource it claims to know."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evoengine.devices.estimate import LAUNCH_US, estimate_us
from evoengine.hardware import CARDS
from evoengine.problem import AttentionProblem
from evoengine.template import Launch, Work, load_template, shipped
from evoengine.verdict import ResourceUsage

L4, H200 = CARDS["l4"], CARDS["h200"]
RESOURCES = ResourceUsage(128, 0, 0, 0, 0, 32 * 1024)
LAUNCH = Launch((58, 1, 1), 128, 32 * 1024)
WORK = Work(
    tensor_flops=8.4e6, exponentials=32768.0, l2_bytes=147456.0, smem_bytes=524288.0, steps=8.0, compute_warps=4
)


def ranks(values: list[float]) -> np.ndarray:
    """Ranks from 0, ties averaged."""
    unique, inverse, counts = np.unique(np.array(values), return_inverse=True, return_counts=True)
    assert len(unique) > 10
    first = np.cumsum(counts) - counts
    return np.asarray((first + (counts - 1) / 2)[inverse])


def test_the_ranking_agrees_with_a_recorded_sweep() -> None:
    recorded = json.loads((Path(__file__).parent / "data" / "attention_h200.json").read_text())
    template, problem = load_template(shipped("kernel_templates") / "attention"), AttentionProblem()
    estimated, measured = [], []
    for warps_m, block_n, warps_kv, stages, registers, median_us in recorded["rows"]:
        values = dict(
            WARPS_M=warps_m,
            ROW_TILES=1,
            BLOCK_N=block_n,
            WARPS_KV=warps_kv,
            STAGES=stages,
            PRODUCER_WARPS=0,
            SMEM_LAYOUT=2,
            Q_IN_REGS=1,
            OVERLAP=0,
            LAZY_RESCALE=0,
            SKIP_HIDDEN=0,
            MIN_CTAS=1,
        )
        launch, work = template.module.launch(values, problem), template.module.work(values, problem)
        resources = ResourceUsage(registers, 0, 0, 0, 0, launch.smem_bytes)
        estimated.append(estimate_us(launch, work, resources, H200))
        measured.append(median_us)
    spearman = float(np.corrcoef(ranks(estimated), ranks(measured))[0, 1])
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
        (LAUNCH, WORK, replace(RESOURCES, spill_store_bytes=400, spill_load_bytes=400)),
        (replace(LAUNCH, grid=(59, 1, 1)), WORK, RESOURCES),  # one SM gets a second CTA
        (replace(LAUNCH, grid=(58 * 8, 1, 1)), WORK, RESOURCES),
        (replace(LAUNCH, grid=(58 * 8, 1, 1), smem_bytes=90 * 1024), WORK, RESOURCES),
    ],
)
def test_more_of_anything_takes_longer(launch: Launch, work: Work, resources: ResourceUsage) -> None:
    plain = estimate_us(LAUNCH, WORK, RESOURCES, L4)

    assert estimate_us(launch, work, resources, L4) > plain > LAUNCH_US


def test_co_resident_ctas_hide_latency() -> None:
    many = replace(LAUNCH, grid=(58 * 3, 1, 1))
    alone = replace(many, smem_bytes=90 * 1024)

    assert estimate_us(many, WORK, RESOURCES, L4) < estimate_us(alone, WORK, RESOURCES, L4)


def test_a_faster_card_is_faster() -> None:
    assert estimate_us(LAUNCH, WORK, RESOURCES, CARDS["l40s"]) < estimate_us(LAUNCH, WORK, RESOURCES, L4)


def test_what_does_not_fit_has_no_estimate() -> None:
    with pytest.raises(ValueError, match="no CTA"):
        estimate_us(replace(LAUNCH, smem_bytes=128 * 1024), WORK, RESOURCES, L4)
