"""What a CUDA device reports beside verdicts: its set-up, the baselines, and the finalists timed together."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from evoengine.verdict import Candidate, Check, Evidence, Measurement, Rejection

RESAMPLES = 10_000
"""Bootstrap resamples: with eight finalists 31 of them lie beyond either limit of the interval that decides."""


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far an output is from the float64 reference: largest absolute and relative Frobenius error.

    Both are over finite values; `nonfinite` counts the others.
    """

    max_abs: float
    rel_fro: float
    nonfinite: int


@dataclass(frozen=True, slots=True)
class BaselineTiming:
    """A competitor timed in the candidates' own windows, each beside a window of the control.

    `max_abs` and `rel_fro` are its errors against the float64 reference over the `nonfinite`-free part.
    """

    name: str
    windows_us: tuple[float, ...]
    control_us: tuple[float, ...]
    launches_per_window: int
    max_abs: float
    rel_fro: float
    nonfinite: int

    @property
    def median_us(self) -> float:
        return statistics.median(self.windows_us)

    @property
    def noise(self) -> float:
        """Interquartile range over median."""
        return _noise(self.windows_us)

    @property
    def ratio(self) -> float:
        """Median over windows of this baseline's time over the control's; under 1 beats the default config."""
        return statistics.median(w / c for w, c in zip(self.windows_us, self.control_us, strict=True))


@dataclass(frozen=True, slots=True)
class Setup:
    """The state of the card before the first candidate.

    `control` is the default config timed against itself: its ratio should be 1, its noise is the noise floor.
    `unavailable` says why a baseline could not run. `warnings` are lines for the user.
    """

    control: Measurement
    baselines: tuple[BaselineTiming, ...]
    unavailable: dict[str, str]
    environment: Evidence
    warnings: tuple[str, ...] = ()

    @property
    def control_us(self) -> float:
        return self.control.control_reference_us


@dataclass(frozen=True, slots=True)
class Final:
    """One subject of the final run. Window i of every subject was taken in round i, in random order.

    `ratio` to the control is the median over rounds, `ratio_low` and `ratio_high` its 95 % bootstrap interval.
    Times are in microseconds a launch, with warm L2; `cold_us` are those of the windows in which every launch found its
    tensors evicted from L2, empty where none were taken. Baselines carry no checks. `deviation` was taken after timing;
    `about` says how a baseline was set up. Of a set of problems it is the mean over `members`, the subject's results on
    each, which have rounds of their own.
    """

    name: str
    windows_us: tuple[float, ...]
    launches_per_window: int
    ratio: float
    ratio_low: float
    ratio_high: float
    checks: tuple[Check, ...] = ()
    deviation: Deviation | None = None
    about: str = ""
    cold_us: tuple[float, ...] = ()
    members: tuple[Final, ...] = ()

    @property
    def median_us(self) -> float:
        return statistics.median(self.windows_us)

    @property
    def cold_median_us(self) -> float | None:
        return statistics.median(self.cold_us) if self.cold_us else None

    @property
    def noise(self) -> float:
        """Interquartile range over median."""
        return _noise(self.windows_us)


@dataclass(frozen=True, slots=True)
class Finals:
    """The final run: the default config, every finalist and every baseline, interleaved in one fresh process.

    `floor` is an empty kernel in the same kind of window: what a launch costs by itself. `unavailable` says why a
    baseline did not run. `cold_copies` is how many copies of the problem the cold windows went through. Of a set of
    problems `shapes` are label and weight of each, in the order of the subjects' `members`: a race for each.
    """

    control: Final
    finalists: tuple[tuple[Candidate, Final | Rejection], ...]
    baselines: tuple[Final, ...]
    environment: Evidence
    seed: int
    clocks: Evidence = field(default_factory=dict)
    floor: Final | None = None
    unavailable: Mapping[str, str] = field(default_factory=dict)
    cold_copies: int = 0
    shapes: tuple[tuple[str, float], ...] = ()

    def interval(self, subject: Final, confidence: float) -> tuple[float, float, float]:
        """(low, ratio, high) of a subject's time over the control's."""
        weights = [weight for _, weight in self.shapes] or [1.0]
        pairs = [
            (one.windows_us, control.windows_us)
            for one, control in zip(subject.members or (subject,), self.control.members or (self.control,), strict=True)
        ]
        return mean_interval(pairs, weights, self.seed, confidence)


def make_final(
    name: str,
    windows_us: Sequence[float],
    control_us: Sequence[float],
    launches_per_window: int,
    seed: int,
    checks: tuple[Check, ...] = (),
    deviation: Deviation | None = None,
    about: str = "",
    cold_us: Sequence[float] = (),
) -> Final:
    """A subject's windows with its ratio to the control's windows of the same rounds."""
    low, middle, high = ratio_interval(windows_us, control_us, seed)
    return Final(
        name, tuple(windows_us), launches_per_window, middle, low, high, checks, deviation, about, tuple(cold_us)
    )


def ratio_interval(
    windows_us: Sequence[float], control_us: Sequence[float], seed: int, confidence: float = 0.95
) -> tuple[float, float, float]:
    """(low, median, high) of the paired ratios: `mean_interval` of one subject."""
    return mean_interval([(windows_us, control_us)], [1.0], seed, confidence)


def mean_interval(
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]], weights: Sequence[float], seed: int, confidence: float
) -> tuple[float, float, float]:
    """(low, mean, high) of the weighted geometric mean of median ratios, each of its own `pairs` (windows, control's).

    Percentile bootstrap over rounds (Efron & Tibshirani 1993, ch. 13), of each member by itself (ch. 8: several
    samples). Rounds, not windows, are resampled: both windows of a pair share the clock and temperature of their round.
    The middle of n draws with repeats from n sorted values has the rank of the middle of n uniform numbers, which is
    beta distributed: two random numbers a resample in place of n.
    """
    import numpy as np

    draw, total = np.random.default_rng(seed), sum(weights)
    resampled, middle_log = np.zeros(RESAMPLES), 0.0
    for (windows_us, control_us), weight in zip(pairs, weights, strict=True):
        logs = np.sort(np.log(np.asarray(windows_us, np.float64)) - np.log(np.asarray(control_us, np.float64)))
        n = logs.size
        middle = (n + 1) // 2
        lower = draw.beta(middle, n - middle + 1, RESAMPLES)
        upper = lower
        if n % 2 == 0:  # the next of the n - middle numbers that lie above
            upper = lower + (1 - lower) * (1 - draw.random(RESAMPLES) ** (1 / (n - middle)))
        at = np.minimum((np.stack([lower, upper]) * n).astype(np.int64), n - 1)
        resampled += weight / total * logs[at].mean(axis=0)
        middle_log += weight / total * float(np.median(logs))
    low, high = np.percentile(resampled, [50 * (1 - confidence), 50 * (1 + confidence)])
    return math.exp(float(low)), math.exp(middle_log), math.exp(float(high))


def _noise(windows_us: Sequence[float]) -> float:
    if len(windows_us) < 2:
        return 0.0
    q1, middle, q3 = statistics.quantiles(windows_us, n=4, method="inclusive")
    return (q3 - q1) / middle
