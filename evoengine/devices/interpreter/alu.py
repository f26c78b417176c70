"""Integer and floating-point arithmetic.

Semantics are those of the PTX ISA 9.0. Approximate instructions (ex2, rcp, rsqrt, lg2, tanh .approx) are computed to
within one unit in the last place, better than hardware's few: a kernel that passes only thanks to that is caught by
the GPU's own check. fma.f32 is computed in float64 and rounded twice, which differs from one rounding in about one
result in 2^29.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from evoengine.devices.interpreter.faults import Unsupported
from evoengine.devices.interpreter.layout import TYPES, Array, Frame, Layout, Mask, Step
from evoengine.devices.interpreter.parser import Instruction

Builder = Callable[[Instruction, Layout], Step]
_IGNORED = frozenset({"rn", "approx", "full", "lo", "ftz", "f16x2"})
_TINY = np.float32(2.0**-126)


def elementwise(function: np.ufunc, target: int, *sources: int) -> Step:
    """A step that is one ufunc call, straight into the destination."""
    if len(sources) == 1:
        (a,) = sources

        def unary(frame: Frame, mask: Mask) -> None:
            function(frame[a], frame[target], where=mask)

        return unary
    a, b = sources

    def binary(frame: Frame, mask: Mask) -> None:
        function(frame[a], frame[b], out=frame[target], where=mask)

    return binary


def computed(function: Callable[..., Array], target: int, *sources: int) -> Step:
    """A step that computes all lanes and stores those that execute."""

    def run(frame: Frame, mask: Mask) -> None:
        np.copyto(frame[target], function(*[frame[s] for s in sources]), casting="unsafe", where=mask)

    return run


def _type(instruction: Instruction, *known: str) -> str:
    """The type suffix, after checking that every modifier is one that `known` or all builders honour."""
    for modifier in instruction.opcode[1:-1]:
        if modifier not in _IGNORED and modifier not in known:
            raise Unsupported(f"{instruction.text}: modifier .{modifier}")
    return instruction.opcode[-1]


def _flushed(function: Callable[..., Array]) -> Callable[..., Array]:
    """`function` with subnormal inputs and results replaced by zeros of their sign (.ftz)."""

    def flush(values: Array) -> Array:
        return np.where(np.abs(values) < _TINY, np.copysign(np.float32(0), values), values)

    return lambda *values: flush(function(*map(flush, values)))


def _build(function: Callable[..., Array], instruction: Instruction, layout: Layout, type_: str) -> Step:
    target = layout.target(instruction.operands[0], type_)
    sources = [layout.source(operand, type_) for operand in instruction.operands[1:]]
    if "ftz" in instruction.opcode:
        return computed(_flushed(function), target, *sources)
    if isinstance(function, np.ufunc) and function.nin == len(sources) <= 2:
        return elementwise(function, target, *sources)
    return computed(function, target, *sources)


def _simple(function: Callable[..., Array]) -> Builder:
    def build(instruction: Instruction, layout: Layout) -> Step:
        return _build(function, instruction, layout, _type(instruction))

    return build


def _div(instruction: Instruction, layout: Layout) -> Step:
    type_ = _type(instruction)
    return _build(np.divide if type_[0] == "f" else _quotient, instruction, layout, type_)


def _extreme(number: np.ufunc, strict: np.ufunc, sign: int) -> Builder:
    """min and max: of a number and a NaN the number, with .NaN the NaN (`strict`, which also serves integers).

    Of two zeros max takes the positive and min the negative one; numpy takes either, by place and vector length.
    """

    def build(instruction: Instruction, layout: Layout) -> Step:
        type_ = _type(instruction, "NaN")
        if type_[0] != "f":
            return _build(strict, instruction, layout, type_)
        pick = strict if "NaN" in instruction.opcode else number

        def choose(a: Array, b: Array) -> Array:
            return np.asarray(np.where((a == 0) & (b == 0), sign * (sign * a + sign * b), pick(a, b)))

        return _build(choose, instruction, layout, type_)

    return build


def _remainder(a: Array, b: Array) -> Array:
    return np.asarray(np.fmod(a, b))


def _quotient(a: Array, b: Array) -> Array:
    """Truncating division; by zero it gives 0 (unspecified in PTX)."""
    return np.asarray((a - np.fmod(a, b)) // b)


def _mul(instruction: Instruction, layout: Layout) -> Step:
    kind, type_ = instruction.opcode[1], _type(instruction, "wide", "hi")
    if kind == "wide":
        wide = f"{type_[0]}{int(type_[1:]) * 2}"
        target = layout.target(instruction.operands[0], wide)
        a, b = (layout.source(operand, type_) for operand in instruction.operands[1:])
        dtype = TYPES[wide]

        def run(frame: Frame, mask: Mask) -> None:
            np.multiply(frame[a], frame[b], frame[target], dtype=dtype, where=mask)

        return run
    return _build(_high(type_) if kind == "hi" else np.multiply, instruction, layout, type_)


def _high(type_: str) -> Callable[[Array, Array], Array]:
    """The upper half of a product."""
    bits = int(type_[1:])
    if bits == 32:
        wide = TYPES[f"{type_[0]}64"]
        return lambda a, b: np.asarray(np.multiply(a, b, dtype=wide) >> wide.type(32))

    def high(a: Array, b: Array) -> Array:
        low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
        x, y = a.view(np.uint64), b.view(np.uint64)
        mid = (x >> shift) * (y & low) + ((x & low) * (y & low) >> shift)
        top = (x >> shift) * (y >> shift) + (mid >> shift)
        top += ((x & low) * (y >> shift) + (mid & low)) >> shift
        if type_[0] == "s":
            top -= np.where(a < 0, y, 0).astype(np.uint64) + np.where(b < 0, x, 0).astype(np.uint64)
        return np.asarray(top.view(a.dtype))

    return high


def _mad(instruction: Instruction, layout: Layout) -> Step:
    type_ = _type(instruction, "wide", "hi")
    if type_ == "f32":
        return _build(_fma, instruction, layout, type_)
    kind = instruction.opcode[1]
    result = f"{type_[0]}{int(type_[1:]) * 2}" if kind == "wide" else type_
    target = layout.target(instruction.operands[0], result)
    a, b = (layout.source(operand, type_) for operand in instruction.operands[1:3])
    c = layout.source(instruction.operands[3], result)
    product = _high(type_) if kind == "hi" else lambda x, y: np.multiply(x, y, dtype=TYPES[result])
    return computed(lambda x, y, z: product(x, y) + z, target, a, b, c)


def _fma(a: Array, b: Array, c: Array) -> Array:
    return np.asarray(np.add(np.multiply(a, b, dtype=np.float64), c))


def _shift(instruction: Instruction, layout: Layout) -> Step:
    """shl and shr: amounts of the width and more shift everything out, which is also numpy's rule."""
    type_ = _type(instruction)
    function = np.left_shift if instruction.opcode[0] == "shl" else np.right_shift
    target, a = layout.target(instruction.operands[0], type_), layout.source(instruction.operands[1], type_)
    amount = instruction.operands[2]
    if amount not in layout.entry.registers:
        return elementwise(function, target, a, layout.source(amount, type_))
    b, dtype = layout.source(amount, "u32"), TYPES[type_]
    limit = np.uint32(dtype.itemsize * 8)
    return computed(lambda x, n: function(x, np.minimum(n, limit).astype(dtype)), target, a, b)


def _funnel(instruction: Instruction, layout: Layout) -> Step:
    """shf.{l,r}.{wrap,clamp}.b32: 32 bits out of the pair b:a, shifted."""
    _, side, mode, type_ = instruction.opcode
    target = layout.target(instruction.operands[0], type_)
    sources = [layout.source(operand, "u32") for operand in instruction.operands[1:]]

    def shift(a: Array, b: Array, c: Array) -> Array:
        amount = (c & np.uint32(31) if mode == "wrap" else np.minimum(c, np.uint32(32))).astype(np.uint64)
        pair = b.astype(np.uint64) << np.uint64(32) | a
        return (pair << amount) >> np.uint64(32) if side == "l" else pair >> amount

    return computed(shift, target, *sources)


def _field(extract: bool) -> Builder:
    """bfe and bfi: a field of `length` bits at `position`; both count modulo 256 and clamp at the width."""

    def build(instruction: Instruction, layout: Layout) -> Step:
        type_ = instruction.opcode[-1]
        bits = TYPES[type_].itemsize * 8
        target = layout.target(instruction.operands[0], type_)
        values = [layout.source(o, f"u{bits}") for o in instruction.operands[1 : 2 if extract else 3]]
        counts = [layout.source(o, "u32") for o in instruction.operands[-2:]]
        one = np.uint64(1)

        def ones(count: Array) -> Array:
            return np.asarray((one << count) - one)  # 1 << 64 is 0 for numpy, so 64 ones come out right

        def bfe(a: Array, position: Array, length: Array) -> Array:
            at, n = (position & np.uint32(255)).astype(np.uint64), (length & np.uint32(255)).astype(np.uint64)
            found = (a.astype(np.uint64) >> at) & ones(n)
            if type_[0] == "s":
                top = np.minimum(at + n - one, np.uint64(bits - 1))
                negative = ((a.astype(np.uint64) >> top) & one).astype(bool) & (n > 0)
                found |= np.where(
                    negative, ~ones(np.minimum(n, np.where(at < bits, bits - at, 0).astype(np.uint64))), 0
                )
            return found

        def bfi(a: Array, b: Array, position: Array, length: Array) -> Array:
            at, n = (position & np.uint32(255)).astype(np.uint64), (length & np.uint32(255)).astype(np.uint64)
            hole = ones(n) << at
            return np.asarray((b.astype(np.uint64) & ~hole) | ((a.astype(np.uint64) << at) & hole))

        return computed(bfe if extract else bfi, target, *values, *counts)

    return build


def _lop3(instruction: Instruction, layout: Layout) -> Step:
    table = int(instruction.operands[4], 0)

    def logic(a: Array, b: Array, c: Array) -> Array:
        result = np.zeros_like(a)
        for i in range(8):
            if table >> i & 1:
                result |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
        return result

    target = layout.target(instruction.operands[0], "b32")
    return computed(logic, target, *(layout.source(operand, "b32") for operand in instruction.operands[1:4]))


def _count_leading_zeros(values: Array) -> Array:
    """Through float64's exponent for 32 bits: exact, since every uint32 is a float64."""
    exponents: Array = np.frexp(values.astype(np.float64))[1]
    return np.where(values == 0, 32, 32 - exponents)


def _bits_of(function: Callable[[Array], Array]) -> Builder:
    """popc and clz: a count of a register's bits, in 32 bits whatever the source's width."""

    def build(instruction: Instruction, layout: Layout) -> Step:
        type_ = instruction.opcode[-1]
        if function is _count_leading_zeros and type_ != "b32":
            raise Unsupported(instruction.text)
        return computed(
            function, layout.target(instruction.operands[0], "u32"), layout.source(instruction.operands[1], type_)
        )

    return build


def _float(function: Callable[..., Array]) -> Builder:
    """An instruction that exists here for f32 alone."""

    def build(instruction: Instruction, layout: Layout) -> Step:
        if _type(instruction) != "f32":
            raise Unsupported(instruction.text)
        return _build(function, instruction, layout, "f32")

    return build


def _reciprocal(values: Array) -> Array:
    return np.float32(1) / values


BUILDERS: dict[str, Builder] = {
    "add": _simple(np.add), "sub": _simple(np.subtract), "mul": _mul, "mad": _mad, "fma": _mad,
    "div": _div, "rem": _simple(_remainder),
    "min": _extreme(np.fmin, np.minimum, -1), "max": _extreme(np.fmax, np.maximum, 1),
    "neg": _simple(np.negative), "abs": _simple(np.abs),
    "and": _simple(np.bitwise_and), "or": _simple(np.bitwise_or), "xor": _simple(np.bitwise_xor),
    "not": _simple(np.bitwise_not), "shl": _shift, "shr": _shift, "shf": _funnel, "lop3": _lop3,
    "bfe": _field(True), "bfi": _field(False),
    "popc": _bits_of(lambda a: np.bitwise_count(a)), "clz": _bits_of(_count_leading_zeros),
    "ex2": _float(np.exp2), "lg2": _float(np.log2), "rcp": _float(_reciprocal), "sqrt": _float(np.sqrt),
    "rsqrt": _float(lambda a: np.float32(1) / np.sqrt(a)), "tanh": _float(np.tanh),
}  # fmt: skip
