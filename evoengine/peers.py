"""The other processes on a study: how much is left for this one, when to wait for them, and who ends it for all."""

from __future__ import annotations

from collections.abc import Callable

from evoengine.archive.sessions import Turn
from evoengine.archive.study import Study
from evoengine.archive.work import Bounds

POLL_SECONDS = 1.0
"""Between two looks at what the others have done."""


class Peers:
    """The rules by which processes share a study; a process that has it alone meets nobody.

    With `ahead` this one only helps those that measure: it stops claiming while so many candidates wait for their
    measurement, and leaves the study's end to them.
    """

    def __init__(self, study: Study, budget: int, ahead: int | None) -> None:
        self._study = study
        self.helps = ahead is not None
        self.bounds = Bounds(budget, ahead) if study.peers.shared or self.helps else None
        """What a claim must keep; None where nobody else claims."""

    def room(self, n: int) -> int:
        """Of `n` new candidates those that may be claimed."""
        return n if self.bounds is None else max(min(n, self._study.room(self.bounds)), 0)

    def may_leave_work(self) -> bool:
        """Whether others have candidates in flight: if they fail to finish, those are this process's to do."""
        return not self.helps and self._study.peers.at_work()

    def turn(self, wait: Callable[[], None], *, early: bool) -> Turn:
        """Whose turn it is to confirm the best: one process does, once nobody has anything in flight.

        One that stops `early` leaves that to others, if there are any. `wait` is called while another is at it.
        """
        if self.helps or (early and self._study.peers.alive()):
            return "another's"
        while (turn := self._study.peers.take_turn()) == "another's":
            wait()
        return turn

    def end(self, turn: Turn, status: str, *, confirmed: bool) -> None:
        """Set the study's status where it is this process that knows it."""
        if turn == "mine" or not (turn == "done" or self.helps or self._study.peers.alive()):
            self._study.set_status(status)
        if turn == "mine" and confirmed:
            self._study.peers.end_turn()
