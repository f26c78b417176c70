"""What a sampler reads of a study's trials, each of them once when it comes and once more when it is finished.

Read anew for every proposal they take 5 of 20 ms at 850 trials.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from evoengine.sampler.encoding import to_point
from evoengine.sampler.model import History
from evoengine.sampler.operators import Member
from evoengine.sampler.valid import ValidSet
from evoengine.space import Axis

GENERATION = "evoengine:generation"
"""System attribute of a trial."""


class Trials:
    """Trials of one study. `taken` are the rows of all in the feasible set, `members` are those that have a value."""

    def __init__(self, axes: Sequence[Axis], valid: ValidSet) -> None:
        self.taken: set[int] = set()
        self.members: list[Member] = []
        self._axes = axes
        self._valid = valid
        self._seen = 0
        self._running: dict[int, int | None] = {}
        self._done: list[int] = []
        self._rows: list[int] = []
        self._values: list[float] = []

    def read(self, trials: Sequence[FrozenTrial]) -> None:
        """The same trials as before, in order of their numbers, and what has come since."""
        for trial in trials[self._seen :]:
            row = self._valid.row(to_point(self._axes, trial.params))
            self._running[trial.number] = row
            if row is not None:
                self.taken.add(row)
        self._seen = len(trials)
        for number in [one for one in self._running if trials[one].state.is_finished()]:
            self._finish(trials[number], self._running.pop(number))

    def history(self) -> History:
        """Of the trials in the feasible set, finished and running, each in order of their numbers."""
        running = [row for row in self._running.values() if row is not None]
        return History(np.array(self._rows, dtype=np.intp), np.array(self._values), np.array(running, dtype=np.intp))

    def _finish(self, trial: FrozenTrial, row: int | None) -> None:
        value = trial.value if trial.state == TrialState.COMPLETE else None
        if value is not None:
            point = to_point(self._axes, trial.params)
            self.members.append(Member(trial.number, point, trial.system_attrs.get(GENERATION, 0), value))
        if row is not None:
            at = bisect_left(self._done, trial.number)
            self._done.insert(at, trial.number)
            self._rows.insert(at, row)
            self._values.insert(at, np.nan if value is None else value)
