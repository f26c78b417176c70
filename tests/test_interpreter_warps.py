"""Warp collectives against the tables of the PTX ISA, barriers with counts, schedules, divergence and deadlock."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from interpreted import MODES, Array, run

from evoengine.devices.interpreter import Fault, Hang, Mode
from evoengine.dtypes import from_bits, to_bits

SHARED = ".extern .shared .align 16 .b8 smem[];"
LANE_OUT = "ld.param.u64 %d1, [y]; mov.u32 %r0, %tid.x; mad.wide.u32 %d2, %r0, 4, %d1;"
ONE_OUT = {"y": np.zeros(32, np.uint32)}


def per_lane(values: Array, registers: int) -> Array:
    """(32, registers) words: what every lane loads."""
    return np.ascontiguousarray(values, np.uint32).reshape(32, registers)


def fragment(matrix: Array, place: Callable[[int, int], tuple[int, int]], elements: int) -> Array:
    """The 16-bit elements of a matrix as lanes hold them: `place(lane, i)` is the row and column of element i."""
    halves = [[matrix[place(lane, i)] for i in range(elements)] for lane in range(32)]
    return np.array(halves, np.uint16).view(np.uint32)


def a_place(lane: int, i: int) -> tuple[int, int]:
    """PTX ISA 9.0, mma.m16n8k16, A: row by i // 2 % 2, column block by i // 4."""
    row = lane // 4 + (0 if i in (0, 1, 4, 5) else 8)
    return row, lane % 4 * 2 + i % 2 + (0 if i < 4 else 8)


def b_place(lane: int, i: int) -> tuple[int, int]:
    return lane % 4 * 2 + i % 2 + (0 if i < 2 else 8), lane // 4


def c_place(lane: int, i: int) -> tuple[int, int]:
    return lane // 4 + (0 if i < 2 else 8), lane % 4 * 2 + i % 2


@pytest.mark.parametrize(("ptx_type", "dtype"), [("f16", "fp16"), ("bf16", "bf16")])
def test_mma_multiplies_fragments_as_the_isa_lays_them_out(ptx_type: str, dtype: str) -> None:
    rng = np.random.default_rng(3)
    a, b = (to_bits(rng.integers(-8, 9, shape).astype(np.float32), dtype) for shape in ((16, 16), (16, 8)))
    c = rng.integers(-50, 50, (16, 8)).astype(np.float32)
    c_lanes = np.array([[c[c_place(lane, i)] for i in range(4)] for lane in range(32)], np.float32).view(np.uint32)
    operands = np.concatenate([fragment(a, a_place, 8), fragment(b, b_place, 4), c_lanes], axis=1)
    loads = "".join(f"ld.global.u32 %r{1 + i}, [%d2+{4 * i}];" for i in range(6))
    loads += "".join(f"ld.global.f32 %f{i}, [%d2+{24 + 4 * i}];" for i in range(4))
    stores = "".join(f"st.global.f32 [%d3+{4 * i}], %f{i};" for i in range(4))
    body = f"""ld.param.u64 %d0, [x]; ld.param.u64 %d1, [y]; mov.u32 %r0, %tid.x;
        mad.wide.u32 %d2, %r0, 40, %d0; mad.wide.u32 %d3, %r0, 16, %d1; {loads}
        mma.sync.aligned.m16n8k16.row.col.f32.{ptx_type}.{ptx_type}.f32
            {{%f0, %f1, %f2, %f3}}, {{%r1, %r2, %r3, %r4}}, {{%r5, %r6}}, {{%f0, %f1, %f2, %f3}};
        {stores}"""
    y = run(body, {"x": operands, "y": np.zeros((32, 4), np.float32)})[0]["y"].reshape(32, 4)
    expected = from_bits(a, dtype) @ from_bits(b, dtype) + c  # small integers: exact in any order

    assert [[expected[c_place(lane, i)] for i in range(4)] for lane in range(32)] == y.tolist()


def test_mma_accumulates_in_half_where_asked() -> None:
    body = f"""{LANE_OUT} mov.b32 %r1, 0x3C003C00; mov.b32 %r2, 0x42004400;
        mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16
            {{%r3, %r4}}, {{%r1, %r1, %r1, %r1}}, {{%r1, %r1}}, {{%r2, %r2}};
        st.global.u32 [%d2], %r3;"""  # 16 ones, plus 4 in even and 3 in odd columns

    assert [0x4CC04D00] * 32 == run(body, ONE_OUT)[0]["y"].tolist()


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix_hands_out_rows_of_8x8_matrices(count: int, transposed: bool) -> None:
    rows = np.random.default_rng(5).permutation(2048).astype(np.uint16).reshape(32, 64)[:, :8]
    order = np.random.default_rng(6).permutation(32)  # row i of the input lies at row order[i] of shared memory
    addresses = np.zeros(32, np.uint32)
    addresses[:] = order * 16
    targets = ", ".join(f"%r{10 + i}" for i in range(count))
    stores = "".join(f"st.global.u32 [%d5+{4 * i}], %r{10 + i};" for i in range(count))
    body = f"""ld.param.u64 %d0, [x]; ld.param.u64 %d1, [at]; ld.param.u64 %d2, [y]; mov.u32 %r0, %tid.x;
        mad.wide.u32 %d3, %r0, 16, %d0; mad.wide.u32 %d4, %r0, 4, %d1; mad.wide.u32 %d5, %r0, 16, %d2;
        ld.global.v4.u32 {{%r1, %r2, %r3, %r4}}, [%d3]; ld.global.u32 %r5, [%d4]; mov.u32 %r6, smem;
        add.u32 %r5, %r5, %r6; st.shared.v4.u32 [%r5], {{%r1, %r2, %r3, %r4}};
        ldmatrix.sync.aligned.m8n8.x{count}{".trans" if transposed else ""}.shared.b16 {{{targets}}}, [%r5];
        {stores}"""
    given = {"x": rows.view(np.uint32), "at": addresses, "y": np.zeros((32, 4), np.uint32)}
    y = run(body, given, smem_bytes=512, before=SHARED)[0]["y"].reshape(32, 4)

    for matrix in range(count):
        held = rows[8 * matrix : 8 * matrix + 8]
        held = held.T if transposed else held
        expected = [int(held[n // 4, n % 4 * 2]) | int(held[n // 4, n % 4 * 2 + 1]) << 16 for n in range(32)]
        assert expected == y[:, matrix].tolist()


def shfl_of_the_isa(mode: str, lane: int, b: int, c: int) -> tuple[int, bool]:
    """The pseudo-code of PTX ISA 9.0, shfl.sync: source lane and predicate."""
    bval, cval, mask = b & 31, c & 31, (c >> 8) & 31
    max_lane, min_lane = (lane & mask) | (cval & ~mask), lane & mask
    j = {"up": lane - bval, "down": lane + bval, "bfly": lane ^ bval, "idx": min_lane | (bval & ~mask)}[mode]
    inside = j >= max_lane if mode == "up" else j <= max_lane
    return (j if inside else lane), inside


@pytest.mark.parametrize(
    ("mode", "b", "c"),
    [
        ("bfly", 1, 31),
        ("bfly", 2, 31),
        ("bfly", 16, 0x1C1F),
        ("up", 3, 0),
        ("up", 1, 0x1800),
        ("down", 5, 31),
        ("down", 4, 0x181F),
        ("idx", 9, 31),
        ("idx", 3, 0x1C1F),
    ],
)
def test_shuffles_follow_the_isa(mode: str, b: int, c: int) -> None:
    body = f"""{LANE_OUT} mul.lo.u32 %r1, %r0, 100; shfl.sync.{mode}.b32 %r2|%p1, %r1, {b}, {c}, -1;
        selp.u32 %r3, 1, 0, %p1; add.u32 %r2, %r2, %r3; st.global.u32 [%d2], %r2;"""
    expected = [source * 100 + inside for source, inside in (shfl_of_the_isa(mode, lane, b, c) for lane in range(32))]

    assert expected == run(body, ONE_OUT)[0]["y"].tolist()


def test_lanes_of_two_branches_meet_at_two_shuffles() -> None:
    body = f"""{LANE_OUT} and.b32 %r1, %r0, 1; setp.eq.u32 %p0, %r1, 0; mul.lo.u32 %r2, %r0, 10; @%p0 bra EVEN;
        shfl.sync.bfly.b32 %r3, %r2, 1, 31, -1; add.u32 %r3, %r3, 1000; bra.uni JOIN;
        EVEN: shfl.sync.bfly.b32 %r3, %r0, 1, 31, -1;
        JOIN: st.global.u32 [%d2], %r3;"""
    expected = [1000 + lane - 1 if lane % 2 else 10 * (lane + 1) for lane in range(32)]

    assert expected == run(body, ONE_OUT)[0]["y"].tolist()


def test_votes() -> None:
    body = f"""{LANE_OUT} setp.lt.u32 %p0, %r0, 4; vote.sync.ballot.b32 %r1, %p0, -1; vote.sync.any.pred %p1, %p0, -1;
        vote.sync.all.pred %p2, %p0, -1; vote.sync.all.pred %p3, !%p0, 0xFFFFFFFF; vote.sync.uni.pred %p4, %p2, -1;
        selp.u32 %r2, 16, 0, %p1; selp.u32 %r3, 32, 0, %p2; selp.u32 %r4, 64, 0, %p3; selp.u32 %r5, 128, 0, %p4;
        add.u32 %r1, %r1, %r2; add.u32 %r1, %r1, %r3; add.u32 %r1, %r1, %r4; add.u32 %r1, %r1, %r5;
        @%p0 bra SOME; bra.uni STORE; SOME: activemask.b32 %r6; shl.b32 %r6, %r6, 8; add.u32 %r1, %r1, %r6;
        STORE: st.global.u32 [%d2], %r1;"""
    y = run(body, ONE_OUT)[0]["y"].tolist()

    assert [15 + 16 + 128 + 0xF00] * 4 + [15 + 16 + 128] * 28 == y


def test_special_registers_name_the_place() -> None:
    body = """ld.param.u64 %d1, [y]; mov.u32 %r0, %tid.x; mov.u32 %r1, %ntid.x; mov.u32 %r2, %ctaid.x;
        mad.lo.u32 %r3, %r2, %r1, %r0; mad.wide.u32 %d2, %r3, 4, %d1; mov.u32 %r4, %laneid; mov.u32 %r5, %warpid;
        mov.u32 %r6, %nctaid.x; mad.lo.u32 %r4, %r5, 100, %r4; mad.lo.u32 %r4, %r6, 10000, %r4;
        st.global.u32 [%d2], %r4;"""
    for left in run(body, {"y": np.zeros(144, np.uint32)}, threads=48, ctas=3, modes=MODES):
        assert [30000 + t // 32 * 100 + t % 32 for _ in range(3) for t in range(48)] == left["y"].tolist()


HANDOVER = """ld.param.u64 %d1, [y]; mov.u32 %r0, %tid.x; mov.u32 %r1, %warpid; mov.u32 %r2, smem;
    mad.wide.u32 %d2, %r0, 4, %d1; shl.b32 %r3, %r0, 2; add.u32 %r3, %r3, %r2; st.shared.u32 [%r3], %r0;
    {barrier}
    xor.b32 %r4, %r3, 128; ld.shared.u32 %r5, [%r4]; st.global.u32 [%d2], %r5;"""


@pytest.mark.parametrize("barrier", ["bar.sync 0;", "bar.sync 3, 64;", "barrier.cta.sync.aligned 1, 64;"])
def test_a_barrier_orders_two_warps(barrier: str) -> None:
    given = {"y": np.zeros(64, np.uint32)}
    for left in run(HANDOVER.format(barrier=barrier), given, threads=64, smem_bytes=256, before=SHARED, modes=MODES):
        assert [t ^ 32 for t in range(64)] == left["y"].tolist()


def test_without_it_each_order_shows_another_half_of_the_race() -> None:
    given = {"y": np.zeros(64, np.uint32)}
    done = run(HANDOVER.format(barrier=""), given, threads=64, smem_bytes=256, before=SHARED, modes=MODES)
    poisoned = [[bool((left["y"][32 * w : 32 * w + 32] == 0xFFFFFFFF).all()) for w in (0, 1)] for left in done]

    assert [[True, False], [False, True]] * 2 == poisoned
    assert ["ascending", "descending"] * 2 == [mode.order for mode in MODES]


ROLES = """ld.param.u64 %d1, [y]; mov.u32 %r0, %tid.x; mov.u32 %r1, %warpid; mov.u32 %r2, smem; mov.u32 %r9, {slot};
    mad.wide.u32 %d2, %r0, 4, %d1; setp.eq.u32 %p0, %r1, 2; @%p0 bra PRODUCE;
    bar.sync %r9, {count}; ld.shared.u32 %r5, [%r2]; st.global.u32 [%d2], %r5; ret;
    PRODUCE: st.shared.u32 [%r2], 77; bar.arrive %r9, 96;"""


def test_an_arriving_warp_does_not_wait_but_counts() -> None:
    given = {"y": np.zeros(96, np.uint32)}
    body = ROLES.format(slot=5, count=96)
    for left in run(body, given, threads=96, smem_bytes=16, before=SHARED, modes=MODES):
        assert [77] * 64 + [0] * 32 == left["y"].tolist()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (ROLES.format(slot=5, count=128), "is given"),
        (ROLES.format(slot=16, count=96), "barrier 16, there are 16"),
        (ROLES.format(slot=5, count=40), "40 threads, a barrier counts whole warps"),
        ("mov.u32 %r0, %laneid; setp.lt.u32 %p0, %r0, 8; @%p0 bra END; bar.sync 0; END:", "divergent, only 24 of"),
        (
            "mov.u32 %r0, %laneid; setp.lt.u32 %p0, %r0, 8; @%p0 bra END; "
            "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [%r0]; END:",
            "divergent, only 24 of",
        ),
        (
            "mov.u32 %r0, %laneid; setp.lt.u32 %p0, %r0, 8; @%p0 bra END; shfl.sync.bfly.b32 %r1, %r0, 1, 31, 0xFFFF; "
            "END:",
            "its member mask does not name",
        ),
        (
            "mov.u32 %r0, %laneid; setp.lt.u32 %p0, %r0, 8; @%p0 bra LOW; shfl.sync.idx.b32 %r1, %r0, 1, 31, "
            "0xFFFFFF00; LOW:",
            "reads from a lane that does not execute it",
        ),
        (
            "mov.u32 %r0, %laneid; setp.lt.u32 %p0, %r0, 8; @%p0 bra LOW; shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1; ret; "
            "LOW: vote.sync.any.pred %p1, %p0, -1;",
            "another kind of collective",
        ),
    ],
)
def test_misuse_is_a_fault(body: str, message: str) -> None:
    with pytest.raises(Fault, match=re.escape(message)) as caught:
        run(body, {"y": np.zeros(96, np.uint32)}, threads=96, smem_bytes=16, before=SHARED, modes=MODES)

    assert not isinstance(caught.value, Hang)


def test_a_deadlock_names_who_waits_where() -> None:
    body = "mov.u32 %r1, %warpid; setp.eq.u32 %p0, %r1, 1; @%p0 bra B; bar.sync 4, 96; ret; B: bar.sync 2, 64;"
    with pytest.raises(Hang, match=re.escape("deadlock in CTA 0, late copies, ascending warps: ")) as caught:
        run(body, ONE_OUT, threads=96, ctas=2, modes=MODES)

    assert "warps 1 wait at barrier 2 (32 of 64 threads arrived)" in str(caught.value)
    assert "warps 0,2 wait at barrier 4 (64 of 96 threads arrived)" in str(caught.value)


def test_one_warp_too_many_starts_the_next_phase_and_waits_there() -> None:
    with pytest.raises(Hang, match=re.escape("warps 2 wait at barrier 2 (32 of 64 threads arrived)")):
        run("bar.arrive 1, 32; bar.sync 1, 32; bar.sync 2, 64;", ONE_OUT, threads=96)


def test_a_barrier_without_a_count_does_not_wait_for_warps_that_left() -> None:
    body = f"""{LANE_OUT} mov.u32 %r1, %warpid; setp.eq.u32 %p0, %r1, 1; @%p0 exit; bar.sync 0;
        st.global.u32 [%d2], 5;"""
    for left in run(body, {"y": np.zeros(64, np.uint32)}, threads=64, modes=MODES):
        assert [5] * 32 + [0] * 32 == left["y"].tolist()


def test_a_warp_of_another_cta_may_be_half_gone_at_a_barrier() -> None:
    body = f"""{LANE_OUT} mov.u32 %r1, %ctaid.x; setp.eq.u32 %p0, %r1, 0; setp.ge.u32 %p1, %r0, 16; bra.uni START;
        LEAVE: ret;
        START: @%p0 bra FIRST; bar.sync 0; bra.uni AGAIN;
        FIRST: @%p1 bra LEAVE; bra.uni LAST;
        AGAIN: bar.sync 0; bra.uni LEAVE;
        LAST: st.global.u32 [%d2], 5;"""
    for left in run(body, ONE_OUT, ctas=2, modes=MODES):
        assert [5] * 16 + [0] * 16 == left["y"].tolist()


def test_an_endless_loop_is_a_hang() -> None:
    with pytest.raises(Hang, match="still running after 1000 instructions"):
        run("AGAIN: bra AGAIN;", ONE_OUT, step_limit=1000)


def test_lanes_that_loop_longer_rejoin_the_others() -> None:
    body = f"""{LANE_OUT} mov.u32 %r1, 0;
        LOOP: setp.ge.u32 %p0, %r1, %r0; @%p0 bra OUT; add.u32 %r1, %r1, 1; bra.uni LOOP;
        OUT: shfl.sync.bfly.b32 %r2, %r1, 31, 31, -1; st.global.u32 [%d2], %r2;"""

    assert [31 - lane for lane in range(32)] == run(body, ONE_OUT)[0]["y"].tolist()


def test_modes_do_not_share_memory() -> None:
    body = """ld.param.u64 %d1, [y]; ld.global.u32 %r1, [%d1]; add.u32 %r1, %r1, 1; st.global.u32 [%d1], %r1;"""
    modes = (Mode("late", "ascending"), Mode("eager", "descending"))

    assert [[8], [8]] == [left["y"].tolist() for left in run(body, {"y": np.array([7], np.uint32)}, modes=modes)]
