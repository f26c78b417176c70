"""One recorded config, whatever file it came from, and how found values become numbers."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evoengine.errors import UserError

FAILED_FROM = 1e20
"""Kernel Tuner before 0.4 wrote this for a config that failed."""

_MICROSECONDS = {"n": 1e-3, "u": 1.0, "µ": 1.0, "μ": 1.0, "micro": 1.0, "nano": 1e-3, "m": 1e3, "milli": 1e3, "": 1e6}
_TIME_UNIT = re.compile(r"(n|u|µ|μ|m|nano|micro|mill?i)?\s?(?:s|secs?|seconds?)")  # "miliseconds" is in public files
_RATE = re.compile(r".*(/s|/w|/j|flops?|throughput|bandwidth)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Entry:
    """A config's parameters, and its cost (lower is better) or why it has none."""

    values: Mapping[str, Any]
    cost: float | None
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Objective:
    """What was measured and how it becomes a cost: a time in microseconds, a rate as its inverse, else as it is."""

    name: str
    unit: str
    is_rate: bool
    factor: float

    def entry(self, values: Mapping[str, Any], found: Any, failure: str = "") -> Entry:
        """`found` as it stands in the file; a config with a `failure` has no cost, nor has one without a number."""
        number = None if failure else figure(found)
        if number is None:
            named = found if isinstance(found, str) and found.isidentifier() else "no number"
            return Entry(values, None, shown(failure or named))
        cost = 1 / number if self.is_rate else number * self.factor
        # Doubles end at 1e308: what a factor pushes over that, or under 1e-308, was never measured.
        return Entry(values, cost) if 1e-300 < cost < 1e300 else Entry(values, None, "no number")


def objective(name: str, unit: str) -> Objective:
    """The objective `name` measured in `unit`; a time without a unit is in milliseconds, as Kernel Tuner's are.

    Raises:
        UserError: a time in an unknown unit.
    """
    if _RATE.fullmatch(name):
        return Objective(name, f"1/({name})", True, 1.0)
    scale = _TIME_UNIT.fullmatch(unit.strip().lower())
    if scale:
        prefix = (scale[1] or "").replace("mili", "milli")
        return Objective(name, "us", False, _MICROSECONDS[prefix])
    if name != "time":
        return Objective(name, unit.strip(), False, 1.0)
    if unit.strip():
        raise UserError(f"has times in unknown unit {shown(unit)!r}: known are ns, us, ms and s")
    return Objective(name, "us", False, 1e3)


def pick_objective(declared: Any) -> str:
    """`time` if it is declared or nothing is, else the first declared."""
    names = [declared] if isinstance(declared, str) else declared if isinstance(declared, list) else []
    names = [name for name in names if isinstance(name, str) and name]
    return "time" if "time" in names or not names else shown(names[0])


def figure(found: Any) -> float | None:
    """A positive finite number, or the median of a list of them; None for anything else."""
    if isinstance(found, list):
        single = [number for one in found if not isinstance(one, list) and (number := figure(one)) is not None]
        return statistics.median(single) if single else None
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    try:
        number = float(found)
    except OverflowError:
        return None
    return number if 0.0 < number < FAILED_FROM else None


def shown(text: Any, length: int = 80) -> str:
    """Text of a file, safe in a terminal: control characters escaped, at most `length` characters. Else empty."""
    if not isinstance(text, str):
        return ""
    printable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[:length])
    return printable[:length]


def members(entry: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The members `names` of `entry`, None where it lacks one (a parameter that only some configs have)."""
    return {name: entry.get(name) for name in names}
