"""Which configs to try next: what a sampler is told (`Seen`) and what it answers (`Proposal`).

`proposer.Proposer` does the work and imports Optuna and numpy; this module stays light for the command line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from evoengine.errors import UserError, did_you_mean
from evoengine.space import Point

SAMPLERS = ("evolution", "tpe", "nsga2", "cmaes", "random")
INFORMED = ("evolution",)
"""Samplers that can be told of what is known beforehand (`source.Source`)."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A feasible config that has not been tried, and where it comes from.

    `parents` are trial numbers. `system_attrs` is what Optuna's sampler must find on the trial to go on after a resume
    (NSGA-II's generation); it is JSON-ready and belongs into the database with the trial. `expected_gain` is what the
    sampler's model expected the config to save when it proposed it, as a share of the best time (0.01: 1 %), and no
    untried config promised more; None where no model was asked.
    """

    point: Point
    operator: str
    generation: int = 0
    parents: tuple[int, ...] = ()
    system_attrs: Mapping[str, int] = field(default_factory=dict)
    expected_gain: float | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """A trial as a sampler sees it. A `done` trial without a value was rejected.

    `value` is in microseconds, lower is better: measured or, where nothing can be measured, estimated. The caller does
    not mix the two in one study.
    """

    number: int
    point: Point
    value: float | None
    state: Literal["running", "done"]
    operator: str = ""
    generation: int = 0
    parents: tuple[int, ...] = ()
    system_attrs: Mapping[str, int] = field(default_factory=dict)
    expected_gain: float | None = None


class Proposing(Protocol):
    """Who proposes: `proposer.Proposer`, or one in a process of its own.

    `free` counts what cost nothing (infeasible proposals, repeats) of all that was answered.
    """

    free: Counter[str]

    def prepare(self) -> None:
        """Do beforehand what proposals need once verdicts are known."""

    def ask(self, seen: Iterable[Seen], n: int) -> None:
        """Begin to make `n` proposals that know all trials of `seen`; nothing may be asked for that is not answered."""

    def answer(self, *, wait: bool) -> list[Proposal] | None:
        """What was asked for, fewer where so many are not left; None where it is not there yet and not waited for."""

    def close(self) -> None:
        """End what was begun for it."""


def check_sampler(name: str) -> str:
    """`name` if there is such a sampler.

    Raises:
        UserError: there is none; names the nearest one.
    """
    if name in SAMPLERS:
        return name
    raise UserError(f"unknown sampler {name!r}: {did_you_mean(name, SAMPLERS)}known are {', '.join(SAMPLERS)}")
