"""Which candidates come next, and how many: what waits, then what the sampler proposes, as budget and pace allow."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from evoengine.archive.study import Study
from evoengine.convergence import Converged
from evoengine.observations import Observations
from evoengine.pace import Pace
from evoengine.peers import Peers
from evoengine.progress import Budget
from evoengine.sampler import Proposing, Seen
from evoengine.stopwatch import Stopwatch
from evoengine.verdict import Candidate


class Scheduler:
    """Claims candidates of a study, a few at a time. With `measures`, those with an estimate wait to be measured."""

    def __init__(
        self,
        study: Study,
        peers: Peers,
        proposer: Proposing,
        known: Observations,
        budget: Budget,
        pace: Pace,
        watch: Stopwatch,
        *,
        measures: bool,
    ) -> None:
        self._study = study
        self._peers = peers
        self._proposer = proposer
        self._known = known
        self._budget = budget
        self._pace = pace
        self._watch = watch
        self._measures = measures
        self._some_wait = True
        self.asking = False
        """Set while proposals are being made, to be claimed once they are there."""
        self._asked = self._room = 0  # how many are wanted, and how many of these were asked for
        self.converged: Converged | None = None
        """Set once nothing is left to gain and the budget says to stop then."""
        self.exhausted = False
        """Set once every feasible config is a trial, be it another process's."""

    @property
    def left(self) -> int:
        """Of the budget."""
        return self._budget.candidates - self._known.paid

    def next(self, flying: Collection[int], *, wait: bool = False) -> list[Candidate]:
        """What waits to be measured, then what was in flight when a run ended, then what the sampler proposes.

        The first kind has been paid for; the others may not overdraw the budget. `flying` are the trials in flight.
        Nothing where more of these must be judged first, where there is nothing left to do, or while proposals are
        being made: these are waited for with `wait`, and where nothing is in flight.

        Raises:
            UserError: the database is gone or somebody else took the study over.
        """
        wait = wait or not flying
        if self.asking:
            return self._answered(wait=wait)
        room = min(self._pace.step, self._pace.most - len(flying))
        if self._study.peers.shared:
            return self._shared(room, flying, wait=wait)
        number = self._known.next_number
        known = self._pace.known(number)
        too_soon = any(one < known for one in flying)
        self._some_wait |= not flying
        if room <= 0 or (too_soon and not self._some_wait):
            return []
        with self._watch("database"):
            self._study.renew()
        if waiting := self._waiting(room, len(flying)):
            return waiting
        if too_soon:
            return []
        affordable = min(self._pace.room(number), self._budget.candidates - self._known.spent(known))
        if affordable <= 0 and not flying:  # what is free among those that were counted as paid
            known, affordable = number, min(self._pace.batch, self.left)
        return self._propose(affordable, known, wait=wait)

    def prepare(self) -> None:
        """What the next proposals need, in a moment in which nothing else is to be done."""
        with self._watch("proposing"):
            self._proposer.prepare()

    def catch_up(self) -> None:
        """What is in the database is known, and what dead processes had in flight waits again."""
        with self._watch("database"):
            self._study.recover()
            self._known.remember(self._study.news())

    def _shared(self, room: int, flying: Collection[int], *, wait: bool) -> list[Candidate]:
        """The same beside other processes, whose trials come in between: a proposal knows all that there is, once no
        more than half a batch of ours is in flight."""
        if room <= 0 or (len(flying) > self._pace.batch // 2 and self._known.next_number >= self._pace.batch):
            return []
        with self._watch("database"):
            self._study.renew()
        self.catch_up()
        self._some_wait = True
        if waiting := self._waiting(room, len(flying)):
            return waiting
        return self._propose(min(room, self.left - len(flying)), self._known.next_number, wait=wait)

    def _waiting(self, room: int, flying: int) -> list[Candidate]:
        """Waiting candidates. Where none was found, they are looked for again only once nothing is in flight."""
        waiting: list[Candidate] = []
        with self._watch("database"):
            if self._some_wait and self._measures:
                waiting = self._study.claim_waiting(room, estimated=True)
            affordable = min(room, self.left - flying)
            if self._peers.helps:
                affordable = self._peers.room(affordable)
            if self._some_wait and not waiting and affordable > 0:
                waiting = self._study.claim_waiting(affordable, estimated=False)
        self._some_wait = bool(waiting)
        return waiting

    def _nothing_to_gain(self, known: int) -> bool:
        if self._budget.until_converged and self.converged is None:
            self.converged = self._known.converged(known)
        return self.converged is not None

    def _propose(self, n: int, known: int, *, wait: bool) -> list[Candidate]:
        if n <= 0 or self._nothing_to_gain(known):
            return []
        self._asked = n
        self._ask(self._known.seen(known))
        return self._answered(wait=wait)

    def _ask(self, seen: Iterable[Seen]) -> None:
        self._room = self._peers.room(self._asked)
        with self._watch("proposing"):
            self._proposer.ask(seen, self._room)
        self.asking = True

    def _answered(self, *, wait: bool) -> list[Candidate]:
        """Claim what was proposed, if it is there. Other processes on the study may have claimed all of it: what they
        left out is proposed next."""
        claimed: list[Candidate] = []
        while not claimed:
            before = self._proposer.free.copy()
            with self._watch("proposing"):
                answer = self._proposer.answer(wait=wait)
            if answer is None:
                return []
            self.asking = False
            if not answer:
                self.exhausted = self._room > 0
                return []
            with self._watch("database"):
                claimed = self._study.claim(answer, self._proposer.free - before, self._peers.bounds)
            self._known.claimed(claimed, {proposal.point: proposal for proposal in answer})
            if not claimed:
                self._ask(())
        return claimed
