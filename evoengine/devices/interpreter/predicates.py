"""Comparisons into predicates, and selection by them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from evoengine.devices.interpreter.alu import Builder, computed, elementwise
from evoengine.devices.interpreter.faults import Unsupported
from evoengine.devices.interpreter.layout import Array, Frame, Layout, Mask, Step
from evoengine.devices.interpreter.parser import Instruction

_ORDERED: dict[str, Callable[[Array, Array], Any]] = {
    "eq": np.equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal, "neu": np.not_equal,
    "equ": lambda a, b: ~((a < b) | (a > b)), "ltu": lambda a, b: ~(a >= b), "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b), "geu": lambda a, b: ~(a < b),
    "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)), "nan": lambda a, b: np.isnan(a) | np.isnan(b),
}  # fmt: skip
_COMBINE: dict[str, Callable[[Array, Array], Array]] = {
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
}


def _compare(relation: str, type_: str) -> Callable[[Array, Array], Any]:
    if relation == "ne":  # false with a NaN, unlike neu
        return np.not_equal if type_[0] != "f" else lambda a, b: (a < b) | (a > b)
    if relation not in _ORDERED:
        raise Unsupported(f"comparison .{relation}")
    return _ORDERED[relation]


def _setp(instruction: Instruction, layout: Layout) -> Step:
    """setp: the comparison into p, its complement into q, each combined with a third predicate where asked."""
    type_ = instruction.opcode[-1]
    modifiers = [modifier for modifier in instruction.opcode[1:-1] if modifier != "ftz"]
    compare = _compare(modifiers[0], type_)
    names = [*instruction.operands[0].split("|"), "_"]
    p, q = (layout.sink(name, "pred") for name in names[:2])
    a, b = (layout.source(operand, type_) for operand in instruction.operands[1:3])
    if len(modifiers) == 1 and q is None and p is not None and isinstance(compare, np.ufunc):
        return elementwise(compare, p, a, b)
    combine = _COMBINE[modifiers[1]] if len(modifiers) > 1 else None
    third = instruction.operands[3] if combine else "!_"
    c = layout.source(third.lstrip("!"), "pred") if combine else 0

    def run(frame: Frame, mask: Mask) -> None:
        results = [compare(frame[a], frame[b])]
        results.append(~results[0])
        if combine is not None:
            other = ~frame[c] if third[0] == "!" else frame[c].copy()
            results = [combine(result, other) for result in results]
        for target, result in zip((p, q), results, strict=True):
            if target is not None:
                np.copyto(frame[target], result, where=mask)

    return run


def _select(a: Array, b: Array, p: Array) -> Array:
    return np.where(p, a, b)


def _selp(instruction: Instruction, layout: Layout) -> Step:
    type_ = instruction.opcode[-1]
    target, *sources = (layout.source(operand, type_) for operand in instruction.operands[:3])
    layout.target(instruction.operands[0], type_)
    return computed(_select, target, *sources, layout.source(instruction.operands[3], "pred"))


BUILDERS: dict[str, Builder] = {"setp": _setp, "selp": _selp}
