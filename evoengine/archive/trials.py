"""Optuna's side of a candidate: the trial that is born with it and the trial as it is read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime

from optuna.trial import FrozenTrial, TrialState

from evoengine.archive.documents import Damaged, typed
from evoengine.archive.records import StudySpec
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


def proposal_of(space: SearchSpace, trial: FrozenTrial) -> Proposal:
    """What a trial was born from, as Optuna's tables have it.

    Raises:
        Damaged: they hold something else than we write.
    """
    point, born = _point(space, trial), origin(trial)
    config = config_at(space, point)
    if born is None or config.digest != born.digest:
        raise Damaged(f"trial {trial.number} is {config.label}, and not the config that it was born with")
    notes = {key: value for key, value in trial.system_attrs.items() if isinstance(value, int)}
    return Proposal(point, born.operator, born.generation, born.parents, notes, born.expected_gain)


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
