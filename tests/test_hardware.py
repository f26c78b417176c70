"""Device limits, cards by name, and CTAs per SM as NVIDIA's own calculator counts them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from evoengine.errors import UserError
from evoengine.hardware import CARDS, DeviceLimits, Occupancy, barriers_per_sm, card, gate_limits, occupancy

L4 = CARDS["l4"]


@pytest.mark.parametrize(
    ("name", "threads", "registers", "smem_bytes", "ctas", "bound_by"),
    [
        # Computed by cuda_occupancy.h of CUDA 13.0: largest carve-out, one barrier a CTA. The first six are
        # tiles of BLOCK_M x BLOCK_N (x STAGES).
        ("l4", 128, 156, 24576, 3, "registers"),  # 64x64x1
        ("l4", 128, 143, 40960, 2, "smem"),  # 64x64x2
        ("l4", 64, 160, 24576, 4, "smem"),  # 32x64
        ("l4", 64, 126, 12288, 7, "smem"),  # 32x32
        ("l4", 128, 252, 24576, 2, "registers"),  # 64x128
        ("l4", 256, 160, 32768, 1, "registers"),  # 128x64, 8 warps
        ("l4", 32, 16, 1024, 24, "ctas"),
        ("l4", 96, 40, 8192, 11, "smem"),
        ("l4", 256, 24, 8192, 6, "threads"),
        ("l4", 1024, 64, 0, 1, "threads"),
        ("l4", 1024, 65, 0, 0, "registers"),  # 28 warps fit, the CTA has 32
        ("l4", 384, 168, 0, 1, "registers"),
        ("l4", 33, 168, 0, 6, "registers"),  # 33 threads are two warps
        ("l4", 33, 255, 101376, 1, "smem"),
        ("l4", 256, 64, 50048, 2, "smem"),
        ("a10g", 32, 24, 0, 16, "ctas"),
        ("a100", 128, 143, 40960, 3, "registers"),
        ("a100", 96, 40, 8192, 16, "registers"),
        ("a100", 256, 64, 50048, 3, "smem"),
        ("h200", 64, 126, 12288, 8, "registers"),
        ("h200", 33, 255, 101376, 2, "smem"),
        ("h200", 32, 16, 1024, 32, "ctas"),
    ],
)
def test_occupancy_equals_nvidias_calculator(
    name: str, threads: int, registers: int, smem_bytes: int, ctas: int, bound_by: str
) -> None:
    fit = occupancy(CARDS[name], threads, registers, smem_bytes)

    assert (ctas, bound_by) == (fit.ctas_per_sm, fit.bound_by)


def test_shared_memory_is_handed_out_in_units_after_a_reserve() -> None:
    # 100 KB an SM: two CTAs get 51200 B each, 1024 of them reserved; 50176 is a multiple of 128
    assert 2 == occupancy(L4, 32, 32, 50176).ctas_per_sm
    assert 1 == occupancy(L4, 32, 32, 50177).ctas_per_sm


def test_registers_are_handed_out_in_units_per_quarter_of_an_sm() -> None:
    # a quarter holds 16384: 3 warps of 168 registers (5376 = 21 units), 2 of 169 (5632 after rounding up)
    assert 3 == occupancy(L4, 128, 168, 0).ctas_per_sm
    assert 2 == occupancy(L4, 128, 169, 0).ctas_per_sm


def test_the_largest_block_a_card_allows_fits_once() -> None:
    for limits in CARDS.values():
        assert 1 == occupancy(limits, 32, 32, limits.smem_per_block).ctas_per_sm
        assert 0 == occupancy(limits, 32, 32, limits.smem_per_sm).ctas_per_sm


def test_the_target_card_is_what_its_datasheet_says() -> None:
    assert (58, "sm_89", 99 * 1024, 100 * 1024, 1536, 24, 65536, 255, 1024) == (
        L4.sms,
        L4.arch,
        L4.smem_per_block,
        L4.smem_per_sm,
        L4.threads_per_sm,
        L4.ctas_per_sm,
        L4.registers_per_sm,
        L4.registers_per_thread,
        L4.threads_per_block,
    )
    assert ("sm_90a", 132, 227 * 1024) == (CARDS["h200"].arch, CARDS["h200"].sms, CARDS["h200"].smem_per_block)


def test_limits_survive_json() -> None:
    read = json.loads(json.dumps(L4.as_json()))

    assert L4 == DeviceLimits(**(read | {"compute_capability": tuple(read["compute_capability"])}))


@pytest.mark.parametrize("name", ["l4", "L4", " L-4 ", "l_4"])
def test_a_card_is_found_whatever_its_spelling(name: str) -> None:
    assert L4 is card(name)


@pytest.mark.parametrize(
    ("name", "hint"), [("h20", "did you mean h200?"), ("RTX-4080", "did you mean rtx4090?"), ("l40", "did you mean l4")]
)
def test_an_unknown_card_is_answered_with_the_nearest_one(name: str, hint: str) -> None:
    with pytest.raises(UserError, match="unknown card") as error:
        card(name)

    assert repr(name) in str(error.value)
    assert hint in str(error.value)
    assert all(known in str(error.value) for known in CARDS)


def test_a_card_like_no_other_gets_no_hint() -> None:
    with pytest.raises(UserError) as error:
        card("???")

    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize("field", ["smem_per_block", "smem_per_sm", "threads_per_sm", "ctas_per_sm"])
def test_a_candidate_must_fit_both_the_device_and_the_named_card(field: str) -> None:
    below = replace(L4, **{field: getattr(L4, field) - 1})

    assert below == gate_limits(below, L4)
    assert below == gate_limits(L4, below)


def test_named_limits_on_a_larger_device_are_those_of_the_name() -> None:
    assert L4 == gate_limits(CARDS["h200"], L4)


def test_a_larger_name_cannot_lift_the_devices_limits() -> None:
    limits = gate_limits(L4, CARDS["h200"])

    assert (L4.smem_per_block, L4.smem_per_sm, L4.threads_per_sm, L4.ctas_per_sm) == (
        limits.smem_per_block,
        limits.smem_per_sm,
        limits.threads_per_sm,
        limits.ctas_per_sm,
    )
    assert "NVIDIA H200" == limits.name


def test_named_barriers_bind_from_hopper_on() -> None:
    h200, l4, blackwell = card("h200"), card("l4"), replace(card("l4"), barriers_per_sm=barriers_per_sm((12, 0), 24))

    assert occupancy(h200, 64, 32, 1024, barriers=16) == Occupancy(4, "barriers")
    assert occupancy(h200, 64, 32, 1024, barriers=1) == Occupancy(32, "ctas")
    assert occupancy(l4, 64, 32, 1024, barriers=16) == Occupancy(24, "ctas")
    assert occupancy(blackwell, 64, 32, 1024, barriers=14) == Occupancy(1, "barriers")


@pytest.mark.parametrize(
    ("compute_capability", "ctas", "barriers"),
    [((8, 9), 24, None), ((9, 0), 32, 64), ((10, 0), 32, 64), ((10, 1), 24, 24), ((11, 0), 24, 24), ((12, 1), 24, 24)],
)
def test_barriers_are_as_many_as_in_cuda_occupancy(
    compute_capability: tuple[int, int], ctas: int, barriers: int | None
) -> None:
    assert barriers == barriers_per_sm(compute_capability, ctas)
