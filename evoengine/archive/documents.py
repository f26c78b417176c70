"""What a database holds is data from anywhere: every value is checked against the type it is read as.

Dataclasses are read from objects with their fields' names, tuples from arrays, everything else as JSON has it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

from evoengine.verdict import Check, Evidence, OnShape

T = TypeVar("T")

LENIENT = {Check, OnShape}
"""Evidence for a reader: a newer evoengine may have written more of it. A member more in anything else means another
thing than this evoengine knows."""


class Damaged(Exception):
    """What was found is nothing that evoengine writes; `database.Database` makes a `UserError` of it."""


def typed(kind: type[T], value: Any) -> T:
    """`value` as a `kind`.

    Raises:
        Damaged: it is none.
    """
    read: T = _typed(kind, value)
    return read


def _typed(kind: Any, value: Any) -> Any:
    if kind is Any or type(value) is kind:
        return value
    origin, arguments = _form(kind)
    if origin is Literal and value in arguments:
        return value
    if origin in (Union, types.UnionType):
        return None if value is None and type(None) in arguments else _first(arguments, value)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value)
    if origin is tuple and isinstance(value, list | tuple):
        if arguments[1:] == (...,):
            return tuple(_typed(arguments[0], one) for one in value)
        if len(arguments) == len(value):
            return tuple(_typed(of, one) for of, one in zip(arguments, value, strict=True))
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {_typed(arguments[0], key): _typed(arguments[1], one) for key, one in value.items()}
    # A whole float may have been written without its point. (A bool is an int to Python, and not to JSON.)
    if kind is float and type(value) is int:
        return value
    raise Damaged(f"{value!r:.80} is not {getattr(kind, '__name__', kind)}")


def _first(kinds: tuple[Any, ...], value: Any) -> Any:
    """`value` as the first of `kinds` that it is; the kinds of our unions exclude each other."""
    for kind in kinds:
        try:
            return _typed(kind, value)
        except Damaged as error:
            why = error
    raise why


def _dataclass(kind: Any, value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise Damaged(f"{value!r:.80} is not {kind.__name__}")
    hints = _hints(kind)
    more = value.keys() - hints.keys()
    if more and kind not in LENIENT:
        raise Damaged(f"{kind.__name__} has no {min(map(repr, more)):.80}")
    missing = {
        item.name
        for item in dataclasses.fields(kind)
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    }
    if missing - value.keys():
        raise Damaged(f"{kind.__name__} lacks {min(missing - value.keys())}")
    return kind(**{name: _typed(hints[name], one) for name, one in value.items() if name in hints})


@functools.cache
def _form(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    return typing.get_origin(kind), typing.get_args(kind)


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def positive(*numbers: float) -> None:
    """Times and ratios.

    Raises:
        Damaged: one is not positive and finite.
    """
    for number in numbers:
        if not 0.0 < number < math.inf:
            raise Damaged(f"{number!r:.80} is no time")


def check_shapes(evidence: Evidence, *numbers: str) -> None:
    """What is said of each shape of a set, where something is; `numbers` are fields that it must have.

    Raises:
        Damaged: it is nothing that evoengine writes.
    """
    for row in typed(tuple[OnShape, ...], evidence.get("shapes", ())):
        found = [getattr(row, name) for name in numbers]
        if None in found:
            raise Damaged(f"{row.shape!r:.80} lacks {numbers[found.index(None)]}")
        positive(row.weight, *found)
