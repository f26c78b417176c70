"""Search a recorded space with a sampler, as if every config were built and timed when it is asked for.

A config that has not been tried costs one evaluation, whether it works or fails; what a sampler proposes in vain is
free, as in a real search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evoengine.convergence import Converged, Noise, check_can_converge, converged, timer_noise
from evoengine.pace import Pace, visible
from evoengine.recorded.space import RecordedSpace
from evoengine.sampler import Seen
from evoengine.sampler.proposer import Proposer
from evoengine.sampler.source import Source


@dataclass(frozen=True, slots=True)
class Trace:
    """One search: the rows evaluated, in order; the value the sampler was told of each (None: it failed); what was
    free; and why it stopped early, if it did."""

    seed: int
    rows: tuple[int, ...]
    told: tuple[float | None, ...]
    free: Mapping[str, int]
    converged: Converged | None = None

    @property
    def picked(self) -> tuple[int | None, ...]:
        """After each evaluation the row that measured best, which under noise need not be the best one evaluated."""
        picked: list[int | None] = []
        least, at = None, None
        for row, value in zip(self.rows, self.told, strict=True):
            if value is not None and (least is None or value < least):
                least, at = value, row
            picked.append(at)
        return tuple(picked)


def replay(
    space: RecordedSpace,
    *,
    sampler: str,
    seed: int,
    budget: int,
    batch: int = 1,
    head_start: int = 0,
    noise_percent: float = 0.0,
    until_converged: bool = False,
    sources: Sequence[Source] = (),
) -> Trace:
    """Search `space` with `budget` evaluations by batches of `batch`; equal arguments give equal traces.

    A proposal knows what it would know in a real search (`Pace`, with `head_start`).
    With `noise_percent` each config's time is told with an error that is fixed for (seed, config): log-normal, of that
    standard deviation. `until_converged` stops as a real search does, at that noise or the least that the timer has.
    `sources` are other searches to start from.

    Raises:
        UserError: no such sampler, one that cannot converge, or a space it cannot search.
    """
    if until_converged:
        check_can_converge(sampler)
    proposer = Proposer(space.search_space, space.feasible, sampler=sampler, seed=seed, sources=sources)
    costs = space.costs * noise(len(space), seed, noise_percent)
    rows: list[int] = []
    told: list[float | None] = []
    trials: list[Seen] = []
    level = max(timer_noise([]), Noise(noise_percent / 100, "as told"), key=lambda one: one.share)
    end: Converged | None = None
    pace = Pace(batch, head_start)
    while True:
        known = pace.known(len(trials))
        if until_converged and (end := converged(trials[:known], level)):
            break
        proposer.observe(visible(trials, known))
        proposals = proposer.propose(min(pace.room(len(trials)), budget - len(rows)))
        if not proposals:
            break
        for proposal in proposals:
            row = space.row_of[proposal.point]
            value = None if np.isnan(costs[row]) else float(costs[row])
            trials.append(
                Seen(
                    number=len(rows),
                    point=proposal.point,
                    value=value,
                    state="done",
                    operator=proposal.operator,
                    generation=proposal.generation,
                    parents=proposal.parents,
                    system_attrs=proposal.system_attrs,
                    expected_gain=proposal.expected_gain,
                )
            )
            rows.append(row)
            told.append(value)
    return Trace(seed, tuple(rows), tuple(told), dict(sorted(proposer.free.items())), end)


def noise(configs: int, seed: int, percent: float) -> NDArray[np.float64]:
    """A factor for every config, log-normal with median 1. Its stream is apart from the samplers' of the same seed."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
    return np.exp(percent / 100 * rng.standard_normal(configs))
