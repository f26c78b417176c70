"""What can come out of a candidate: a rejection, a measurement, or (without a GPU) an estimate."""

from __future__ import annotations

import dataclasses
import hashlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from evoengine.space import Config

Evidence = Mapping[str, Any]
"""JSON-ready numbers and texts that let a reader check a verdict without running anything."""


class Gate(StrEnum):
    """The gates in the order a candidate meets them; the last two can close at any GPU step."""

    STATIC = "static"
    COMPILE = "compile"
    RESOURCES = "resources"
    CORRECTNESS = "correctness"
    RUNTIME = "runtime"
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class ResourceUsage:
    """What ptxas reports for one kernel, plus the dynamic shared memory of its launch."""

    registers: int
    spill_store_bytes: int
    spill_load_bytes: int
    stack_bytes: int
    static_smem_bytes: int
    smem_bytes: int
    barriers: int = 0

    @property
    def spill_bytes(self) -> int:
        """Bytes per thread stored and loaded by register spills."""
        return self.spill_store_bytes + self.spill_load_bytes


@dataclass(frozen=True, slots=True)
class Artifact:
    """A built candidate. `digest` names the inputs of the build, `cubin_sha256` its output.

    `members` are the builds for each problem of a set (`together`); empty where there is one problem.
    """

    digest: str
    folder: Path
    cubin_sha256: str
    resources: ResourceUsage
    build_seconds: float
    compiler: str
    arch: str
    cached: bool = False
    members: tuple[Artifact, ...] = ()

    @property
    def parts(self) -> tuple[Artifact, ...]:
        """The build for each problem; its own where there is one."""
        return self.members or (self,)

    @property
    def image(self) -> bytes:
        """What `cubin_sha256` is of: the cubin, or all different ones, one after the other in the members' order."""
        different = {one.cubin_sha256: one for one in self.parts}
        return b"".join(one.cubin.read_bytes() for one in different.values())

    @property
    def cubin(self) -> Path:
        return self.folder / "kernel.cubin"

    @property
    def ptx(self) -> Path:
        return self.folder / "kernel.ptx"


def together(members: Sequence[Artifact]) -> Artifact:
    """One config built for every problem of a set, of each resource what the most demanding member uses."""
    first = members[0]
    used = [dataclasses.asdict(one.resources) for one in members]
    whole = dataclasses.replace(
        first,
        resources=ResourceUsage(**{name: max(one[name] for one in used) for name in used[0]}),
        build_seconds=sum({one.digest: one.build_seconds for one in members}.values()),
        cached=all(one.cached for one in members),
        members=tuple(members),
    )
    digests = list(dict.fromkeys(one.digest for one in members))
    if len(digests) > 1:
        whole = dataclasses.replace(whole, digest=hashlib.sha256(" ".join(digests).encode()).hexdigest()[:32])
    if len({one.cubin_sha256 for one in members}) > 1:
        whole = dataclasses.replace(whole, cubin_sha256=hashlib.sha256(whole.image).hexdigest())
    return whole


@dataclass(frozen=True, slots=True)
class Check:
    """One correctness check of one output on one input set, with what is needed to judge it again.

    Errors are against the fp64 reference; `baseline_*` are those of the obvious half-precision implementation on the
    same input. `reason` is empty where the check passed.

    `max_ratio`, `fro_ratio` and `row_ratio` are error over the baseline's: anywhere, in the worst slice (`slice_at`, a
    batch and head), in the worst row (`row_at`), each the largest of all outputs. A verdict under other factors follows
    from them (`oracle.failure`); checks that were stored before there were ratios have None. `inexact` counts values
    that have but one right answer and do not have it.
    """

    input_set: str
    shape: str
    seed: int
    max_abs: float
    baseline_max_abs: float
    rel_fro: float
    baseline_rel_fro: float
    worst_row: float
    poison_left: int
    guard_hits: int
    nonfinite: int
    inputs_changed: bool
    repeats: int
    repeat_mismatches: int
    seconds: float
    reason: str = ""
    input_sha256: str = ""
    inexact: int = 0
    max_ratio: float | None = None
    fro_ratio: float | None = None
    row_ratio: float | None = None
    slice_at: int = 0
    row_at: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OnShape:
    """What the evidence of a verdict on a set of problems says of one, under `shapes`; it may say more.

    Ratios are to the default config's time. `build` is the digest of the shape's own build, `cubin_bytes` the length of
    its cubin within an elite's image.
    """

    shape: str
    weight: float
    build: str
    cubin_sha256: str
    registers: int
    spill_bytes: int
    cubin_bytes: int | None = None
    estimated_us: float | None = None
    median_us: float | None = None
    noise: float | None = None
    ratio_to_default: float | None = None
    control_reference_us: float | None = None


def on_shapes(evidence: Evidence) -> Sequence[Mapping[str, Any]]:
    """The rows of `OnShape` in the evidence of a verdict or an elite; none where it is of one problem."""
    rows: Sequence[Mapping[str, Any]] = evidence.get("shapes", ())
    return rows


@dataclass(frozen=True, slots=True)
class Rejection:
    """A candidate that did not pass: which gate, why in one line with numbers, and the evidence."""

    gate: Gate
    reason: str
    evidence: Evidence = field(default_factory=dict)
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True, slots=True)
class Measurement:
    """Device time of one proven candidate, in microseconds a launch.

    `windows_us[i]` was timed next to `control_us[i]`, the shipped default config in a window of the same kind, so
    drift of clocks and temperature shows in both. The value that ranks candidates is `median_us`: the median of the
    pairwise ratios times `control_reference_us`, the control's level when the study's first worker was set up.
    `evidence` has how well the ratio is known and, for a time that was too good or taken in bad times, every earlier
    try.
    """

    windows_us: tuple[float, ...]
    control_us: tuple[float, ...]
    control_reference_us: float
    launches_per_window: int
    mode: Literal["warm", "cold"]
    stopped: Literal["converged", "limit", "beaten"]
    clocks: Evidence = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    flags: tuple[str, ...] = ()
    evidence: Evidence = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Median of candidate over control, window by window; under 1 is faster than the default config."""
        return statistics.median(w / c for w, c in zip(self.windows_us, self.control_us, strict=True))

    @property
    def median_us(self) -> float:
        return self.ratio * self.control_reference_us

    @property
    def noise(self) -> float:
        """Interquartile range over median of the pairwise ratios; 0 for a single window."""
        ratios = [w / c for w, c in zip(self.windows_us, self.control_us, strict=True)]
        if len(ratios) < 2:
            return 0.0
        q1, _, q3 = statistics.quantiles(ratios, n=4, method="inclusive")
        return (q3 - q1) / statistics.median(ratios)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A candidate that passed every gate that needs no GPU. `estimated_us` is a model's number, not a measurement."""

    estimated_us: float
    evidence: Evidence = field(default_factory=dict)
    checks: tuple[Check, ...] = ()


Verdict = Rejection | Measurement | Estimate


def quantile(ascending: Sequence[float], share: float) -> float:
    """The `share` quantile, between neighbours."""
    at = share * (len(ascending) - 1)
    low = int(at)
    high = min(low + 1, len(ascending) - 1)
    return ascending[low] + (ascending[high] - ascending[low]) * (at - low)


def is_paid(verdict: Verdict | None, twin_of: int | None) -> bool:
    """Whether a trial counts against the budget: judged, past the static gate, and nobody's twin."""
    if verdict is None or twin_of is not None:
        return False
    return not (isinstance(verdict, Rejection) and verdict.gate is Gate.STATIC)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A config on trial, with where it came from."""

    number: int
    config: Config
    operator: str
    generation: int = 0
    parents: tuple[int, ...] = ()
