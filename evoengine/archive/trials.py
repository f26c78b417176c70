"""Optuna's side of a candidate: the trial that is born with it and the trial as it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

from evoengine.archive.codec import read_build, read_verdict
from evoengine.archive.documents import Damaged, typed
from evoengine.archive.records import Record, StudySpec
from evoengine.sampler import Proposal
from evoengine.sampler.encoding import distributions, to_params, to_point
from evoengine.space import Config, Point, SearchSpace
from evoengine.verdict import Estimate, Measurement, Rejection, Verdict

ORIGIN = "evoengine"
"""The user attribute with where a trial comes from: one document, because Optuna pays a query for each attribute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """That document. `config` is the label; `expected_gain` came later than the first studies."""

    config: str
    digest: str
    operator: str
    generation: int
    parents: tuple[int, ...]
    expected_gain: float | None = None


def newborn(spec: StudySpec, proposal: Proposal, config: Config) -> FrozenTrial:
    """A RUNNING trial with everything known at birth, to be written in one transaction."""
    origin = Origin(
        config=config.label,
        digest=config.digest,
        operator=proposal.operator,
        generation=proposal.generation,
        parents=proposal.parents,
        expected_gain=proposal.expected_gain,
    )
    return FrozenTrial(
        number=-1,
        trial_id=-1,
        state=TrialState.RUNNING,
        value=None,
        datetime_start=datetime.now(),
        datetime_complete=None,
        params=to_params(spec.axes, proposal.point),
        distributions=distributions(spec.axes),
        user_attrs={ORIGIN: asdict(origin)},
        system_attrs=dict(proposal.system_attrs),
        intermediate_values={},
    )


def optuna_state(verdict: Verdict) -> tuple[TrialState, list[float] | None]:
    """What Optuna is told. A rejection is PRUNED and never FAIL, which samplers ignore; an estimate is a trial that
    waits for its measurement, and its number stays out of Optuna."""
    match verdict:
        case Measurement():
            return TrialState.COMPLETE, [verdict.median_us]
        case Rejection():
            return TrialState.PRUNED, None
        case Estimate():
            return TrialState.WAITING, None


def origin(trial: FrozenTrial) -> Origin | None:
    """Where a trial comes from; None for a trial that another program put into the study.

    Raises:
        Damaged: it says something else than we write.
    """
    found = trial.user_attrs.get(ORIGIN)
    return None if found is None else typed(Origin, found)


def read_record(
    space: SearchSpace,
    trial: FrozenTrial,
    row: Mapping[Any, Any],
    verdicts: Mapping[bool, Mapping[Any, Any]],
    build: Mapping[Any, Any] | None,
    environments: Mapping[int, Mapping[str, Any]],
) -> Record:
    """A record from the trial, its candidate row, its verdict rows by finality, and its build row.

    Raises:
        Damaged: they do not make one.
    """
    point, born = _point(space, trial), origin(trial)
    config = config_at(space, point)
    if born is None or not config.digest == row["config_digest"] == born.digest:
        raise Damaged(f"trial {trial.number} is {config.label}, its candidate {row['label']!r:.80}")
    estimate = read_verdict(verdicts[False]) if False in verdicts else None
    if estimate is not None and not isinstance(estimate, Estimate):
        raise Damaged(f"trial {trial.number} has a {type(estimate).__name__} in place of its estimate")
    last = verdicts.get(True) or verdicts.get(False)
    waits: Literal["waiting", "running"] = "waiting" if row["session_id"] is None else "running"
    return Record(
        number=trial.number,
        point=point,
        config=config,
        operator=born.operator,
        generation=born.generation,
        parents=born.parents,
        system_attrs={key: value for key, value in trial.system_attrs.items() if isinstance(value, int)},
        expected_gain=born.expected_gain,
        state="done" if True in verdicts else waits,
        verdict=read_verdict(verdicts[True]) if True in verdicts else estimate,
        estimate=estimate,
        build=None if build is None else read_build(build),
        twin_of=None if last is None or last["twin_of"] is None else typed(int, last["twin_of"]),
        committed_at="" if last is None else typed(str, last["committed_at"]),
        environment={} if last is None else typed(dict, environments.get(last["session_id"])),
    )


def config_at(space: SearchSpace, point: Point) -> Config:
    """The config at a point that a database holds.

    Raises:
        Damaged: it is not a point of the space.
    """
    sizes = [len(axis.choices) for axis in space.axes]
    if len(point) != len(sizes) or any(not 0 <= at < size for at, size in zip(point, sizes, strict=True)):
        raise Damaged(f"{point!r:.80} is no config of space {space.name}")
    return space.config_at(point)


def _point(space: SearchSpace, trial: FrozenTrial) -> Point:
    try:
        return to_point(space.axes, trial.params)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise Damaged(f"trial {trial.number} is no config of its study: {type(error).__name__} {error}") from error
