"""The attention search space: feasible where it must be, refused for reasons with numbers."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from evoengine.gates import Ceilings, hardware_rules, static_gate
from evoengine.hardware import CARDS, card
from evoengine.problem import AttentionProblem, parse_shape
from evoengine.space import SearchSpace, load_space
from evoengine.template import load_template, shipped

TEMPLATE = load_template(shipped("kernel_templates") / "attention")
SPACE = load_space(shipped("search_spaces") / "attention.py")
HARDWARE = hardware_rules(TEMPLATE, tuple(axis.name for axis in SPACE), Ceilings())
MISSION = AttentionProblem()
L4, H200 = card("l4"), card("h200")

ODD_SHAPES = (
    "1,8,1,64",
    "1,8,17,64",
    "1,8,100,64,causal",
    "1,8,512,128",
    "1,8,1,128,seq_k=4096",
    "1,8,4096,64,seq_k=1",
    "1,8,203,128,seq_k=331,causal,diagonal=-3,dtype=bf16",
    "1,8,16384,64",
    "1,8,100,96",
    "1,8,512,256,causal",
)


def smallest(**changed: int) -> dict[str, int]:
    return {axis.name: axis.choices[0] for axis in SPACE} | changed


@pytest.mark.parametrize("name", sorted(CARDS))
def test_the_default_is_feasible_at_the_mission_shape_on_every_card(name: str) -> None:
    assert static_gate(SPACE, HARDWARE, SPACE.default, MISSION, CARDS[name]) is None


def test_every_start_is_feasible_on_an_h200() -> None:
    masked = replace(MISSION, causal=True)
    assert [None] * len(SPACE.starts) == [static_gate(SPACE, HARDWARE, s, masked, H200) for s in SPACE.starts]


def test_all_starts_but_hoppers_and_the_one_with_every_key_in_flight_fit_an_l4() -> None:
    # 512 keys of K and V are 131072 B, and an L4 gives a CTA 101376
    refused = {
        SPACE.config(start).label: gate.evidence["rule"]
        for start in SPACE.starts
        if (gate := static_gate(SPACE, HARDWARE, start, replace(MISSION, causal=True), L4)) is not None
    }

    all_keys = "wm_2.rt_1.bn_512.wkv_4.st_1.pw_0.mb_0.un_0.ll_0.qr_1.ov_0.lr_0.sm_1.ms_1.ot_1.hf_0.sp_1.mc_1.wg_0"
    hopper = {SPACE.config(start).label for start in SPACE.starts if start["WGMMA"]}
    assert hopper
    assert {all_keys: "smem_per_cta"} | dict.fromkeys(hopper, "wgmma") == refused
    assert len(SPACE.starts) == len({SPACE.config(start).digest for start in SPACE.starts})


def test_an_l4_leaves_thousands_of_configs_and_an_h200_more() -> None:
    on_l4, on_h200 = (SPACE.feasible(MISSION, limits, HARDWARE) for limits in (L4, H200))

    assert 1000 < len(on_l4.points) < len(on_h200.points) < SPACE.product
    assert set(on_l4.points) < set(on_h200.points)
    assert SPACE.product == len(on_l4.points) + sum(on_l4.rejected.values())


def test_no_choice_is_dead_at_the_mission_shape() -> None:
    feasible = SPACE.feasible(MISSION, H200, HARDWARE)
    masked = SPACE.feasible(replace(MISSION, causal=True), H200, HARDWARE)

    for i, axis in enumerate(SPACE):
        assert list(range(len(axis.choices))) == masked.used(i), axis.name
        if axis.name != "HEAVY_FIRST":  # all row blocks weigh the same without a mask
            assert list(range(len(axis.choices))) == feasible.used(i), axis.name


@pytest.mark.parametrize("name", ["l4", "h200"])
def test_what_is_feasible_can_be_launched(name: str) -> None:
    limits = CARDS[name]
    for point in SPACE.feasible(MISSION, limits, HARDWARE).points[::7]:  # of 546 thousand on an H200
        values = SPACE.config_at(point).values
        launch = TEMPLATE.module.launch(values, MISSION)
        registers = limits.registers_per_sm // (launch.block * launch.min_ctas)
        if values["WGMMA"] == 2:  # four warps keep 40, the others have the rest
            registers = (registers // 8 * 8 * launch.block - 40 * 128) // (launch.block - 128)

        assert 32 <= launch.block <= 1024
        assert launch.smem_bytes <= limits.smem_per_block
        assert launch.min_ctas * (launch.smem_bytes + 1024) <= limits.smem_per_sm
        assert launch.min_ctas * launch.block <= limits.threads_per_sm
        assert registers >= 89  # 32 of output, 8 of scores at least, 4 of statistics, 45 of the rest
        assert launch.ctas * 16 * values["ROW_TILES"] * values["WARPS_M"] >= 8 * 512


@pytest.mark.parametrize("shape", ODD_SHAPES)
@pytest.mark.parametrize("name", ["l4", "h200"])
def test_odd_shapes_have_a_feasible_config_near_the_default(name: str, shape: str) -> None:
    problem = parse_shape(AttentionProblem, shape)
    feasible = SPACE.feasible(problem, CARDS[name], HARDWARE)
    nearest = SPACE.nearest(SPACE.default, feasible)

    assert static_gate(SPACE, HARDWARE, nearest.values, problem, CARDS[name]) is None
    # what a shape does not force stays as it is
    assert {"Q_IN_REGS": 1, "PRODUCER_WARPS": 0, "ROW_TILES": 1, "MIN_CTAS": 1}.items() <= nearest.values.items()


TAKES = dict(WARPS_M=4, WARPS_KV=2, BLOCK_N=128, PRODUCER_WARPS=4, WGMMA=2)
"""Eight warps that compute with the registers of four that load."""


@pytest.mark.parametrize(
    ("rule", "passes", "refused", "numbers"),
    [
        ("keys_per_warp", (dict(BLOCK_N=64, WARPS_KV=4), ""), (dict(BLOCK_N=32, WARPS_KV=4), ""), {"32", "4", "16"}),
        ("keys_per_warp", (dict(BLOCK_N=96, WARPS_KV=2), ""), (dict(BLOCK_N=48, WARPS_KV=2), ""), {"48", "2", "16"}),
        ("rows_used", (dict(WARPS_M=2), "seq_q=17"), (dict(WARPS_M=2), "seq_q=16"), {"32", "16"}),
        ("rows_used", (dict(ROW_TILES=2), "seq_q=17"), (dict(ROW_TILES=2), "seq_q=16"), {"32", "16"}),
        (
            "keys_used",
            (dict(BLOCK_N=64, WARPS_KV=2), "seq_k=33"),
            (dict(BLOCK_N=64, WARPS_KV=2), "seq_k=32"),
            {"64", "32"},
        ),
        ("stages_filled", (dict(STAGES=3), "seq_k=33"), (dict(STAGES=3), "seq_k=32"), {"3", "2", "16"}),
        ("mbarrier", (dict(PRODUCER_WARPS=1, MBARRIER=1), ""), (dict(MBARRIER=1), ""), {"1", "0"}),
        ("unrolled", (dict(STAGES=2, UNROLL=1), ""), (dict(UNROLL=1), ""), {"1", "32"}),
        ("unrolled", (dict(STAGES=3, UNROLL=1, OVERLAP=1), ""), (dict(STAGES=2, UNROLL=1, OVERLAP=1), ""), {"2"}),
        ("late_loads", (dict(LATE_LOADS=1), ""), (dict(LATE_LOADS=1, PRODUCER_WARPS=1), ""), {"1", "0"}),
        ("late_loads", (dict(LATE_LOADS=1), "seq_k=17"), (dict(LATE_LOADS=1), "seq_k=16"), {"1"}),
        ("one_tile", (dict(BLOCK_N=512, ONE_TILE=1), ""), (dict(BLOCK_N=256, ONE_TILE=1), ""), {"256", "512"}),
        ("heavy_first", (dict(HEAVY_FIRST=1), "causal"), (dict(HEAVY_FIRST=1), ""), {"1"}),
        # 16 rows and 16 keys a tile: 4 tiles of 49 keys, 3 of 48; 2 for each half of 33 keys, 1 of 32
        ("split_filled", (dict(SPLIT_KV=4), "seq_k=49"), (dict(SPLIT_KV=4), "seq_k=48"), {"4", "3", "16"}),
        ("split_needed", (dict(SPLIT_KV=16), "seq_q=32"), (dict(SPLIT_KV=16), "seq_q=33"), {"16", "384", "24", "256"}),
        (
            "stages_filled",
            (dict(STAGES=2, SPLIT_KV=2), "seq_k=33"),
            (dict(STAGES=2, SPLIT_KV=2), "seq_k=32"),
            {"2", "1", "16"},
        ),
        (
            "tiles_to_rescale",
            (dict(LAZY_RESCALE=1, SPLIT_KV=2), "seq_k=33"),
            (dict(LAZY_RESCALE=1, SPLIT_KV=2), "seq_k=32"),
            {"1", "16"},
        ),
        (
            "one_tile",
            (dict(ONE_TILE=1, SPLIT_KV=2), "seq_k=32"),
            (dict(ONE_TILE=1, SPLIT_KV=2), "seq_k=33"),
            {"16", "33"},
        ),
        # 16 rows: 32 registers of output for head_dim 64, one of scores for every two keys, 49 more
        ("register_file", (dict(BLOCK_N=256), ""), (dict(BLOCK_N=384), ""), {"273", "255"}),
        ("register_file", (dict(BLOCK_N=384, WARPS_KV=2), ""), (dict(BLOCK_N=512), ""), {"337", "255"}),
        (
            "register_file",
            (dict(ROW_TILES=2, BLOCK_N=64), "head_dim=128"),
            (dict(ROW_TILES=2, BLOCK_N=96), "head_dim=128"),
            {"277", "255"},
        ),
        ("register_file", (dict(BLOCK_N=128), "head_dim=256"), (dict(BLOCK_N=192), "head_dim=256"), {"273", "255"}),
        (
            "register_file",
            (dict(ROW_TILES=2), "head_dim=128"),
            (dict(ROW_TILES=2), "head_dim=256"),
            {"325", "255"},
        ),
        # 65536 registers over 4 * 128 threads are 128, over 6 * 128 are 80 in steps of 8
        (
            "launch_bounds",
            (dict(WARPS_M=4, MIN_CTAS=4), ""),
            (dict(WARPS_M=4, MIN_CTAS=6), ""),
            {"6", "128", "80", "89"},
        ),
        (
            "launch_bounds",
            (dict(WARPS_M=8, MIN_CTAS=2), ""),
            (dict(WARPS_M=8, MIN_CTAS=3), ""),
            {"3", "256", "80", "89"},
        ),
        # 16 of output, 8 of scores, 4 of statistics, 32 of the rest
        (
            "launch_bounds",
            (dict(WARPS_M=8, MIN_CTAS=4), "head_dim=32"),
            (dict(WARPS_M=8, MIN_CTAS=6), "head_dim=32"),
            {"6", "256", "40", "60"},
        ),
        # a producer warp takes registers as any other: 65536 over 9 * 32 * 2 are 112, over 12 * 32 * 2 are 80
        (
            "launch_bounds",
            (dict(WARPS_M=8, PRODUCER_WARPS=1, MIN_CTAS=2), ""),
            (dict(WARPS_M=8, PRODUCER_WARPS=4, MIN_CTAS=2), ""),
            {"2", "384", "80", "89"},
        ),
        # but with WGMMA=2 four of them keep 40, and the other eight have 100, in steps of 8
        (
            "launch_bounds",
            (dict(WARPS_M=8, PRODUCER_WARPS=4, MIN_CTAS=2, WGMMA=2), ""),
            (dict(WARPS_M=8, PRODUCER_WARPS=4, MIN_CTAS=2, WGMMA=2, BLOCK_N=64), ""),
            {"2", "384", "96", "113"},
        ),
        ("setmaxnreg", (TAKES, ""), (TAKES | dict(PRODUCER_WARPS=2), ""), {"2", "4"}),
        ("setmaxnreg", (TAKES, ""), (TAKES | dict(WARPS_KV=1), ""), {"256", "1"}),
        ("setmaxnreg", (TAKES | dict(WARPS_KV=1, MIN_CTAS=2), ""), (TAKES | dict(WARPS_KV=1), ""), {"256", "1"}),
    ],
)
def test_rules_draw_their_line_and_say_why_with_numbers(
    rule: str, passes: tuple[dict[str, int], str], refused: tuple[dict[str, int], str], numbers: set[str]
) -> None:
    (check,) = [each.check for each in SPACE.rules if each.id == rule]

    def ask(changed: dict[str, int], shape: str) -> str | None:
        return check(smallest(**changed), parse_shape(AttentionProblem, shape), L4)

    reason = ask(*refused)

    assert ask(*passes) is None
    assert reason is not None
    assert numbers <= set(re.findall(r"\d+", reason))


FEW = {"BLOCK_N": (16, 64, 128, 192, 512), "STAGES": (1, 2, 4), "PRODUCER_WARPS": (0, 4), "MIN_CTAS": (1, 6)}


@pytest.mark.parametrize("rule", [rule.id for rule in SPACE.rules])
def test_every_rule_refuses_what_no_other_does(rule: str) -> None:
    """Over a few choices of each axis: without a rule, all of them would be millions of configs."""
    # 40 heads: enough CTAs to need no split; a warpgroup has 64 rows, and no card but Hopper's gets as far as its rules
    seq_q, limits = (64, H200) if rule == "setmaxnreg" else (20, L4)
    problem = parse_shape(AttentionProblem, f"1,40,{seq_q},64,seq_k=100")
    axes = tuple(replace(axis, choices=FEW.get(axis.name, axis.choices)) for axis in SPACE.axes)
    rules = tuple(r for r in SPACE.rules if r.id != rule)
    spaces = (SearchSpace(SPACE.name, axes, some, SPACE.default) for some in (SPACE.rules, rules))
    all_rules, fewer = (space.feasible(problem, limits, HARDWARE) for space in spaces)

    assert set(all_rules.points) < set(fewer.points)
