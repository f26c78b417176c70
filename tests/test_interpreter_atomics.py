"""Atomics, and CTAs that agree by them on who merges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from interpreted import MODES, ONE_MODE, Array, run

from evoengine.devices.interpreter import Mode, Unsupported

EACH = "ld.param.u64 %d0, [m]; ld.param.u64 %d1, [y]; mov.u32 %r0, %tid.x; mad.wide.u32 %d2, %r0, 4, %d1;"


def once(atomic: str, memory: Any, lanes: int = 4) -> tuple[Any, list[int]]:
    """What an atomic of several lanes on the word at %d0 leaves there, and what the lanes got in %r2."""
    given: dict[str, Array] = {"m": np.array([memory]), "y": np.zeros(lanes, np.uint32)}
    left = run(f"{EACH} {atomic} st.global.u32 [%d2], %r2;", given, threads=lanes)[0]
    return left["m"][0], left["y"].tolist()


@pytest.mark.parametrize(
    ("atomic", "memory", "after", "got"),
    [
        ("atom.global.add.u32 %r2, [%d0], 3;", np.uint32(2**32 - 4), 8, [2**32 - 4, 2**32 - 1, 2, 5]),
        ("atom.add.acq_rel.gpu.global.u32 %r2, [%d0], %r0;", np.uint32(7), 13, [7, 7, 8, 10]),
        ("atom.add.u32 %r2, [%d0], 1;", np.uint32(0), 4, [0, 1, 2, 3]),
        ("atom.global.inc.u32 %r2, [%d0], 2;", np.uint32(1), 2, [1, 2, 0, 1]),
        ("atom.relaxed.gpu.global.dec.u32 %r2, [%d0], 2;", np.uint32(1), 0, [1, 0, 2, 1]),
        ("atom.global.max.s32 %r2, [%d0], %r0;", np.int32(-5), 3, [2**32 - 5, 0, 1, 2]),
        ("atom.global.min.u32 %r2, [%d0], %r0;", np.uint32(2), 0, [2, 0, 0, 0]),
        ("atom.global.or.b32 %r2, [%d0], %r0;", np.uint32(8), 11, [8, 8, 9, 11]),
        ("atom.global.exch.b32 %r2, [%d0], %r0;", np.uint32(9), 3, [9, 0, 1, 2]),
        ("atom.global.cas.b32 %r2, [%d0], 2, %r0;", np.uint32(2), 0, [2, 0, 0, 0]),
        ("red.global.add.u32 [%d0], 5; mov.u32 %r2, 1;", np.uint32(1), 21, [1] * 4),
        ("red.release.gpu.global.add.f32 [%d0], 0f3F000000; mov.u32 %r2, 1;", np.float32(1), 3.0, [1] * 4),
        ("atom.global.add.u64 %d5, [%d0], -1; cvt.u32.u64 %r2, %d5;", np.uint64(2**33), 2**33 - 4,
         [0, *(2**32 - i for i in (1, 2, 3))]),
        ("setp.ge.u32 %p0, %r0, 2; mov.u32 %r2, 77; @%p0 atom.global.add.u32 %r2, [%d0], 1;", np.uint32(5), 7,
         [77, 77, 5, 6]),
    ],
)  # fmt: skip
def test_lanes_take_turns(atomic: str, memory: Any, after: float, got: list[int]) -> None:
    assert (after, got) == once(atomic, memory)


def test_atomics_on_shared_memory() -> None:
    body = f"""{EACH} mov.u32 %r3, smem; setp.eq.u32 %p0, %r0, 0; @%p0 st.shared.u32 [%r3], 0; bar.sync 0;
        atom.shared.add.u32 %r2, [%r3], 1; red.shared::cta.add.u32 [%r3], 1; bar.sync 0; ld.shared.u32 %r2, [%r3];
        st.global.u32 [%d2], %r2;"""
    given: dict[str, Array] = {"m": np.zeros(1, np.uint32), "y": np.zeros(64, np.uint32)}

    for left in run(
        body, given, threads=64, smem_bytes=16, before=".extern .shared .align 16 .b8 smem[];", modes=MODES
    ):
        assert [128] * 64 == left["y"].tolist()


@pytest.mark.parametrize("atomic", ["atom.global.add.f16x2 %r2, [%d0], %r0;", "atom.global.max.f32 %f2, [%d0], %f0;"])
def test_other_atomics_are_unknown(atomic: str) -> None:
    with pytest.raises(Unsupported, match="atom"):
        once(atomic, np.uint32(0))


# Every CTA writes 64 partial numbers; the last to take a ticket adds up those of all and puts the counter back.
MERGE = """ld.param.u64 %d0, [partial]; ld.param.u64 %d1, [count]; ld.param.u64 %d2, [y]; ld.param.u64 %d3, [merger];
    mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; mov.u32 %r2, %nctaid.x; mov.u32 %r3, smem; setp.eq.u32 %p0, %r0, 0;
    mad.lo.u32 %r4, %r1, 64, %r0; mad.wide.u32 %d4, %r4, 4, %d0; add.u32 %r5, %r4, 1; st.global.u32 [%d4], %r5;
    membar.gl; {before}
    @!%p0 bra TOLD; atom.global.add.u32 %r6, [%d1], 1; st.shared.u32 [%r3], %r6; TOLD: bar.sync 0;
    ld.shared.u32 %r6, [%r3]; add.u32 %r7, %r2, -1; setp.ne.u32 %p1, %r6, %r7; @%p1 bra END;
    membar.gl; mov.u32 %r8, 0; mov.u32 %r9, 0; mad.wide.u32 %d5, %r0, 4, %d0;
    ADD: ld.global.cg.u32 %r10, [%d5]; add.u32 %r9, %r9, %r10; add.u64 %d5, %d5, 256; add.u32 %r8, %r8, 1;
    setp.lt.u32 %p2, %r8, %r2; @%p2 bra ADD;
    mad.wide.u32 %d6, %r0, 4, %d2; st.global.u32 [%d6], %r9;
    @%p0 st.global.u32 [%d3], %r1; {reset}
    END:"""
CTAS = 5


def merged(before: str = "bar.sync 0;", reset: str = "@%p0 st.global.u32 [%d1], 0;") -> list[dict[str, Array]]:
    given: dict[str, Array] = {
        "partial": np.zeros(64 * CTAS, np.uint32),
        "count": np.zeros(1, np.uint32),
        "y": np.zeros(64, np.uint32),
        "merger": np.full(1, 99, np.uint32),
    }
    code = MERGE.format(before=before, reset=reset)
    return run(code, given, threads=64, ctas=CTAS, smem_bytes=16, before=SHARED, modes=MODES)


SHARED = ".extern .shared .align 16 .b8 smem[];"
SUMS = [sum(64 * cta + t + 1 for cta in range(CTAS)) for t in range(64)]


def test_the_last_cta_merges_and_it_is_not_always_the_same() -> None:
    done = merged()

    assert [SUMS] * 4 == [left["y"].tolist() for left in done]
    assert [4, 0, 4, 0] == [int(left["merger"][0]) for left in done]
    assert [0] * 4 == [int(left["count"][0]) for left in done]


def test_a_ticket_taken_before_the_whole_cta_has_written_shows() -> None:
    """In the modes where the warp that takes it runs first."""
    assert [True, False] * 2 == [left["y"].tolist() != SUMS for left in merged(before="")]


def test_ctas_that_reach_the_ticket_at_different_times_all_count() -> None:
    """CTA c does c laps first, so that tickets are taken one by one."""
    laps = """mov.u32 %r11, 0; LAP: setp.ge.u32 %p3, %r11, %r1; @%p3 bra OUT; add.u32 %r11, %r11, 1; bra LAP;
        OUT: bar.sync 0;"""

    assert [SUMS] * 4 == [left["y"].tolist() for left in merged(before=laps)]


def test_tickets_for_work_give_every_piece_to_one_cta() -> None:
    """A persistent grid: CTAs draw pieces until there are none; one draws most of them here."""
    body = """ld.param.u64 %d0, [count]; ld.param.u64 %d1, [y]; mov.u32 %r0, %tid.x; setp.ne.u32 %p0, %r0, 0;
        DRAW: @%p0 bra WAIT; atom.global.add.u32 %r1, [%d0], 1; WAIT: shfl.sync.idx.b32 %r1, %r1, 0, 31, -1;
        setp.ge.u32 %p1, %r1, 6; @%p1 bra END; mad.lo.u32 %r2, %r1, 32, %r0; mad.wide.u32 %d2, %r2, 4, %d1;
        red.global.add.u32 [%d2], 1; bra DRAW; END:"""
    given: dict[str, Array] = {"count": np.zeros(1, np.uint32), "y": np.zeros(192, np.uint32)}

    for left in run(body, given, threads=32, ctas=3, modes=MODES):
        assert [1] * 192 == left["y"].tolist()
        assert 9 == int(left["count"][0])


def test_one_mode_alone_has_one_order() -> None:
    body = f"{EACH} mov.u32 %r3, %ctaid.x; atom.global.exch.b32 %r2, [%d0], %r3;"
    given: dict[str, Array] = {"m": np.full(1, 50, np.uint32), "y": np.zeros(1, np.uint32)}
    descending = (Mode("late", "descending"),)

    assert [2, 0] == [int(run(body, given, threads=1, ctas=3, modes=m)[0]["m"][0]) for m in (ONE_MODE, descending)]
