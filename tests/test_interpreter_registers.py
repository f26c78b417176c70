"""setmaxnreg against the PTX ISA: a pool of registers a CTA, and warps that wait until it holds enough."""

from __future__ import annotations

import re

import numpy as np
import pytest
from interpreted import MODES, compile_source, program, registers_used, run

from evoengine.devices.interpreter import Fault, Hang, Unsupported
from evoengine.devices.interpreter.parser import parse
from evoengine.devices.interpreter.registers import launch_registers
from evoengine.devices.interpreter.remedies import remedy

TWO_WARPGROUPS = ".maxntid 256, 1, 1 .minnctapersm 2"
"""128 registers a thread at the launch."""
ROLES = "ld.param.u64 %d0, [y]; mov.u32 %r0, %tid.x; mad.wide.u32 %d1, %r0, 4, %d0; setp.ge.u32 %p0, %r0, 128;"
STORE = "st.global.u32 [%d1], %r0;"


def change(how: str, registers: int) -> str:
    return f"setmaxnreg.{how}.sync.aligned.u32 {registers};"


def roles(gives: str, takes: str) -> str:
    """The second warpgroup gives, the first takes; each thread then stores its number."""
    return f"{ROLES} @%p0 bra SECOND; {takes} {STORE} ret; SECOND: {gives} {STORE}"


def stored(body: str, bounds: str = TWO_WARPGROUPS, threads: int = 256) -> list[list[int]]:
    """What every mode's threads stored."""
    done = run(body, {"y": np.zeros(threads, np.uint32)}, threads=threads, modes=MODES, bounds=bounds)
    return [left["y"].view(np.uint32).tolist() for left in done]


def test_a_warp_grows_by_what_others_have_given_up() -> None:
    everyone = list(range(256))

    assert [everyone] * len(MODES) == stored(roles(change("dec", 40), change("inc", 216)))
    assert [everyone] * len(MODES) == stored(roles(change("dec", 40), change("inc", 128)))


@pytest.mark.parametrize(
    ("gives", "takes", "message"),
    [
        ("", change("inc", 136), "warps 0-3 wait for 8 more registers a thread each, 0 are free"),
        (change("dec", 40), change("inc", 224), " more registers a thread each, 64 are free"),
        ("bar.sync 1, 256;" + change("dec", 40), change("inc", 216) + "bar.sync 1, 256;", "warps 0-3 wait for 88 more"),
    ],
)
def test_waiting_for_registers_that_never_come_is_a_deadlock(gives: str, takes: str, message: str) -> None:
    with pytest.raises(Hang, match=re.escape(message)):
        stored(roles(gives, takes))


def test_registers_can_come_in_parts() -> None:
    """Each warp of the first warpgroup gives 8 registers up, all of the second wait for 24, in steps of 8."""
    later = change("dec", 120) + "bar.sync 1, 256;" + change("dec", 104)
    body = roles(change("inc", 136) + "bar.sync 1, 256;" + change("inc", 152), later)

    assert [list(range(256))] * len(MODES) == stored(body)


@pytest.mark.parametrize("gives", [change("dec", 136), change("inc", 120)])
def test_growing_to_fewer_and_shrinking_to_more_are_faults(gives: str) -> None:
    text = re.escape(f"{gives[:-1]}: its warp has 128 a thread, inc takes as many at least and dec at most (CTA 0")
    with pytest.raises(Fault, match=text):
        stored(roles(gives, change("inc", 216)))


def test_an_exit_gives_nothing_back() -> None:
    with pytest.raises(Hang, match="warps 0-3 wait for 8 more"):
        stored(roles("ret;", change("inc", 136)))


def test_a_warpgroup_changes_its_registers_together() -> None:
    body = f"{ROLES} mov.u32 %r1, %warpid; setp.eq.u32 %p1, %r1, 5; @%p1 bra NONE; {change('dec', 40)} NONE: {STORE}"
    with pytest.raises(Fault, match=r"warps 4 to 7 do not all execute the same .* operands \(CTA 0"):
        stored(body)


def test_a_warp_changes_its_registers_as_a_whole() -> None:
    alone = f"{ROLES} and.b32 %r1, %r0, 31; setp.eq.u32 %p1, %r1, 3; @%p1 ret; {change('dec', 40)} {STORE}"
    with pytest.raises(Fault, match="divergent, only 31 of the warp's 32 lanes"):
        stored(alone)
    detour = alone.replace("@%p1 ret;", "@%p1 bra DETOUR; HERE:") + "ret; DETOUR: bra.uni HERE;"
    assert [list(range(256))] * len(MODES) == stored(detour)


@pytest.mark.parametrize(
    "instruction",
    [
        change("inc", 20),
        change("dec", 264),
        change("dec", 44),
        "setmaxnreg.dec.sync.aligned.u32 %r0;",
        "setmaxnreg.set.sync.aligned.u32 40;",
        "setmaxnreg.dec.sync.u32 40;",
        "@%p0 setmaxnreg.dec.sync.aligned.u32 40;",
    ],
)
def test_other_forms_need_a_gpu(instruction: str) -> None:
    with pytest.raises(Unsupported, match=re.escape(instruction[:-1])):
        program(instruction, bounds=TWO_WARPGROUPS)


@pytest.mark.parametrize("bounds", [".maxntid 1024, 1, 1", ".minnctapersm 1", ""])
def test_without_launch_bounds_it_has_no_effect_to_model(bounds: str) -> None:
    with pytest.raises(Unsupported, match="in a kernel without both of") as caught:
        program(change("dec", 40), bounds=bounds)

    assert remedy(str(caught.value)).startswith("or give __launch_bounds__ two numbers")


@pytest.mark.parametrize("bounds", [".maxnreg 128", ".maxntid 128, 2, 1 .minnctapersm 2", ".maxnreg 121 .maxntid 256"])
def test_registers_at_the_launch_are_those_of_the_bounds(bounds: str) -> None:
    assert [list(range(256))] * len(MODES) == stored(roles(change("dec", 40), change("inc", 216)), bounds)
    with pytest.raises(Hang, match=r"wait for 96 more registers a thread each, 64 are free"):
        stored(roles(change("dec", 40), change("inc", 224)), bounds)


@pytest.mark.parametrize(
    ("threads", "ctas", "grows", "at_launch"),
    [
        (384, 1, 232, 168),
        (256, 2, 216, 128),
        (256, 1, 240, 240),  # no more than it ever asks for
        (384, 1, 160, 160),
        (320, 1, 232, 168),  # ten warps are three in two of the four quarters
        (416, 1, 232, 128),
        (288, 2, 200, 96),
        (160, 3, 200, 128),
    ],
)
def test_registers_at_the_launch_are_those_that_ptxas_counts(
    threads: int, ctas: int, grows: int, at_launch: int
) -> None:
    source = f"""
        extern "C" __global__ void __launch_bounds__({threads}, {ctas}) k(float* y) {{
          if (threadIdx.x < 128) asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
          else asm volatile("setmaxnreg.inc.sync.aligned.u32 {grows};");
          y[threadIdx.x] = 1.0f;
        }}""".encode()
    ptx, counted = compile_source(source, [], "compute_90a"), registers_used(source, "sm_90a")

    assert at_launch == launch_registers(parse(ptx, "k")) == counted


def test_a_launch_has_no_more_threads_than_its_bounds() -> None:
    with pytest.raises(Fault, match=r"a launch of 256 threads a CTA, \.maxntid allows 128"):
        stored(ROLES + STORE, ".maxntid 128, 1, 1")
