"""Arithmetic, comparison and conversion against values worked out from the PTX ISA, not from the code under test."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest
from interpreted import lanewise

from evoengine.devices.interpreter import Unsupported

NAN, INF = math.nan, math.inf
I32, U32, I64, U64 = np.int32, np.uint32, np.int64, np.uint64
F32, F16, U16, I16 = np.float32, np.float16, np.uint16, np.int16


def bits(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


@pytest.mark.parametrize(
    ("instruction", "inputs", "expected"),
    [
        ("add.s32 %out, %in0, %in1;", [I32([2**31 - 1]), I32([1])], I32([-(2**31)])),
        ("sub.u32 %out, %in0, 5;", [U32([3])], U32([2**32 - 2])),
        ("add.s64 %out, %in0, -1;", [I64([0])], I64([-1])),
        ("mul.lo.s32 %out, %in0, %in1;", [I32([-70000, 3]), I32([70000, -4])], I32([-605032704, -12])),
        ("mul.wide.s32 %out, %in0, -3;", [I32([2**30, -7])], I64([-3 * 2**30, 21])),
        ("mul.wide.u32 %out, %in0, -1431655765;", [U32([96])], U64([96 * 2863311531])),
        ("mul.wide.u16 %out, %in0, %in0;", [U16([65535])], U32([65535**2])),
        ("mul.hi.s32 %out, %in0, %in1;", [I32([-5, 2**30]), I32([7, 12])], I32([-1, 3])),
        ("mul.hi.u32 %out, %in0, %in0;", [U32([2**32 - 1])], U32([2**32 - 2])),
        ("mul.hi.u64 %out, %in0, %in1;", [U64([2**64 - 1]), U64([2**63 + 5])], U64([2**63 + 4])),
        ("mul.hi.s64 %out, %in0, %in1;", [I64([-(2**62), -1]), I64([12, -1])], I64([-3, 0])),
        ("mad.lo.s32 %out, %in0, %in1, 10;", [I32([-6]), I32([7])], I32([-32])),
        ("mad.wide.s32 %out, %in0, %in1, %in2;", [I32([-(2**31)]), I32([2]), I64([5])], I64([5 - 2**32])),
        ("mad.hi.u32 %out, %in0, %in0, 1;", [U32([2**31])], U32([2**30 + 1])),
        ("div.s32 %out, %in0, %in1;", [I32([-7, 7, -8]), I32([2, -2, 4])], I32([-3, -3, -2])),
        ("rem.s32 %out, %in0, %in1;", [I32([-7, 7]), I32([3, -3])], I32([-1, 1])),
        ("div.u32 %out, %in0, 3;", [U32([2**32 - 1])], U32([1431655765])),
        ("div.s64 %out, %in0, %in1;", [I64([-(10**12), 7]), I64([7, -(2**40)])], I64([-142857142857, 0])),
        ("rem.s64 %out, %in0, %in1;", [I64([-(10**12), 2**62]), I64([7, -3])], I64([-1, 1])),
        ("div.u64 %out, %in0, %in1;", [U64([2**64 - 1]), U64([2**33])], U64([2**31 - 1])),
        ("rem.u64 %out, %in0, 10;", [U64([2**64 - 1])], U64([5])),
        ("min.s32 %out, %in0, 3;", [I32([-9, 4])], I32([-9, 3])),
        ("max.u32 %out, %in0, 3;", [U32([2**31, 0])], U32([2**31, 3])),
        ("neg.s32 %out, %in0;", [I32([5, -(2**31)])], I32([-5, -(2**31)])),
        ("abs.s32 %out, %in0;", [I32([-5])], I32([5])),
        ("and.b32 %out, %in0, -8;", [U32([0x1F])], U32([0x18])),
        ("or.b64 %out, %in0, %in1;", [U64([1 << 40]), U64([3])], U64([(1 << 40) | 3])),
        ("xor.b32 %out, %in0, %in1;", [U32([0b1100]), U32([0b1010])], U32([0b0110])),
        ("not.b32 %out, %in0;", [U32([0])], U32([2**32 - 1])),
        ("shl.b32 %out, %in0, %in1;", [U32([3, 3, 3]), U32([4, 32, 500])], U32([48, 0, 0])),
        ("shl.b64 %out, %in0, 40;", [U64([3])], U64([3 << 40])),
        ("shr.s32 %out, %in0, %in1;", [I32([-16, -16]), U32([2, 77])], I32([-4, -1])),
        ("shr.u32 %out, %in0, 31;", [U32([2**31])], U32([1])),
        ("shr.u64 %out, %in0, %in1;", [U64([2**63]), U32([63])], U64([1])),
        ("shf.l.wrap.b32 %out, %in0, %in1, 8;", [U32([0x11223344]), U32([0xAABBCCDD])], U32([0xBBCCDD11])),
        ("shf.r.wrap.b32 %out, %in0, %in1, 40;", [U32([0x11223344]), U32([0xAABBCCDD])], U32([0xDD112233])),
        ("shf.r.clamp.b32 %out, %in0, %in1, 40;", [U32([0x11223344]), U32([0xAABBCCDD])], U32([0xAABBCCDD])),
        ("bfe.u32 %out, %in0, 4, 8;", [U32([0xABCDE])], U32([0xCD])),
        ("bfe.s32 %out, %in0, 4, 8;", [I32([0x00000F00, 0x700])], I32([-16, 0x70])),
        ("bfe.s32 %out, %in0, 28, 8;", [I32([-(2**31)])], I32([-8])),
        ("bfe.u64 %out, %in0, 40, 64;", [U64([5 << 40])], U64([5])),
        ("bfi.b32 %out, %in0, %in1, 8, 4;", [U32([0xFF]), U32([0])], U32([0xF00])),
        ("bfi.b32 %out, %in0, %in1, 0, 32;", [U32([7]), U32([9])], U32([7])),
        ("lop3.b32 %out, %in0, %in1, %in2, 0xE8;", [U32([0b1100]), U32([0b1010]), U32([0b0110])], U32([0b1110])),
        ("popc.b32 %out, %in0;", [U32([0xF0F])], U32([8])),
        ("popc.b64 %out, %in0;", [U64([2**63 + 1])], U32([2])),
        ("clz.b32 %out, %in0;", [U32([0, 1, 2**31, 2**32 - 1])], U32([32, 31, 0, 0])),
        ("prmt.b32 %out, %in0, %in1, 0x5410;", [U32([0x33221100]), U32([0x77665544])], U32([0x55441100])),
        ("prmt.b32 %out, %in0, %in1, 0x7f32;", [U32([0x33221100]), U32([0x97665544])], U32([0x97FF3322])),
    ],
)
def test_integers(instruction: str, inputs: list[Any], expected: Any) -> None:
    assert expected.tolist() == lanewise(instruction, *inputs, out=expected.dtype.type).tolist()


@pytest.mark.parametrize(
    ("instruction", "inputs", "expected"),
    [
        ("add.f32 %out, %in0, %in1;", [F32([1, INF]), F32([2.0**-24, -INF])], [1.0, NAN]),
        ("sub.f32 %out, %in0, 0f3F800000;", [F32([3.5])], [2.5]),
        ("mul.f32 %out, %in0, %in1;", [F32([1e-30, 3]), F32([1e-10, -2])], [float(F32(1e-40)), -6.0]),
        ("mul.ftz.f32 %out, %in0, %in1;", [F32([1e-30, -1e-30]), F32([1e-10, 1e-10])], [0.0, -0.0]),
        # the product 1 - 2^-46 needs the unrounded product: rounded first, the sum would be 0
        ("fma.rn.f32 %out, %in0, %in1, %in2;", [F32([1 + 2**-23]), F32([1 - 2**-23]), F32([-1])], [-(2.0**-46)]),
        ("div.rn.f32 %out, %in0, %in1;", [F32([1, 1, -1]), F32([4, 0, 0])], [0.25, INF, -INF]),
        ("rcp.rn.f32 %out, %in0;", [F32([8])], [0.125]),
        ("rcp.approx.ftz.f32 %out, %in0;", [F32([1e-40, 4])], [INF, 0.25]),
        ("sqrt.rn.f32 %out, %in0;", [F32([9, -1])], [3.0, NAN]),
        ("rsqrt.approx.f32 %out, %in0;", [F32([16])], [0.25]),
        ("sin.approx.f32 %out, %in0;", [F32([0, np.pi / 2])], [0, 1]),
        ("cos.approx.ftz.f32 %out, %in0;", [F32([0, np.pi])], [1, -1]),
        ("copysign.f32 %out, %in0, %in1;", [F32([-0.0, 2, -3]), F32([5, -6, -7])], [-5, 6, -7]),
        ("ex2.approx.ftz.f32 %out, %in0;", [F32([3, -INF, -140, NAN])], [8.0, 0.0, 0.0, NAN]),
        ("ex2.approx.f32 %out, %in0;", [F32([-140])], [2.0**-140]),
        ("lg2.approx.f32 %out, %in0;", [F32([8, 0])], [3.0, -INF]),
        ("neg.f32 %out, %in0;", [F32([0])], [-0.0]),
        ("abs.f32 %out, %in0;", [F32([-2])], [2.0]),
        ("max.f32 %out, %in0, %in1;", [F32([NAN, 1, NAN]), F32([2, NAN, NAN])], [2.0, 1.0, NAN]),
        ("min.f32 %out, %in0, %in1;", [F32([NAN, -INF]), F32([2, 5])], [2.0, -INF]),
        ("max.NaN.f32 %out, %in0, %in1;", [F32([NAN, 1]), F32([2, 4])], [NAN, 4.0]),
        ("max.f32 %out, %in0, %in1;", [F32([0.0] * 9), F32([-0.0] * 9)], [0.0] * 9),
        ("max.f32 %out, %in0, %in1;", [F32([-0.0] * 9), F32([0.0] * 8 + [-0.0])], [0.0] * 8 + [-0.0]),
        ("max.NaN.f32 %out, %in0, %in1;", [F32([0.0] * 9), F32([-0.0] * 9)], [0.0] * 9),
        ("min.f32 %out, %in0, %in1;", [F32([0.0] * 9), F32([-0.0] * 8 + [0.0])], [-0.0] * 8 + [0.0]),
        ("min.f32 %out, %in0, %in1;", [F32([-0.0] * 9), F32([0.0] * 9)], [-0.0] * 9),
        ("cvt.rni.f32.f32 %out, %in0;", [F32([2.5, -3.5])], [2.0, -4.0]),
        ("cvt.sat.f32.f32 %out, %in0;", [F32([2.5, -3, NAN, 0.25])], [1.0, 0.0, 0.0, 0.25]),
        ("cvt.rn.f32.s32 %out, %in0;", [I32([-(2**24) - 1, 7])], [-(2.0**24), 7.0]),
        ("cvt.rn.f32.u64 %out, %in0;", [U64([2**63])], [2.0**63]),
        ("cvt.f32.f16 %out, %in0;", [F16([0.333, 65504])], [float(F16(0.333)), 65504.0]),
        ("cvt.f32.bf16 %out, %in0;", [U16([0x3FC0])], [1.5]),
        ("mov.f32 %out, 0fFF800000;", [F32([0])], [-INF]),
    ],
)
def test_floats(instruction: str, inputs: list[Any], expected: list[float]) -> None:
    actual = lanewise(instruction, *inputs, out=np.float32)

    assert np.array(expected, np.float32).tobytes() == np.where(np.isnan(actual), F32(NAN), actual).tobytes()


@pytest.mark.parametrize(
    ("instruction", "inputs", "expected"),
    [
        ("cvt.u32.u64 %out, %in0;", [U64([2**32 + 5])], U32([5])),
        ("cvt.s64.s32 %out, %in0;", [I32([-2])], I64([-2])),
        ("cvt.u64.u32 %out, %in0;", [U32([2**31])], U64([2**31])),
        ("cvt.u32.u16 %out, %in0;", [U16([65535])], U32([65535])),
        ("cvt.s32.s16 %out, %in0;", [I16([-3])], I32([-3])),
        ("cvt.s32.s8 %out, %in0;", [U32([0x1F0])], I32([-16])),
        ("cvt.u16.u32 %out, %in0;", [U32([0x12345])], U16([0x2345])),
        ("cvt.sat.u8.s32 %out, %in0;", [I32([-4, 300, 77])], U32([0, 255, 77])),
        ("cvt.rzi.s32.f32 %out, %in0;", [F32([-2.9, 3e9, NAN, -INF])], I32([-2, 2**31 - 1, 0, -(2**31)])),
        ("cvt.rni.s32.f32 %out, %in0;", [F32([2.5, 3.5])], I32([2, 4])),
        ("cvt.rmi.s32.f32 %out, %in0;", [F32([-2.1])], I32([-3])),
        ("cvt.rpi.u32.f32 %out, %in0;", [F32([2.1, -5])], U32([3, 0])),
        ("cvt.rn.f16.f32 %out, %in0;", [F32([1 + 2**-11, 1e6])], U16([0x3C00, 0x7C00])),
        ("cvt.rn.bf16.f32 %out, %in0;", [F32([1 + 2**-8, 1 + 3 * 2**-8])], U16([0x3F80, 0x3F82])),
        ("cvt.rn.f16x2.f32 %out, %in0, %in1;", [F32([2]), F32([1])], U32([0x40003C00])),
        ("cvt.rn.bf16x2.f32 %out, %in0, %in1;", [F32([-1]), F32([1])], U32([0xBF803F80])),
        ("mov.b32 %out, %in0;", [F32([1])], U32([bits(1.0)])),
        ("mov.b32 %out, {%in0, %in1};", [U16([0x1111]), U16([0x2222])], U32([0x22221111])),
        ("mov.b64 %out, {%in0, %in1};", [U32([1]), U32([2])], U64([(2 << 32) | 1])),
        ("{ .reg .b16 lo; mov.b32 {lo, %out}, %in0; }", [U32([0xABCD1234])], U16([0xABCD])),
        ("{ .reg .b32 lo, hi; mov.b64 {lo, hi}, %in0; sub.s32 %out, hi, lo; }", [U64([(9 << 32) | 4])], U32([5])),
    ],
)
def test_conversions_and_moves(instruction: str, inputs: list[Any], expected: Any) -> None:
    assert expected.tolist() == lanewise(instruction, *inputs, out=expected.dtype.type).tolist()


def pairs(*halves: tuple[float, float]) -> Any:
    """Low and high half of 32-bit registers."""
    return np.array(halves, F16).view(U32)[:, 0]


@pytest.mark.parametrize(
    ("instruction", "inputs", "expected"),
    [
        ("add.f16x2 %out, %in0, %in1;", [pairs((1, 65504)), pairs((2.0**-11, 65504))], [(1, INF)]),
        ("sub.rn.f16x2 %out, %in0, %in1;", [pairs((5, 1)), pairs((7, -1))], [(-2, 2)]),
        ("mul.f16x2 %out, %in0, %in1;", [pairs((3, 2.0**-14)), pairs((-2, 2.0**-10))], [(-6, 2.0**-24)]),
        ("mul.ftz.f16x2 %out, %in0, %in1;", [pairs((3, 2.0**-14)), pairs((-2, -0.5))], [(-6, -0.0)]),
        # 1 - 2^-20 exactly, where a rounded product would be 1
        ("fma.rn.f16x2 %out, %in0, %in1, %in2;", [pairs((1 + 2**-10, 2)), pairs((1 - 2**-10, 3)), pairs((-1, 4))],
         [(-(2.0**-20), 10)]),
        ("max.f16x2 %out, %in0, %in1;", [pairs((NAN, -0.0)), pairs((1, 0.0))], [(1, 0.0)]),
        ("min.NaN.f16x2 %out, %in0, %in1;", [pairs((NAN, -3)), pairs((1, 2))], [(NAN, -3)]),
        ("neg.f16x2 %out, %in0;", [pairs((1, -2))], [(-1, 2)]),
        ("abs.f16x2 %out, %in0;", [pairs((-1, 2))], [(1, 2)]),
        ("ex2.approx.f16x2 %out, %in0;", [pairs((3, -24), (-INF, -25.5))], [(8, 2.0**-24), (0, 0)]),
        ("{ .reg .pred p; setp.ne.u32 p, %in0, 0; mov.b32 %out, %in1; @p add.f16x2 %out, %in0, %in1; }",
         [pairs((1, 2), (0, 0)), pairs((3, 4), (5, 6))], [(4, 6), (5, 6)]),
    ],
)  # fmt: skip
def test_pairs_of_halves(instruction: str, inputs: list[Any], expected: list[tuple[float, float]]) -> None:
    actual = lanewise(instruction, *inputs, out=np.uint32).view(F16)

    assert np.array(expected, F16).tobytes() == np.where(np.isnan(actual), F16(NAN), actual).tobytes()


@pytest.mark.parametrize(
    ("instruction", "inputs", "expected"),
    [
        ("fma.rn.f16 %out, %in0, %in1, %in2;", [F16([1 + 2**-10]), F16([1 - 2**-10]), F16([-1])], F16([-(2.0**-20)])),
        ("ex2.approx.f16 %out, %in0;", [F16([-1.5])], F16([2.0**-1.5])),
        ("{ .reg .f16 low; .reg .b32 pair; mov.b32 pair, {%in0, %in0}; mov.b32 {low, _}, pair; mov.b16 %out, low; }",
         [F16([3.5])], F16([3.5])),
    ],
)  # fmt: skip
def test_halves(instruction: str, inputs: list[Any], expected: Any) -> None:
    assert expected.tolist() == lanewise(instruction, *inputs, out=F16).tolist()


@pytest.mark.parametrize(
    ("relation", "less", "equal", "greater", "unordered"),
    [
        ("eq", 0, 1, 0, 0), ("ne", 1, 0, 1, 0), ("lt", 1, 0, 0, 0), ("le", 1, 1, 0, 0), ("gt", 0, 0, 1, 0),
        ("ge", 0, 1, 1, 0), ("equ", 0, 1, 0, 1), ("neu", 1, 0, 1, 1), ("ltu", 1, 0, 0, 1), ("leu", 1, 1, 0, 1),
        ("gtu", 0, 0, 1, 1), ("geu", 0, 1, 1, 1), ("num", 1, 1, 1, 0), ("nan", 0, 0, 0, 1),
    ],
)  # fmt: skip
def test_float_comparisons(relation: str, less: int, equal: int, greater: int, unordered: int) -> None:
    compare = f"{{ .reg .pred p; setp.{relation}.f32 p, %in0, %in1; selp.b32 %out, 1, 0, p; }}"
    actual = lanewise(compare, F32([1, 2, 3, NAN, 2]), F32([2, 2, 2, 2, NAN]), out=np.uint32)

    assert [less, equal, greater, unordered, unordered] == actual.tolist()


@pytest.mark.parametrize(
    ("compare", "expected"),
    [
        ("setp.lt.s32 p, %in0, %in1;", [1, 0]),
        ("setp.lo.u32 p, %in0, %in1;", [0, 0]),
        ("setp.hs.u32 p, %in0, %in1;", [1, 1]),
        ("setp.eq.s32 q, %in0, %in1; setp.lt.or.s32 p, %in0, %in1, q;", [1, 1]),
        ("setp.eq.s32 q, %in0, %in1; setp.ge.and.s32 p, %in0, %in1, !q;", [0, 0]),
        ("setp.ne.s32 q|p, %in0, %in1;", [0, 1]),
        ("setp.ne.s32 q, %in0, %in1; not.pred p, q;", [0, 1]),
        ("setp.ne.s32 p, %in0, %in1; setp.ne.s32 q, %in0, 7; and.pred p, p, q;", [1, 0]),
    ],
)
def test_predicates(compare: str, expected: list[int]) -> None:
    code = f"{{ .reg .pred p, q; {compare} selp.u32 %out, 1, 0, p; }}"

    assert expected == lanewise(code, I32([-1, 7]), I32([2, 7]), out=np.uint32).tolist()


def test_a_guard_keeps_lanes_out() -> None:
    code = "{ .reg .pred p; setp.gt.s32 p, %in0, 1; mov.u32 %out, 5; @p mov.u32 %out, 6; @!p add.u32 %out, %out, 10; }"

    assert [15, 15, 6, 6] == lanewise(code, I32([0, 1, 2, 3]), out=np.uint32).tolist()


def test_an_inner_scope_shadows_a_register() -> None:
    code = "mov.u32 %out, 1; { .reg .b32 %out; mov.u32 %out, 2; } add.u32 %out, %out, 40;"

    assert [41] == lanewise(code, U32([0]), out=np.uint32).tolist()


@pytest.mark.parametrize(
    "instruction",
    [
        "tcgen05.fence::before_thread_sync;",
        "cp.async.bulk.commit_group;",
        "add.rz.f64 %out, %in0, %in0;",
        "cvt.rz.f16.f32 %out, %in0;",
        "mul.f32 %out, %in0, %nosuch;",
        "mov.u32 %out, %clock;",
        "setp.between.s32 %out, %in0, %in0;",
        "bar.red.popc.u32 %out, 0, %in0;",
    ],
)
def test_what_is_not_modelled_is_refused_by_name(instruction: str) -> None:
    with pytest.raises(Unsupported) as caught:
        lanewise(instruction, U32([1]), out=np.uint32)

    assert any(word in str(caught.value) for word in (instruction.split()[0].rstrip(";"), instruction.split()[-1][:-1]))
