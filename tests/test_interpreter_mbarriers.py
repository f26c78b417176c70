"""mbarriers: phases, arrivals that copies make, schedules, misuse and deadlock."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest
from interpreted import MODES, ONE_MODE, Array, run

from evoengine.devices.interpreter import Fault, Hang, Mode

SHARED = ".extern .shared .align 16 .b8 smem[];"
STARTED = """ld.param.u64 %d0, [x]; ld.param.u64 %d1, [y]; mov.u32 %r0, %tid.x; mov.u32 %r1, %warpid; mov.u32 %r2, smem;
    mad.wide.u32 %d2, %r0, 4, %d1; setp.eq.u32 %p0, %r0, 0; @!%p0 bra READY; {init} READY: bar.sync 0;"""
LATE = Mode("late", "ascending")


def wait(label: str, barrier: str, parity: str = "0") -> str:
    """The loop that a kernel waits with, as its inline assembly has it."""
    return f"""{{ .reg .pred done;
        {label}: mbarrier.test_wait.parity.shared::cta.b64 done, [%r2+{barrier}], {parity}; @!done bra {label}; }}"""


def start(*counts: int) -> str:
    """Thread 0 makes an mbarrier of each count, 8 B apart, and everyone knows."""
    inits = "".join(f"mbarrier.init.shared.b64 [%r2+{8 * i}], {count};" for i, count in enumerate(counts))
    return STARTED.format(init=inits)


def outputs(body: str, threads: int, modes: Sequence[Mode] = MODES) -> list[list[int]]:
    given = {"x": np.arange(1, 4097, dtype=np.uint32), "y": np.zeros(threads, np.uint32)}
    done = run(body, given, threads=threads, smem_bytes=4096, before=SHARED, modes=modes)
    return [left["y"].tolist() for left in done]


# One warp produces, two consume: EMPTY at 8 and 16 B (2 consumer warps' lane 0), FULL at 24 and 32 B (32 lanes), two
# slots of 128 B at 64 and 192. Each slot s of turn t holds x[32 t + lane]; the consumers add all turns up.
RING = """{start}
    mov.u32 %r10, 0; mov.u32 %r11, 0; mov.u32 %r15, 0; mad.wide.u32 %d4, %r0, 4, %d0; and.b32 %r16, %r0, 31;
    setp.eq.u32 %p1, %r1, 2; @%p1 bra PRODUCE;
    CONSUME: and.b32 %r12, %r10, 1; shr.u32 %r13, %r10, 1; and.b32 %r13, %r13, 1;
        mad.lo.u32 %r3, %r12, 8, %r2;
        {{ .reg .pred done; AGAIN: mbarrier.test_wait.parity.shared.b64 done, [%r3+24], {full_parity};
           @!done bra AGAIN; }}
        mad.lo.u32 %r4, %r12, 128, %r2; mad.lo.u32 %r4, %r16, 4, %r4; ld.shared.u32 %r5, [%r4+64];
        mad.lo.u32 %r11, %r11, 3, %r5;
        bar.warp.sync -1; setp.eq.u32 %p2, %r16, 0; @!%p2 bra NEXT; {release} NEXT:
        add.u32 %r10, %r10, 1; setp.lt.u32 %p3, %r10, {turns}; @%p3 bra CONSUME;
    st.global.u32 [%d2], %r11; ret;
    PRODUCE: sub.u64 %d4, %d4, 256;
    FILL: and.b32 %r12, %r10, 1; shr.u32 %r13, %r10, 1; and.b32 %r13, %r13, 1; xor.b32 %r14, %r13, 1;
        mad.lo.u32 %r3, %r12, 8, %r2;
        {{ .reg .pred done; AGAIN: mbarrier.test_wait.parity.shared.b64 done, [%r3+8], {empty_parity};
           @!done bra AGAIN; }}
        mad.lo.u32 %r4, %r12, 128, %r2; mad.lo.u32 %r4, %r16, 4, %r4; mul.wide.u32 %d5, %r10, 128;
        add.u64 %d5, %d5, %d4;
        cp.async.ca.shared.global [%r4+64], [%d5], 4;
        {arrive}
        add.u32 %r10, %r10, 1; setp.lt.u32 %p3, %r10, {turns}; @%p3 bra FILL;"""
NOINC = "cp.async.mbarrier.arrive.noinc.shared.b64 [%r3+24];"
RELEASE = "mbarrier.arrive.shared.b64 _, [%r3+8];"
TURNS = 7


def ring(
    arrive: str = NOINC, release: str = RELEASE, full_parity: str = "%r13", empty_parity: str = "%r14"
) -> str:  # fmt: skip
    return RING.format(
        start=start(1, 2, 2, 32, 32), arrive=arrive, release=release, full_parity=full_parity,
        empty_parity=empty_parity, turns=TURNS,
    )  # fmt: skip


def summed() -> list[int]:
    values = [0] * 32
    for turn in range(TURNS):
        values = [(3 * value + 32 * turn + lane + 1) % 2**32 for lane, value in enumerate(values)]
    return values * 2 + [0] * 32


@pytest.mark.parametrize(
    "arrive",
    [
        NOINC,
        "cp.async.mbarrier.arrive.shared::cta.b64 [%r3+24]; mbarrier.arrive.shared.b64 %d6, [%r3+24];",
        "cp.async.wait_all; mbarrier.arrive.shared::cta.b64 %d6, [%r3+24];",
        "cvt.u64.u32 %d6, %r3; cvta.shared.u64 %d6, %d6; cp.async.mbarrier.arrive.noinc.b64 [%d6+24];",
    ],
    ids=["noinc", "counted", "waited", "generic"],
)
def test_a_ring_of_two_stages_hands_over_every_tile(arrive: str) -> None:
    assert [summed()] * 4 == outputs(ring(arrive), 96)


def shows(body: str, mode: Mode) -> bool:
    """Whether a wrong ring shows in a mode, as wrong numbers or as a deadlock: a warp may miss a whole lap."""
    try:
        return [summed()] != outputs(body, 96, [mode])
    except Hang:
        return True


@pytest.mark.parametrize(
    ("body", "modes"),
    [
        (ring(full_parity="%r14"), MODES),  # passes at once, one lap early
        (ring(empty_parity="%r13"), MODES),
        (ring("mbarrier.arrive.shared.b64 %d6, [%r3+24];"), MODES[:2]),  # the copies are not part of the arrival
    ],
    ids=["consumer's parity", "producer's parity", "arrival before the copies"],
)
def test_a_tile_read_or_refilled_too_early_shows(body: str, modes: Sequence[Mode]) -> None:
    for mode in modes:
        assert shows(body, mode), mode


@pytest.mark.parametrize("barrier", ["%r3+24", "%r3+8"], ids=["full", "empty"])
def test_no_wait_of_a_ring_can_be_left_out(barrier: str) -> None:
    test = rf"mbarrier.test_wait.parity.shared.b64 done, \[{re.escape(barrier)}\], %r1\d;\s+@!done bra AGAIN;"
    weakened, found = re.subn(test, "", ring())

    assert 1 == found
    assert any(shows(weakened, mode) for mode in MODES)


def test_a_missing_arrival_is_a_deadlock_with_the_mbarrier_as_evidence() -> None:
    with pytest.raises(Hang, match="deadlock in CTA 0, late copies, ascending warps: ") as caught:
        outputs(ring(release=""), 96)
    (waited,) = [one for one in caught.value.evidence["mbarriers"] if one["warps"] == "2"]

    assert "warps 2 wait for the mbarrier at shared address 8, whose phase of parity 0 lacks 2 of 2" in str(
        caught.value
    )
    assert {
        "warps": "2", "shared_address": 8, "phase_parity": 0, "pending_arrivals": 2, "expected_arrivals": 2,
    } == waited  # fmt: skip


def test_a_deadlock_is_found_at_once() -> None:
    body = start(1, 5) + wait("A", "8")
    with pytest.raises(Hang, match="lacks 5 of 5 arrivals"):
        run(
            body, {"x": np.zeros(1, np.uint32), "y": np.zeros(64, np.uint32)}, threads=64, smem_bytes=64,
            before=SHARED, modes=MODES, step_limit=200,
        )  # fmt: skip


def test_waits_at_a_barrier_and_at_an_mbarrier_are_one_deadlock() -> None:
    body = start(1, 5) + f"setp.eq.u32 %p1, %r1, 1; @%p1 bra WAIT; bar.sync 3; ret; WAIT: {wait('A', '8')}"
    with pytest.raises(Hang, match=r"warps 0 wait at barrier 3 .*; warps 1 wait for the mbarrier at shared address 8"):
        outputs(body, 64)


def test_phases_alternate_and_are_expected_anew() -> None:
    """Parity 1 of a fresh mbarrier is the phase before its first, which is over; then 0, then 1 end in turn."""
    step = "mbarrier.arrive.shared.b64 %d6, [%r2+8];"
    body = start(1, 64) + "".join(
        f"{step if lap else ''} {wait(f'W{lap}', '8', str(1 - lap % 2))} add.u32 %r9, %r9, 1;" for lap in range(6)
    )
    body = body.replace("READY:", "READY: mov.u32 %r9, 0;") + "st.global.u32 [%d2], %r9;"

    assert [[6] * 64] * 4 == outputs(body, 64)


def test_the_state_of_an_arrival_names_its_phase() -> None:
    """The phase arrived in is not over for the first warp to arrive, and is for whoever waits for it."""
    body = f"""{start(1, 64)} mbarrier.arrive.shared.b64 %d6, [%r2+8];
        {{ .reg .pred done; AGAIN: mbarrier.test_wait.shared.b64 done, [%r2+8], %d6; @!done bra AGAIN; }}
        mbarrier.arrive.shared.b64 %d7, [%r2+8]; {wait("B", "8", "1")}
        setp.eq.u64 %p1, %d6, %d7; selp.u32 %r9, 1, 2, %p1; st.global.u32 [%d2], %r9;"""

    assert [[2] * 64] * 4 == outputs(body, 64)


def test_a_kernel_that_asks_once_and_then_does_its_part_is_no_deadlock() -> None:
    """A look ahead at the next phase comes before this warp's own arrival, without which that phase does not end."""
    body = f"""{start(1, 64)} {{ .reg .pred early; mbarrier.test_wait.parity.shared.b64 early, [%r2+8], 0;
        selp.u32 %r9, 1, 0, early; }} mbarrier.arrive.shared.b64 %d6, [%r2+8]; {wait("A", "8")}
        add.u32 %r9, %r9, 5; st.global.u32 [%d2], %r9;"""

    assert [[5] * 64] * 4 == outputs(body, 64)


def test_one_lane_waits_for_its_warp() -> None:
    body = f"""{start(1, 33)} setp.eq.u32 %p1, %r1, 1; @%p1 bra HELP; and.b32 %r16, %r0, 31;
        setp.ne.u32 %p2, %r16, 7; @%p2 bra TOGETHER; {wait("A", "8")} TOGETHER: bar.warp.sync -1;
        ld.shared.u32 %r5, [%r2+64]; st.global.u32 [%d2], %r5; ret;
        HELP: st.shared.u32 [%r2+64], 9; mbarrier.arrive.shared.b64 %d6, [%r2+8];
        setp.eq.u32 %p3, %r0, 40; @%p3 mbarrier.arrive.shared.b64 %d6, [%r2+8];"""

    assert [[9] * 32 + [0] * 32] * 4 == outputs(body, 64)


def test_lanes_of_a_warp_may_wait_for_different_mbarriers() -> None:
    body = f"""{start(1, 16, 32)} setp.ge.u32 %p1, %r0, 16; @%p1 bra HIGH;
        {wait("A", "16")} mov.u32 %r9, 1; bra.uni END;
        HIGH: mbarrier.arrive.shared.b64 %d6, [%r2+8]; {wait("B", "8")} mbarrier.arrive.shared.b64 %d6, [%r2+16];
        mbarrier.arrive.shared.b64 %d6, [%r2+16]; mov.u32 %r9, 2; END: st.global.u32 [%d2], %r9;"""

    assert [[1] * 16 + [2] * 16] * 4 == outputs(body, 32)


def test_late_copies_are_there_when_their_mbarrier_is_waited_for_and_not_before() -> None:
    body = f"""{start(1, 64)} mad.wide.u32 %d4, %r0, 4, %d0; mad.lo.u32 %r4, %r0, 4, %r2;
        cp.async.ca.shared.global [%r4+64], [%d4], 4; cp.async.mbarrier.arrive.noinc.shared.b64 [%r2+8];
        EARLY {wait("A", "8")} LATE st.global.u32 [%d2], %r5;"""
    read = "ld.shared.u32 %r5, [%r4+64];"
    landed, poison = list(range(1, 65)), [0xFFFFFFFF] * 64

    assert [landed] * 4 == outputs(body.replace("LATE", read).replace("EARLY", ""), 64)
    assert [poison, poison, landed, landed] == outputs(body.replace("EARLY", read).replace("LATE", ""), 64)


def test_an_arrival_lands_the_copies_before_it_alone() -> None:
    copy = "cp.async.ca.shared.global [%r4+{at}], [%d4], 4;"
    body = f"""{start(1, 32)} mad.wide.u32 %d4, %r0, 4, %d0; mad.lo.u32 %r4, %r0, 4, %r2; {copy.format(at=64)}
        cp.async.mbarrier.arrive.noinc.shared.b64 [%r2+8]; {copy.format(at=192)} {wait("A", "8")}
        ld.shared.u32 %r5, [%r4+64]; ld.shared.u32 %r6, [%r4+192]; sub.u32 %r5, %r5, %r6; st.global.u32 [%d2], %r5;"""

    assert [[lane + 2 for lane in range(32)]] == outputs(body, 32, [LATE])  # the second is still poison, -1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (start(1) + "mbarrier.arrive.shared.b64 %d6, [%r2+8];", "no mbarrier at shared address 8"),
        (start(1) + wait("A", "8"), "no mbarrier at shared address 8"),
        (start(1, 64) + "cp.async.mbarrier.arrive.noinc.shared.b64 [%r2+16];" + wait("A", "16"), "address 16: never"),
        (start(1, 64) + "st.shared.u32 [%r2+8], %r0; mbarrier.arrive.shared.b64 %d6, [%r2+8];", "or overwritten"),
        (start(1, 64) + "st.shared.u32 [%r2+12], %r0; mbarrier.arrive.shared.b64 %d6, [%r2+8];", "or overwritten"),
        (start(1, 9) + "@%p0 mbarrier.inval.shared.b64 [%r2+8]; bar.sync 0;" + wait("A", "8"), "invalidated or"),
        (start(1, 31) + "mbarrier.arrive.shared.b64 %d6, [%r2+8];", "32 lanes arrive at the mbarrier at shared"),
        (start(1, 0), "a count of 0, an mbarrier takes 1 to 1048575"),
        (start(1) + "@%p0 mbarrier.init.shared.b64 [%r2], 2;", "there already is an mbarrier at shared address 0"),
        (start(1) + "mbarrier.init.shared.b64 [%r2+16], 2;", "several lanes initialise"),
        (start(1) + "mbarrier.arrive.shared.b64 %d6, [%r2+4];", "misaligned, first at shared address 4 for 8 B"),
        (start(1) + "mbarrier.arrive.shared.b64 %d6, [%r2+8192];", "shared address 8192"),
        (start(1) + "mbarrier.arrive.b64 %d6, [%d1];", "an mbarrier in global memory"),
        (start(1) + wait("A", "0", "2"), "a parity of 2, a phase has 0 or 1"),
    ],
)  # fmt: skip
def test_misuse_is_a_fault(body: str, message: str) -> None:
    with pytest.raises(Fault, match=re.escape(message)) as caught:
        outputs(body, 64)

    assert not isinstance(caught.value, Hang)


def test_initialised_without_telling_the_others() -> None:
    """The CTA-wide barrier after init is missing: one order of warps shows it."""
    body = start(1, 64).replace("bar.sync 0;", "") + "mbarrier.arrive.shared.b64 %d6, [%r2+8];" + wait("A", "8")

    assert [[0] * 64] == outputs(body, 64, [LATE])
    with pytest.raises(Fault, match="no mbarrier at shared address 8"):
        outputs(body, 64)


def test_a_place_can_be_used_again_after_inval() -> None:
    body = f"""{start(1, 32)} mbarrier.arrive.shared.b64 %d6, [%r2+8]; {wait("A", "8")} bar.warp.sync -1;
        @%p0 mbarrier.inval.shared.b64 [%r2+8]; @%p0 mbarrier.init.shared.b64 [%r2+8], 32; bar.warp.sync -1;
        mbarrier.arrive.shared.b64 %d6, [%r2+8]; {wait("B", "8")} st.global.u32 [%d2], 3;"""

    assert [[3] * 32] == outputs(body, 32, ONE_MODE)


def test_ctas_wait_for_their_own_mbarriers() -> None:
    body = f"""{start(1, 64)} mov.u32 %r6, %ctaid.x; mad.lo.u32 %r7, %r6, 64, %r0; mad.wide.u32 %d2, %r7, 4, %d1;
        setp.eq.u32 %p1, %r1, 0; @%p1 bra WAIT; st.shared.u32 [%r2+64], %r6;
        mbarrier.arrive.shared.b64 %d6, [%r2+8]; ret;
        WAIT: mbarrier.arrive.shared.b64 %d6, [%r2+8]; {wait("A", "8")} ld.shared.u32 %r5, [%r2+64];
        st.global.u32 [%d2], %r5;"""
    given: dict[str, Array] = {"x": np.zeros(1, np.uint32), "y": np.zeros(192, np.uint32)}
    done = run(body, given, threads=64, ctas=3, smem_bytes=128, before=SHARED, modes=MODES)

    for left in done:
        assert [cta if t < 32 else 0 for cta in range(3) for t in range(64)] == left["y"].tolist()
