"""Loads, stores and asynchronous copies: what arrives, when it arrives, and what is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
from interpreted import MODES, Array, lanewise, run

from evoengine.devices.interpreter import Fault, Mode

LATE = (Mode("late", "ascending"),)
EAGER = (Mode("eager", "ascending"),)
LOAD_PARAMETERS = "ld.param.u64 %d0, [x]; ld.param.u64 %d1, [y]; mov.u32 %r0, %tid.x;"
SHARED = ".extern .shared .align 16 .b8 smem[];"
STATIC = ".shared .align 4 .b8 fixed[64];"


def words(count: int) -> Array:
    return np.arange(1, count + 1, dtype=np.uint32)


def buffers(count: int = 128) -> dict[str, Array]:
    return {"x": words(count), "y": np.zeros(count, np.uint32)}


def test_vector_loads_and_stores_move_all_their_elements() -> None:
    body = f"""{LOAD_PARAMETERS}
        mad.wide.u32 %d2, %r0, 16, %d0;
        mad.wide.u32 %d3, %r0, 16, %d1;
        ld.global.nc.L1::no_allocate.v4.u32 {{%r1, %r2, %r3, %r4}}, [%d2];
        st.global.v2.u32 [%d3+8], {{%r1, %r2}};
        st.global.v2.f32 [%d3], {{%r3, %r4}};"""
    y = run(body, buffers())[0]["y"].reshape(-1, 4)

    assert words(128).reshape(-1, 4)[:, [2, 3, 0, 1]].tolist() == y.tolist()


def test_narrow_loads_extend_by_their_sign() -> None:
    values = np.array([0x80, 0xFF7F], np.uint16)

    assert [0xFF80, 0x7F] == (
        lanewise(
            "{ .reg .b64 a; .reg .b32 i; mov.u32 i, %tid.x; ld.param.u64 a, [in0]; mad.wide.u32 a, i, 2, a; "
            "ld.global.s8 %out, [a]; }",
            values,
            out=np.uint16,
        ).tolist()
    )


def test_static_and_dynamic_shared_memory_do_not_overlap() -> None:
    body = f"""{LOAD_PARAMETERS}
        mad.wide.u32 %d2, %r0, 4, %d1;
        mov.u32 %r1, fixed; mad.lo.u32 %r2, %r0, 4, %r1; and.b32 %r2, %r2, 63; st.shared.u32 [%r2], 7;
        mov.u32 %r3, smem; shl.b32 %r4, %r0, 2; add.u32 %r3, %r3, %r4; st.shared.u32 [%r3], %r0;
        ld.shared.u32 %r5, [%r3]; add.u32 %r5, %r5, %r3; st.global.u32 [%d2], %r5;"""
    y = run(body, buffers(32), smem_bytes=128, before=SHARED + STATIC)[0]["y"]

    assert [lane + 64 + 4 * lane for lane in range(32)] == y.tolist()


def test_generic_addresses_reach_shared_local_and_global_memory() -> None:
    body = f"""{LOAD_PARAMETERS}
        .local .align 8 .b8 depot[16];
        mov.u64 %d2, depot; cvta.local.u64 %d3, %d2; st.u32 [%d3+4], %r0; ld.local.u32 %r1, [%d2+4];
        cvt.u64.u32 %d4, %r0; shl.b64 %d4, %d4, 2;
        mov.u64 %d5, smem; cvta.shared.u64 %d6, %d5; add.u64 %d6, %d6, %d4; st.u32 [%d6], %r1;
        cvta.to.shared.u64 %d7, %d6; ld.shared.u32 %r2, [%d7];
        add.u64 %d8, %d1, %d4; st.u32 [%d8], %r2;"""

    assert list(range(32)) == run(body, buffers(32), smem_bytes=128, before=SHARED)[0]["y"].tolist()


@pytest.mark.parametrize(
    ("access", "message"),
    [
        ("ld.global.u32 %r1, [%d0+512];", "1 lanes outside every buffer, first at x + 512 B of 512 B"),
        ("st.global.u32 [%d0+-4], %r0;", "first at x + -4 B of 512 B"),
        ("st.global.v4.u32 [%d1+500], {%r0, %r0, %r0, %r0};", "first at y + 500 B of 512 B"),
        ("st.global.u64 [%d1+4], %d0;", "1 lanes misaligned"),
        ("ld.global.u32 %r1, [%d9];", "outside every buffer"),
        ("st.shared.u32 [%r9+128], %r0;", "shared address 128 (+4 B) outside the 128 B it has"),
        ("ld.shared.v2.u32 {%r1, %r2}, [%r9+4];", "misaligned, first at shared address 4 for 8 B"),
        ("ld.shared.u16 %h1, [%r9+-2];", "shared address -2"),
        ("cp.async.cg.shared.global [%r9], [%d0+504], 16;", "first at x + 504 B"),
        ("cp.async.cg.shared.global [%r9+120], [%d0], 16;", "shared address 120"),
        ("cp.async.ca.shared.global [%r9], [%d0+2], 4;", "misaligned"),
        ("cp.async.cg.shared.global [%r9], [%d0], 16, 17;", "source size 17 is over 16 B"),
    ],
)
def test_bad_accesses_are_faults_with_place_and_instruction(access: str, message: str) -> None:
    body = f"""{LOAD_PARAMETERS} mov.u64 %d9, 64; mov.u32 %r9, smem;
        setp.eq.u32 %p0, %r0, 3; @!%p0 bra AFTER; {access} AFTER:"""
    with pytest.raises(Fault, match=re.escape(message)) as caught:
        run(body, buffers(), smem_bytes=128, before=SHARED)

    assert access.split()[0] in str(caught.value)


def test_a_store_beyond_one_buffer_does_not_land_in_the_next() -> None:
    body = f"{LOAD_PARAMETERS} mad.wide.u32 %d2, %r0, 4, %d0; st.global.u32 [%d2], 9;"
    with pytest.raises(Fault, match="x \\+ 64 B of 64 B"):
        run(body, {"x": words(16), "y": words(16)})


COPY = f"""{LOAD_PARAMETERS}
    shl.b32 %r1, %r0, 4; mov.u32 %r2, smem; add.u32 %r3, %r2, %r1; cvt.u64.u32 %d2, %r1;
    add.u64 %d3, %d0, %d2; add.u64 %d4, %d1, %d2;"""
READ = "ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [%r3]; st.global.v4.u32 [%d4], {%r4, %r5, %r6, %r7};"
ISSUE = "cp.async.cg.shared.global.L2::128B [%r3], [%d3], 16;"
POISON = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("after_issue", "late", "eager"),
    [
        ("", False, True),
        ("cp.async.commit_group;", False, True),
        ("cp.async.wait_group 0;", False, True),  # never committed
        ("cp.async.commit_group; cp.async.wait_group 1;", False, True),
        ("cp.async.commit_group; cp.async.wait_group 0;", True, True),
        ("cp.async.commit_group; cp.async.commit_group; cp.async.wait_group 1;", True, True),  # an empty group counts
        ("cp.async.wait_all;", True, True),
    ],
)
def test_copies_land_late_only_when_waited_for(after_issue: str, late: bool, eager: bool) -> None:
    for modes, landed in ((LATE, late), (EAGER, eager)):
        y = run(COPY + ISSUE + after_issue + READ, buffers(), smem_bytes=512, before=SHARED, modes=modes)[0]["y"]

        assert (words(128) if landed else np.full(128, POISON, np.uint32)).tolist() == y.tolist()


def test_one_run_holds_late_and_eager_modes_side_by_side() -> None:
    done = run(COPY + ISSUE + READ, buffers(), smem_bytes=512, before=SHARED, modes=MODES)

    assert [POISON, POISON, 1, 1] == [int(left["y"][0]) for left in done]
    assert ["late", "late", "eager", "eager"] == [mode.copies for mode in MODES]


def test_hints_change_nothing() -> None:
    body = f"""{COPY} createpolicy.fractional.L2::evict_last.b64 %d9, 1.0; prefetch.global.L2 [%d9]; nanosleep.u32 20;
        cp.async.cg.shared.global.L2::cache_hint.L2::256B [%r3], [%d3], 16, 16, %d9; cp.async.wait_all;
        ld.shared.v4.u32 {{%r4, %r5, %r6, %r7}}, [%r3];
        ld.global.nc.L1::no_allocate.L2::cache_hint.v2.u32 {{%r8, %r9}}, [%d3+8], %d9; add.u32 %r6, %r6, %r8;
        st.global.cg.v4.u32 [%d4], {{%r4, %r5, %r6, %r7}}; ld.relaxed.gpu.global.u32 %r4, [%d4];
        fence.acq_rel.gpu; ld.acquire.gpu.global.u32 %r5, [%d4]; add.u32 %r4, %r4, %r5;
        st.release.gpu.global.u32 [%d4], %r4; membar.gl; ld.global.cg.u32 %r5, [%d4]; st.global.wt.u32 [%d4], %r5;"""
    expected = words(128).reshape(-1, 4) * np.array([2, 1, 2, 1], np.uint32)

    for left in run(body, buffers(), smem_bytes=512, before=SHARED, modes=MODES):
        assert expected.tolist() == left["y"].reshape(-1, 4).tolist()


def test_a_thread_waits_for_its_own_groups_only() -> None:
    body = COPY + ISSUE + "cp.async.commit_group; setp.lt.u32 %p0, %r0, 5; @%p0 cp.async.wait_group 0;" + READ
    y = run(body, buffers(), smem_bytes=512, before=SHARED, modes=LATE)[0]["y"]

    assert [*words(20).tolist(), *[POISON] * 108] == y.tolist()


@pytest.mark.parametrize("modes", [LATE, EAGER])
def test_the_source_size_fills_with_zeros(modes: tuple[Mode, ...]) -> None:
    body = COPY + "rem.u32 %r8, %r0, 17; cp.async.cg.shared.global [%r3], [%d3], 16, %r8; cp.async.wait_all;" + READ
    y = run(body, buffers(), smem_bytes=512, before=SHARED, modes=modes)[0]["y"].view(np.uint8).reshape(32, 16)
    expected = words(128).view(np.uint8).reshape(32, 16).copy()
    for lane in range(32):
        expected[lane, lane % 17 :] = 0

    assert expected.tolist() == y.tolist()


def test_a_source_size_of_zero_reads_no_memory() -> None:
    body = COPY + "mov.u64 %d9, 16; cp.async.cg.shared.global [%r3], [%d9], 16, 0; cp.async.wait_all;" + READ

    assert [0] * 128 == run(body, buffers(), smem_bytes=512, before=SHARED)[0]["y"].tolist()


@pytest.mark.parametrize("width", [4, 8, 16])
def test_narrow_copies(width: int) -> None:
    body = COPY + f"cp.async.ca.shared.global [%r3], [%d3], {width}; cp.async.wait_all;" + READ
    y = run(body, buffers(), smem_bytes=512, before=SHARED, modes=LATE)[0]["y"].view(np.uint8).reshape(32, 16)
    expected = words(128).view(np.uint8).reshape(32, 16).copy()
    expected[:, width:] = 0xFF

    assert expected.tolist() == y.tolist()
