"""Optuna's side of a candidate: the trial that is born with it and the trial as it is read."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

from evoengine.archive.codec import read_build, read_verdict
from evoengine.archive.records import Record, StudySpec
from evoengine.sampler import Proposal
from evoengine.sampler.encoding import distributions, to_params, to_point
from evoengine.space import Config, SearchSpace
from evoengine.verdict import Estimate, Measurement, Rejection, Verdict

ORIGIN = "evoengine"
"""The user attribute with where a trial comes from: one document, because Optuna pays a query for each attribute."""


def newborn(spec: StudySpec, proposal: Proposal, config: Config) -> FrozenTrial:
    """A RUNNING trial with everything known at birth, to be written in one transaction."""
    origin = {
        "config": config.label,
        "digest": config.digest,
        "operator": proposal.operator,
        "generation": proposal.generation,
        "parents": list(proposal.parents),
        "expected_gain": proposal.expected_gain,
    }
    return FrozenTrial(
        number=-1,
        trial_id=-1,
        state=TrialState.RUNNING,
        value=None,
        datetime_start=datetime.now(),
        datetime_complete=None,
        params=to_params(spec.axes, proposal.point),
        distributions=distributions(spec.axes),
        user_attrs={ORIGIN: origin},
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


def origin(trial: FrozenTrial) -> dict[str, Any]:
    """Where a trial comes from; empty for a trial that another program put into the study."""
    found = trial.user_attrs.get(ORIGIN)
    return found if isinstance(found, dict) else {}


def read_record(
    space: SearchSpace,
    trial: FrozenTrial,
    row: Mapping[Any, Any],
    verdicts: Mapping[bool, Mapping[Any, Any]],
    build: Mapping[Any, Any] | None,
    environments: Mapping[int, Mapping[str, Any]],
) -> Record:
    """A record from the trial, its candidate row, its verdict rows by finality, and its build row."""
    point = to_point(space.axes, trial.params)
    born = origin(trial)
    estimate = read_verdict(verdicts[False]) if False in verdicts else None
    assert estimate is None or isinstance(estimate, Estimate), "only an estimate is not final"
    last = verdicts.get(True) or verdicts.get(False)
    waits: Literal["waiting", "running"] = "waiting" if row["session_id"] is None else "running"
    return Record(
        number=trial.number,
        point=point,
        config=space.config_at(point),
        operator=born["operator"],
        generation=born["generation"],
        parents=tuple(born["parents"]),
        system_attrs={key: value for key, value in trial.system_attrs.items() if isinstance(value, int)},
        expected_gain=born.get("expected_gain"),
        state="done" if True in verdicts else waits,
        verdict=read_verdict(verdicts[True]) if True in verdicts else estimate,
        estimate=estimate,
        build=None if build is None else read_build(build),
        twin_of=None if last is None else last["twin_of"],
        committed_at="" if last is None else last["committed_at"],
        environment={} if last is None else environments[last["session_id"]],
    )
