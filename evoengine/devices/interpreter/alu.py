"""Integer and floating-point arithmetic.

Semantics are those of the PTX ISA 9.0. Approximate instructions (ex2, rcp, rsqrt, lg2, tanh .approx) are computed to
within one unit in the last place, better than hardware's few: a kernel that passes only thanks to that is caught by
the GPU's own check. fma.rn.f32 is computed in float64 and rounded twice, which differs from one rounding in about one
result in 2^29.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from evoengine.devices.interpreter.faults import Unsupported
from evoengine.devices.interpreter.layout import TYPES, Array, Frame, Layout, Mask, Step
from evoengine.devices.interpreter.parser import Instruction
from evoengine.devices.interpreter.rounding import MODES, directed

Builder = Callable[[Instruction, Layout], Step]
_IGNORED = frozenset({"rn", "approx", "full", "lo", "ftz"})


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


def _flushed(function: Callable[..., Array], type_: str) -> Callable[..., Array]:
    """`function` with subnormal inputs and results replaced by zeros of their sign (.ftz)."""
    tiny = np.finfo(TYPES[type_]).smallest_normal

    def flush(values: Array) -> Array:
        return np.where(np.abs(values) < tiny, np.copysign(tiny.dtype.type(0), values), values)

    return lambda *values: flush(function(*map(flush, values)))


def _build(function: Callable[..., Array], instruction: Instruction, layout: Layout, type_: str) -> Step:
    if type_.endswith("x2"):
        return _of_pairs(function, instruction, layout, type_)
    target = layout.target(instruction.operands[0], type_)
    sources = [layout.source(operand, type_) for operand in instruction.operands[1:]]
    if "ftz" in instruction.opcode:
        return computed(_flushed(function, type_), target, *sources)
    if isinstance(function, np.ufunc) and function.nin == len(sources) <= 2:
        return elementwise(function, target, *sources)
    return computed(function, target, *sources)


def _of_pairs(function: Callable[..., Array], instruction: Instruction, layout: Layout, type_: str) -> Step:
    """`function` of both halves of 32-bit registers, each half rounded to the type."""
    target = layout.target(instruction.operands[0], type_, (-1, 2))
    sources = [layout.source(operand, type_, (-1, 2)) for operand in instruction.operands[1:]]
    lanes = computed(_flushed(function, type_[:-2]) if "ftz" in instruction.opcode else function, target, *sources)
    return lambda frame, mask: lanes(frame, mask if mask is True else mask[:, None])


def _simple(function: Callable[..., Array]) -> Builder:
    def build(instruction: Instruction, layout: Layout) -> Step:
        return _build(function, instruction, layout, _type(instruction))

    return build


def _directed(instruction: Instruction, layout: Layout) -> Step | None:
    """add, sub, mul, mad or fma of f32 with a rounding modifier other than .rn; None for all others."""
    mode = next((modifier for modifier in instruction.opcode[1:-1] if modifier in MODES), None)
    if mode is None or instruction.opcode[-1] != "f32":
        return None
    return _build(directed(instruction.opcode[0], mode), instruction, layout, _type(instruction, mode))


def _sum(function: np.ufunc) -> Builder:
    def build(instruction: Instruction, layout: Layout) -> Step:
        return _directed(instruction, layout) or _build(function, instruction, layout, _type(instruction))

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
    step = _directed(instruction, layout)
    if step is not None:
        return step
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
    step = _directed(instruction, layout)
    if step is not None:
        return step
    type_ = _type(instruction, "wide", "hi")
    if type_ in ("f32", "f16", "f16x2"):
        return _build(_fma, instruction, layout, type_)
    kind = instruction.opcode[1]
    result = f"{type_[0]}{int(type_[1:]) * 2}" if kind == "wide" else type_
    target = layout.target(instruction.operands[0], result)
    a, b = (layout.source(operand, type_) for operand in instruction.operands[1:3])
    c = layout.source(instruction.operands[3], result)
    product = _high(type_) if kind == "hi" else lambda x, y: np.multiply(x, y, dtype=TYPES[result])
    return computed(lambda x, y, z: product(x, y) + z, target, a, b, c)


def _fma(a: Array, b: Array, c: Array) -> Array:
    """Of halves one rounding, since whatever decides it is among float64's 53 bits; of float32 two."""
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


def _float(function: Callable[..., Array], *more: str) -> Builder:
    """An instruction that exists here for f32 and `more` types."""

    def build(instruction: Instruction, layout: Layout) -> Step:
        type_ = _type(instruction)
        if type_ not in ("f32", *more):
            raise Unsupported(instruction.text)
        return _build(function, instruction, layout, type_)

    return build


def _reciprocal(values: Array) -> Array:
    return np.float32(1) / values


BUILDERS: dict[str, Builder] = {
    "add": _sum(np.add), "sub": _sum(np.subtract), "mul": _mul, "mad": _mad, "fma": _mad,
    "div": _div, "rem": _simple(_remainder),
    "min": _extreme(np.fmin, np.minimum, -1), "max": _extreme(np.fmax, np.maximum, 1),
    "neg": _simple(np.negative), "abs": _simple(np.abs),
    "and": _simple(np.bitwise_and), "or": _simple(np.bitwise_or), "xor": _simple(np.bitwise_xor),
    "not": _simple(np.bitwise_not), "shl": _shift, "shr": _shift,
    "ex2": _float(np.exp2, "f16", "f16x2"), "lg2": _float(np.log2), "rcp": _float(_reciprocal), "sqrt": _float(np.sqrt),
    "rsqrt": _float(lambda a: np.float32(1) / np.sqrt(a)), "tanh": _float(np.tanh),
    "sin": _float(np.sin), "cos": _float(np.cos), "copysign": _float(lambda a, b: np.copysign(b, a)),
}  # fmt: skip
