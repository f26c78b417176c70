"""What goes into the archive and comes out of it, as plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from evoengine.archive.documents import Damaged, positive, typed
from evoengine.errors import UserError
from evoengine.sampler import Seen
from evoengine.sampler.source import Source
from evoengine.space import Axis, Config, Point, SearchSpace, Values
from evoengine.verdict import Estimate, Evidence, Measurement, Rejection, ResourceUsage, Verdict


@dataclass(frozen=True, slots=True)
class MemberSpec:
    """One problem of a study's set, and its weight."""

    label: str
    problem: Mapping[str, int | float | str | bool]
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySpec:
    """What a study searches, and all that is needed to go on with it. Only `budget` may change once the study exists.

    `measures` is False where the study began without a GPU. `created_at` is ISO 8601, UTC. `sources` is what the
    search was told before it began: a copy, because other studies may go on and the estimate may change. `members` are
    the problems of a study of a set, whose `problem` has only the fields that all of them share.
    """

    name: str
    template: str
    template_digest: str
    template_folder: str
    space: str
    space_digest: str
    space_path: str
    axes: tuple[Axis, ...]
    default: Values
    problem: Mapping[str, int | float | str | bool]
    problem_label: str
    problem_digest: str
    device: str
    limits: Mapping[str, Any]
    arch: str
    toolchain: str
    sampler: str
    seed: int
    budget: int
    seconds: float | None
    ceilings: Mapping[str, int | None]
    command: str
    measures: bool
    created_at: str
    sources: tuple[Source, ...] = ()
    members: tuple[MemberSpec, ...] = ()

    @property
    def frozen_space(self) -> SearchSpace:
        """The axes as they were when the study began, without rules: turns points into configs and back."""
        return SearchSpace(self.space, self.axes, (), self.default)

    def as_json(self) -> dict[str, Any]:
        """Of one problem as it was before there were sets: an older evoengine can read it."""
        document = dataclasses.asdict(self)
        return document if self.members else {name: value for name, value in document.items() if name != "members"}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> StudySpec:
        """What `as_json` gave.

        Raises:
            Damaged: it is no such document.
        """
        try:
            spec = typed(cls, document)
            sizes = [len(axis.choices) for axis in spec.frozen_space]
        except UserError as error:  # an axis without choices, a default that is no config
            raise Damaged(str(error)) from error
        indices = (zip(point, sizes, strict=True) for source in spec.sources for point in source.points)
        try:
            outside = any(not 0 <= at < size for pairs in indices for at, size in pairs)
        except ValueError:
            outside = True
        if spec.seed < 0 or outside or any(len(one.points) != len(one.values) for one in spec.sources):
            raise Damaged(f"study {spec.name!r:.80} has a seed under 0, or a source of another space")
        positive(*(member.weight for member in spec.members))
        for source in spec.sources:
            positive(*(value for value in source.values if value is not None))
        return spec


@dataclass(frozen=True, slots=True)
class StudySummary:
    """One line of `evoengine studies`.

    `best_us` is the fastest elite's, from its final run; `best_unconfirmed_us` the fastest that the search measured,
    biased low as every minimum is; `best_estimated_us` a model's number.
    """

    spec: StudySpec
    status: str
    opened_at: str
    candidates: int
    rejected: int
    measured: int
    waiting: int
    elites: int
    best_us: float | None
    best_unconfirmed_us: float | None
    best_estimated_us: float | None
    searched_by: str
    """Who searches it now, `pid N on HOST`; empty when nobody does."""


@dataclass(frozen=True, slots=True)
class Build:
    """What is kept of an artifact: its inputs' digest, its output's hash, and what the compiler reported."""

    digest: str
    cubin_sha256: str
    resources: ResourceUsage
    build_seconds: float
    compiler: str
    arch: str


@dataclass(frozen=True, slots=True)
class Record:
    """One trial of a study with everything that is known of it.

    `verdict` is the rejection or measurement, else the estimate, else None. An estimate stays in `estimate` after the
    candidate has been measured. `environment` is that of the process that reached the verdict. `expected_gain` is
    `Proposal`'s; None in studies that are older than it.
    """

    number: int
    point: Point
    config: Config
    operator: str
    generation: int
    parents: tuple[int, ...]
    system_attrs: Mapping[str, int]
    expected_gain: float | None
    state: Literal["running", "waiting", "done"]
    verdict: Verdict | None = None
    estimate: Estimate | None = None
    build: Build | None = None
    twin_of: int | None = None
    committed_at: str = ""
    environment: Evidence = field(default_factory=dict)

    def seen(self, *, measures: bool) -> Seen:
        """The trial as a sampler sees it: by measurement only where the study `measures`, by estimate elsewhere."""
        value: float | None = None
        done = isinstance(self.verdict, Rejection)
        if isinstance(self.verdict, Measurement):
            done, value = True, self.verdict.median_us
        elif self.estimate is not None and not measures and not done:
            done, value = True, self.estimate.estimated_us
        return Seen(
            self.number,
            self.point,
            value,
            "done" if done else "running",
            self.operator,
            self.generation,
            self.parents,
            self.system_attrs,
            # What an estimate promised says nothing of measurements.
            None if measures and self.estimate is not None else self.expected_gain,
        )


@dataclass(frozen=True, slots=True)
class Baseline:
    """A competitor timed in the same run, or the reason why it did not run."""

    name: str
    verdict: Measurement | Rejection
    environment: Evidence = field(default_factory=dict)
    measured_at: str = ""


@dataclass(frozen=True, slots=True)
class Elite:
    """A confirmed config. `median_us` and `noise` are the finalists' run's, never the search's minimum.

    `control_ratio` is elite over default config and `baseline_ratios` elite over each baseline, all interleaved in that
    run; under 1 is faster. `verdict` is the comparison in words.
    """

    number: int
    median_us: float
    noise: float
    control_ratio: float
    baseline_ratios: Mapping[str, float]
    verdict: str
    cubin: bytes
    cubin_sha256: str
    source_digest: str
    environment: Evidence
    evidence: Evidence = field(default_factory=dict)
    confirmed_at: str = ""


def fastest(records: Iterable[Record], n: int) -> list[Record]:
    """The `n` fastest measured configs, twins left out."""
    measured = [
        (one.verdict.median_us, one.number, one)
        for one in records
        if isinstance(one.verdict, Measurement) and one.twin_of is None
    ]
    return [one for *_, one in sorted(measured)[:n]]


def shortlist(records: Iterable[Record], n: int) -> list[Record]:
    """The `n` configs that wait for a measurement with the lowest estimates, twins left out."""
    estimated = [
        (one.verdict.estimated_us, one.number, one)
        for one in records
        if isinstance(one.verdict, Estimate) and one.twin_of is None
    ]
    return [one for *_, one in sorted(estimated)[:n]]
