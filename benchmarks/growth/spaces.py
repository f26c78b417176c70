"""Spaces of about 10^4, 10^6 and 10^8 feasible configs, made like a kernel's: tiles tied by rules, flags free."""

from __future__ import annotations

import itertools
import math

from evoengine.hardware import DeviceLimits
from evoengine.problem import Problem
from evoengine.space import Axis, Check, Point, Rule, SearchSpace, Values

TILES = ("ROWS", "KEYS", "STAGES", "WARPS", "DEPTH", "SPLIT")
"""4,303 of their 15,625 combinations are feasible."""
FLAGS = {10**4: 1, 10**6: 8, 10**8: 15}
"""On/off axes beside the tiles, by the size that is wanted."""


def space(size: int, *, tied: bool = False) -> SearchSpace:
    """About `size` feasible configs. Where they are `tied`, a rule reads every axis, so that all must be listed."""
    tiles = tuple(Axis(name, tuple(2**n for n in range(5)), name[:2].lower()) for name in TILES)
    flags = tuple(Axis(f"FLAG{n}", (0, 1), f"f{n}") for n in range(FLAGS[size]))
    axes = (*tiles, *flags)
    rules = [
        Rule("memory", ("ROWS", "KEYS", "STAGES"), _at_most(64, "ROWS", "KEYS", "STAGES")),
        Rule("registers", ("ROWS", "KEYS", "WARPS"), _at_most(128, "ROWS", "KEYS", "WARPS")),
        Rule("loop", ("KEYS", "DEPTH", "SPLIT"), _at_most(32, "KEYS", "DEPTH", "SPLIT")),
    ]
    if tied:
        rules.append(Rule("any", tuple(axis.name for axis in axes), lambda values, problem, limits: None))
    return SearchSpace(f"grown_{size}", axes, tuple(rules), {axis.name: axis.choices[0] for axis in axes})


def _at_most(limit: int, *names: str) -> Check:
    def check(values: Values, problem: Problem, limits: DeviceLimits) -> str | None:
        found = math.prod(values[name] for name in names)
        return f"{found} of {limit}" if found > limit else None

    return check


def latency_us(point: Point) -> float | None:
    """A time with one valley, ridges, and a price for flags that differ from their neighbour; None where refused."""
    tiles, flags = point[: len(TILES)], point[len(TILES) :]
    if (tiles[0] * 3 + tiles[3] * 5 + sum(flags)) % 9 == 0:
        return None
    valley = sum((index - wanted) ** 2 for index, wanted in zip(tiles, (2, 2, 1, 2, 1, 1), strict=False))
    apart = sum(one != other for one, other in itertools.pairwise(flags))
    return 4.0 + 0.4 * valley + 0.1 * apart + 0.05 * math.sin(7.0 * sum(n * i for n, i in enumerate(point)))
