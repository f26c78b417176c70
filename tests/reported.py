"""Studies for tests of reports: real measurements of the recorded mission space, and studies that went wrong."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from evoengine.archive.records import Baseline, Build, Elite, Record, StudySpec
from evoengine.gates import Ceilings
from evoengine.hardware import card
from evoengine.problem import AttentionProblem, problem_digest, problem_fields
from evoengine.report.facts import Facts
from evoengine.space import SearchSpace, load_space
from evoengine.summary import summarise, trials
from evoengine.template import Launch, shipped
from evoengine.verdict import Check, Estimate, Gate, Measurement, Rejection, ResourceUsage, Verdict
from evoengine.worth import worth

MISSION = Path(__file__).parent.parent / "studies" / "h200" / "spaces" / "mission.jsonl.gz"
CONTROL_US = 8.36
PROBLEM = AttentionProblem()
H200 = card("h200")


@dataclass
class PaperStudy:
    """What `summarise` asks of a study, without a database: writing a thousand trials to one takes a minute."""

    spec: StudySpec
    known: list[Record]
    confirmed: list[Elite] = field(default_factory=list)
    competitors: list[Baseline] = field(default_factory=list)
    free: dict[str, int] = field(default_factory=lambda: {"infeasible": 3, "repeat": 2})

    @property
    def name(self) -> str:
        return self.spec.name

    def elites(self) -> list[Elite]:
        return self.confirmed

    def baselines(self) -> list[Baseline]:
        return self.competitors

    def counts(self) -> dict[str, int]:
        return self.free


@cache
def space() -> SearchSpace:
    return load_space(shipped("search_spaces") / "attention.py")


@cache
def mission() -> list[dict[str, Any]]:
    """Rows of the recording, in an order of their own; an axis that is newer than it stands at its default."""
    with gzip.open(MISSION, "rt") as lines:
        rows = [json.loads(line) for line in lines][1:]
    rows = [row | {"values": {**space().default, **row["values"]}} for row in rows]
    return sorted(rows, key=lambda row: hash(tuple(row["values"].values())))


def spec(**changes: Any) -> StudySpec:
    plain = StudySpec(
        name="mission", template="attention", template_digest="t" * 16, template_folder="t", space="attention",
        space_digest="s" * 12, space_path="s", axes=space().axes, default=space().default,
        problem=problem_fields(PROBLEM), problem_label=PROBLEM.label, problem_digest=problem_digest(PROBLEM),
        device=H200.name, limits=H200.as_json(), arch="sm_90", toolchain="NVRTC 13.0.88", sampler="random", seed=1,
        budget=1000, seconds=None, ceilings={}, command="evoengine search --sampler random --budget 1000",
        measures=True, created_at="2026-01-02T03:04:05+00:00",
    )  # fmt: skip
    return replace(plain, **changes)


def record(number: int, row: Mapping[str, Any], verdict: Verdict | None, *, twin_of: int | None = None) -> Record:
    config = space().config(row["values"])
    estimate = verdict if isinstance(verdict, Estimate) else None
    state = "running" if verdict is None else "waiting" if estimate else "done"
    build = None
    if row["resources"]:
        usage = ResourceUsage(**row["resources"])
        build = Build("d" * 32, config.digest * 4, usage, 0.6, "NVRTC 13.0.88", "sm_90")
    return Record(
        number, space().point(row["values"]), config, "random", 0, (), {}, None, state, verdict, estimate, build,
        twin_of, "2026-01-02T03:04:06+00:00", {"gpu": H200.name, "clocks": {"sm_clock_mhz": 1980}},
    )  # fmt: skip


def measured(us: float) -> Measurement:
    check = Check("normal", PROBLEM.label, 0, 1e-3, 1e-3, 2.8e-4, 2.9e-4, 1e-3, 0, 0, 0, False, 50, 0, 0.1)
    return Measurement((us,) * 3, (CONTROL_US,) * 3, CONTROL_US, 1000, "warm", "converged", checks=(check,))


def as_recorded(row: Mapping[str, Any]) -> Verdict:
    if row["gate"]:
        return Rejection(Gate(row["gate"]), row["reason"])
    return measured(row["median_us"])


def elite(one: Record, *, low: float = 0.97, high: float = 1.02, verdict: str = "FASTER") -> Elite:
    assert isinstance(one.verdict, Measurement)
    ratio = one.verdict.ratio
    interval = {"control_ratio_low": ratio * low, "control_ratio_high": ratio * high}
    us = one.verdict.median_us
    return Elite(
        one.number, us, 0.012, ratio, {"sdpa": us / 9.2}, verdict, b"", "c" * 64, "t" * 16, one.environment, interval
    )


def facts_of(study: PaperStudy, top: int = 8, **changes: Any) -> Facts:
    """As the command line makes them, with a launch of 128 threads for every config."""
    launches = {one.number: Launch((64, 1, 1), 128, 0) for one in study.known}
    found = worth(study.known, len(study.confirmed), study.spec.axes, None, 0)
    summary: dict[str, Any] = {**summarise(study, study.known, launches, H200, top), "worth": found}  # type: ignore[arg-type]
    plain = Facts(
        summary=summary,
        trials=trials(study.known, launches, H200, measured=bool(found and found["measured"])),
        axes=study.spec.axes,
        default=study.spec.default,
        problem=PROBLEM,
        limits=H200,
        ceilings=Ceilings(),
        device=H200,
        version="0.1.0",
        made_at="2026-01-02 03:04 UTC",
    )
    return replace(plain, **changes)


def measured_study(count: int, **changes: Any) -> PaperStudy:
    """`count` configs of the mission space as they were measured, the eight fastest confirmed, two baselines."""
    known = [record(number, row, as_recorded(row)) for number, row in enumerate(mission()[:count])]
    fast = sorted((one for one in known if isinstance(one.verdict, Measurement)), key=lambda one: one.verdict.median_us)
    competitors = [
        Baseline("sdpa", measured(9.2), {"rel_fro": 2.8e-4}),
        Baseline("sdpa_math", measured(58.1), {"rel_fro": 2.1e-4}),
        Baseline("flash", Rejection(Gate.RUNTIME, "no kernel here")),
    ]
    return PaperStudy(spec(**changes), known, [elite(one) for one in fast[:8]], competitors)


def rows(*verdicts: Verdict | None) -> list[Record]:
    return [
        record(number, row, verdict) for number, (row, verdict) in enumerate(zip(mission(), verdicts, strict=False))
    ]


STATES = (
    "nothing judged", "one config", "all refused", "no finalists", "no significant winner", "interrupted", "estimated",
    "estimated and measured", "twins", "equal times",
)  # fmt: skip
"""Studies that are not as one would like them."""


@cache
def state(name: str) -> Facts:
    return facts_of(_states()[name])


def _states() -> dict[str, PaperStudy]:
    refused = [
        *(Rejection(Gate.COMPILE, f"error: expected a ';' in line {line}") for line in range(4)),
        Rejection(Gate.RESOURCES, "300 registers a thread, allowed are 255"),
        Rejection(Gate.STATIC, "rows: more than 512 rows"),
        Rejection(Gate.TIMEOUT, "no answer in 10 s"),
    ]
    one = rows(measured(5.0))
    slow = rows(measured(9.0), measured(8.36), measured(8.5))
    estimates = rows(*(Estimate(10.0 + at % 7) for at in range(30)))
    twins = [*rows(measured(5.0), measured(6.0)), record(2, mission()[2], measured(5.0), twin_of=0)]
    unconfirmed = measured_study(40)
    unconfirmed.confirmed = []
    made = (
        PaperStudy(spec(), []),
        PaperStudy(spec(), one, [elite(one[0])]),
        PaperStudy(spec(), rows(*refused)),
        unconfirmed,
        PaperStudy(spec(), slow, [elite(slow[1], low=0.9, high=1.1, verdict="SAME")]),
        PaperStudy(spec(), rows(measured(5.0), refused[0], None, None)),
        PaperStudy(spec(measures=False), estimates),
        PaperStudy(spec(measures=False), rows(measured(9.0), Estimate(5.0), Estimate(6.0))),
        PaperStudy(spec(), twins),
        PaperStudy(spec(), rows(*(measured(5.0) for _ in range(25)))),
    )
    return dict(zip(STATES, made, strict=True))
