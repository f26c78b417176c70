"""The final run in a fresh process: who fails is dropped and it is repeated; then its results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evoengine.devices.cuda.messages import Dropped, Lap, Raced, RunFinals, Subject
from evoengine.devices.cuda.results import Final, Finals, make_final
from evoengine.devices.cuda.session import START_TRIES, JobFailed, Session
from evoengine.errors import EvoengineError
from evoengine.verdict import Candidate, Rejection

Finalist = tuple[Candidate, Subject]


def race(
    session: Session,
    control: Subject,
    finalists: Sequence[Finalist],
    seed: int,
    competitors: Sequence[str],
    seconds: float,
    check: Callable[[Mapping[str, Any]], None] = lambda environment: None,
) -> Finals:
    """Time `control`, `finalists` and `competitors` together in a fresh process, as often as one of them fails.

    `seconds` bounds each step of it. `check` is told of the environment before the first try.

    Raises:
        TemplateError, UserError: as `Session.ask`.
        EvoengineError: the card fails, and nobody can be named for it.
    """
    subjects = {subject.name: subject for _, subject in finalists}
    rejected: dict[str, Rejection] = {}
    crashed: dict[str, str] = {}
    checked, unexplained = False, 0
    while True:
        left = tuple(subject for name, subject in subjects.items() if name not in rejected)
        names = tuple(name for name in competitors if name not in crashed)
        try:
            environment = session.open(seed)
            if not checked:
                check(environment)
                checked = True
            raced, _ = session.ask(RunFinals(control, left, seed, names), seconds)
        except JobFailed as failed:
            about = "" if failed.shot else failed.about
            if about in subjects:
                rejected[about] = failed.rejection
            elif about in names:
                crashed[about] = str(failed)
            else:
                unexplained += 1
                if unexplained == START_TRIES:
                    raise EvoengineError(f"the final run fails on the card: {failed}") from failed
            continue
        session.stop()
        if isinstance(raced, Raced):
            return _gathered(finalists, raced, rejected, crashed, environment, seed)
        assert isinstance(raced, Dropped), raced
        rejected[raced.name] = raced.rejection


def _gathered(
    finalists: Sequence[Finalist],
    raced: Raced,
    rejected: Mapping[str, Rejection],
    crashed: Mapping[str, str],
    environment: Mapping[str, Any],
    seed: int,
) -> Finals:
    """Every finalist with its ratio to the control, or why it was rejected (by its name).

    `crashed` are competitors that took the worker down.
    """
    laps = {lap.name: lap for lap in raced.finalists}
    control_us = raced.control.windows_us

    def final(name: str, lap: Lap) -> Final:
        checks, launches = lap.checks, lap.launches_per_window
        return make_final(
            name, lap.windows_us, control_us, launches, seed, checks, lap.deviation, lap.about, lap.cold_us
        )

    return Finals(
        final("default", raced.control),
        tuple((c, rejected.get(s.name) or final(c.config.label, laps[s.name])) for c, s in finalists),
        tuple(final(lap.name, lap) for lap in raced.baselines),
        environment,
        seed,
        raced.clocks,
        final(raced.floor.name, raced.floor),
        {**raced.unavailable, **crashed},
        raced.cold_copies,
    )
