"""The other processes on a study, as the one that has opened a session sees them."""

from __future__ import annotations

from sqlalchemy import Connection

from evoengine.archive import sessions, work
from evoengine.archive.ledger import Ledger


class PeerSessions:
    """What those who share a study must agree on. Where it is `shared` with nobody, nobody is asked.

    Every method raises UserError as those of `Study` do.
    """

    def __init__(self, ledger: Ledger, session_id: int, *, shared: bool) -> None:
        self.shared = shared
        self._ledger = ledger
        self._own = session_id
        self._confirmed = ledger.read(lambda c: sessions.confirmed(c, ledger.id)) if shared else set()

    def alive(self) -> bool:
        """Whether there are any."""
        return self.shared and bool(self._ledger.read(self._others))

    def at_work(self) -> bool:
        """Whether one has a candidate in flight."""
        return self.shared and self._ledger.read(lambda c: work.in_flight(c, self._ledger.id, self._others(c))) > 0

    def agree_on_reference(self, us: float) -> float:
        """The time in microseconds that ratios of this study are multiplied with: that of the first card to ask."""
        return self._ledger.write(lambda c: work.agree_on_reference(c, self._ledger.id, us))

    def take_turn(self) -> sessions.Turn:
        """Whose turn it is to confirm the best, once for all."""
        if not self.shared:
            return "mine"
        return self._ledger.write(lambda c: sessions.take_turn(c, self._ledger.id, self._own, self._confirmed))

    def end_turn(self) -> None:
        """The best are confirmed, and the study's status is set."""
        if self.shared:
            self._ledger.write(lambda c: sessions.set_finals(c, self._own, "done"))

    def expect_more(self) -> None:
        """The budget was raised: there will be more to confirm."""
        self._confirmed = set()

    def _others(self, connection: Connection) -> set[int]:
        return sessions.living(connection, self._ledger.id) - {self._own}
