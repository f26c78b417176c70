"""A recording as what another search measured."""

from __future__ import annotations

import math
from collections.abc import Iterable

from evoengine.recorded.space import RecordedSpace
from evoengine.sampler.source import Source, make_source


def source_of(
    other: RecordedSpace, ours: RecordedSpace, trials: Iterable[tuple[int, float]] | None = None
) -> Source | None:
    """What a search of `ours` may know of `other`: the `trials` of a search (row and cost, NaN where it failed), or
    every config. None where they have other parameters, or no config that works in common."""
    rows = enumerate(other.costs) if trials is None else trials
    return make_source(
        other.name,
        other.device,
        "",
        [(other.points[row], None if math.isnan(cost) else float(cost)) for row, cost in rows],
        theirs=other.axes,
        ours=ours.axes,
        their_constants=other.constants,
        our_constants=ours.constants,
    )
