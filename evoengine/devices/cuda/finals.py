"""From what the worker timed in rounds to the final run's results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evoengine.devices.cuda.messages import Lap, Raced
from evoengine.devices.cuda.results import Final, Finals, make_final
from evoengine.verdict import Artifact, Candidate, Rejection


def gather(
    work: Sequence[tuple[Candidate, Artifact]],
    raced: Raced,
    rejected: Mapping[str, Rejection],
    crashed: Mapping[str, str],
    environment: Mapping[str, Any],
    seed: int,
) -> Finals:
    """Every finalist of `work` with its ratio to the control, or why it was rejected (by its number).

    `crashed` are competitors that took the worker down.
    """
    laps = {lap.name: lap for lap in raced.finalists}
    control_us = raced.control.windows_us

    def final(name: str, lap: Lap) -> Final:
        checks, launches = lap.checks, lap.launches_per_window
        return make_final(
            name, lap.windows_us, control_us, launches, seed, checks, lap.deviation, lap.about, lap.cold_us
        )

    return Finals(
        final("default", raced.control),
        tuple((c, rejected.get(str(c.number)) or final(c.config.label, laps[str(c.number)])) for c, _ in work),
        tuple(final(lap.name, lap) for lap in raced.baselines),
        environment,
        seed,
        raced.clocks,
        final(raced.floor.name, raced.floor),
        {**raced.unavailable, **crashed},
        raced.cold_copies,
    )
