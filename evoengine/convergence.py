"""When a search has converged: what it still expects to gain is less than the timer can tell apart.

The rule is a function of the study's trials alone, so it survives a kill and holds for several workers.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from evoengine.devices.cuda.timer import HALF_WIDTH
from evoengine.errors import UserError
from evoengine.sampler import Seen
from evoengine.verdict import Measurement, Verdict

PATIENCE = 50
"""Proposals in a row that must promise less than the noise, and keep that promise. One promise says little: at 1 %
noise 10 in a row leave 5.0 % to the optimum, the mean over seven recorded spaces; 50 leave 1.1 % after 117 evaluations,
where 200 leave 0.7 % (studies/LOG.md)."""
MODELLED = ("evolution",)
"""Samplers that say what they expect of a proposal."""


@dataclass(frozen=True, slots=True)
class Noise:
    """A relative difference under which two times are the same, and where it comes from."""

    share: float
    source: str


@dataclass(frozen=True, slots=True)
class Converged:
    """None of the last `patience` of `proposals` was expected to gain more than `expected_gain`, less than `noise`."""

    proposals: int
    patience: int
    expected_gain: float
    noise: Noise

    def __str__(self) -> str:
        return (
            f"none of the last {self.patience} configs was expected to gain more than {self.expected_gain:.2%} "
            f"(noise {self.noise.share:.1%}: {self.noise.source})"
        )


def check_can_converge(sampler: str) -> None:
    """
    Raises:
        UserError: `sampler` has no model that could expect anything.
    """
    if sampler not in MODELLED:
        raise UserError(
            f"--until-converged needs a sampler that models times, and {sampler!r} does not: choose --sampler "
            f"{' or '.join(MODELLED)}, or leave --until-converged out"
        )


def timer_noise(verdicts: Iterable[Verdict]) -> Noise:
    """The noise of a study's own measurements: the median over its timed configs of `Measurement.noise`, the
    interquartile range over the median of the ratios to the control, window by window.

    At least the half width of the interval at which the timer stops taking windows: windows of one visit agree better
    than visits do (on an H200 to 0.1 %, while the ratios of 88 finalists moved by 0.26 % between search and final run).
    Configs that were given up as beaten are left out, their three windows say little.
    """
    noises = [one.noise for one in verdicts if isinstance(one, Measurement) and one.stopped != "beaten"]
    typical = statistics.median(noises) if noises else 0.0
    if typical > HALF_WIDTH:
        return Noise(typical, f"median of {len(noises)} timed configs")
    return Noise(HALF_WIDTH, "what the timer resolves")


def converged(trials: Iterable[Seen], noise: Noise) -> Converged | None:
    """Whether the last `PATIENCE` finished trials, by number, promised and brought less than `noise`; else None.

    A trial that was proposed without a model (a start) promises any gain.
    """
    done = sorted((one for one in trials if one.state == "done"), key=lambda one: one.number)
    before, last = done[:-PATIENCE], done[-PATIENCE:]
    promised = max((math.inf if one.expected_gain is None else one.expected_gain for one in last), default=math.inf)
    if promised >= noise.share or _least(last) < _least(before) * (1.0 - noise.share):
        return None
    return Converged(len(done), PATIENCE, promised, noise)


def _least(trials: Iterable[Seen]) -> float:
    return min((one.value for one in trials if one.value is not None), default=math.inf)
