"""One card that judges in a thread of its own: while it proves and times a candidate, its caller does all the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import NoReturn, TypeVar

from evoengine.devices import Work
from evoengine.devices.cuda.results import Finals, Setup
from evoengine.devices.pool import Card, CardDevice, CardPool, Job
from evoengine.errors import EvoengineError
from evoengine.space import Values
from evoengine.verdict import Artifact, Candidate, Verdict

T = TypeVar("T")
AHEAD = 8
"""Candidates that wait for the card, if so many are built: a verdict takes 50 ms, a step of eight proposals 0.2 s and
up to 0.5 where the surrogate is fitted anew (busy cores)."""


class SingleCard:
    """A card's verdicts as they are, reached while the caller commits the one before, proposes and begins builds.

    `after` frees what else was made for the card, when it is closed.
    """

    def __init__(self, device: CardDevice, after: Callable[[], None] = lambda: None) -> None:
        self.name = device.name
        self._device = device
        self._after = after
        self._pool = CardPool([Card("the card", device)], _lost, AHEAD)

    def start(self, values: Values, artifact: Artifact) -> Setup:
        """Raises what the card's device raises. `close` ends it, from another thread too."""
        return self._ended_by_close(lambda device: device.start(values, artifact))

    def judge(self, work: Iterable[Job]) -> Iterator[tuple[Candidate, Verdict]]:
        """One verdict a candidate, each as soon as it is known; those in doubt later.

        Where `work` raises, what the card has in flight is judged first. Where the caller goes away, or is
        interrupted, that is given up and the card judges no more.

        Raises:
            EvoengineError: the card does not come back after a candidate's fault.
        """
        with closing(self._pool.judge(work)) as judged:
            for _, candidate, verdict in judged:
                yield candidate, verdict

    def finals(self, work: Work, seed: int) -> Finals:
        """Raises what the card's device raises. `close` ends it, from another thread too."""
        return self._ended_by_close(lambda device: device.finals(work, seed))

    def in_hand(self) -> list[list[int]]:
        return self._pool.in_hand()

    def close(self) -> None:
        """End the worker and free the card, whatever it is busy with."""
        self._pool.give_up()
        with closing(self._device):
            self._after()

    def _ended_by_close(self, work: Callable[[CardDevice], T]) -> T:
        """What the pool's thread returns or raises: `close` interrupts those of the pool."""
        found: list[T] = []
        for error in self._pool.together(lambda card: found.append(work(card.device))).values():
            raise error
        return found[0]


def _lost(card: Card, error: EvoengineError) -> NoReturn:
    """There is no other."""
    raise error
