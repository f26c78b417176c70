"""Cards that judge in threads of their own, while the caller's thread supplies candidates and commits verdicts.

The thread that draws verdicts from `CardPool.judge` draws candidates too: that runs the builder's stream and commits
what it rejects. A card's own thread only talks to its worker. A few candidates wait for whichever card is free first,
so that none waits for another, for a commit, for a proposal, or for a build that is ready.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Protocol

from evoengine.devices import TimingDevice
from evoengine.errors import EvoengineError, TemplateError
from evoengine.verdict import Artifact, Candidate, Verdict

Job = tuple[Candidate, Artifact]


class CardDevice(TimingDevice, Protocol):
    """What a pool is made of."""

    def learn_best(self, best_us: float) -> None:
        """The best so far, on this card's own scale."""

    def interrupt(self) -> None:
        """Called while another thread is in `start` or `judge`: end that soon. Only `close` comes after it."""


@dataclass(slots=True, eq=False)
class Card:
    """One card. `held` are the candidates that it was given and has not judged, by number."""

    uuid: str
    device: CardDevice
    reference_us: float = float("nan")
    held: dict[int, Job] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Told:
    """What a card's thread has to say: a verdict, that it took a candidate, or its end, by an error or having done all.

    That it took one must be said: a card keeps some verdicts to itself until there are no more candidates
    (`CudaDevice.judge`), and nobody else might wake who supplies them.
    """

    card: Card
    judged: tuple[Candidate, Verdict] | None = None
    took: bool = False
    error: Exception | None = None


class CardPool:
    """Judges on every one of `cards` at once; for each, up to `ahead` candidates wait.

    A card that fails for good is `lost`: that says which of the candidates it held go to the others, or raises what
    ends them all.
    """

    def __init__(
        self, cards: Sequence[Card], lost: Callable[[Card, EvoengineError], Sequence[Job]], ahead: int
    ) -> None:
        self.cards = list(cards)
        self._lost = lost
        self._ahead = ahead
        self._give_up: Callable[[], None] = lambda: None

    def together(self, work: Callable[[Card], None]) -> dict[Card, Exception]:
        """`work` on all cards at the same time; the error of each that failed."""
        errors: dict[Card, Exception] = {}
        with self._threads(lambda card, told: work(card), lambda: None) as (told, running):
            while running:
                one = told.get()
                running.pop(one.card).join()
                if one.error is not None:
                    errors[one.card] = one.error
        return errors

    def judge(self, work: Iterable[Job]) -> Generator[tuple[Card, Candidate, Verdict], None, None]:
        """One verdict a candidate, each as soon as it is known, in whatever order, with the card that reached it.

        Where `work` raises, what the cards have in flight is judged first. Where the caller goes away, or is
        interrupted, that is given up and the pool judges no more.

        Raises:
            EvoengineError: what `lost` raises.
            Exception: a card's own that does not mean its loss: TemplateError, or evoengine's mistake.
        """
        source = iter(work)
        while returned := (yield from self._round(source)):
            source = iter(returned)

    def in_hand(self) -> list[list[int]]:
        """What each card holds, by trial number."""
        return [list(card.held) for card in self.cards]

    def give_up(self) -> None:
        """Interrupt what the cards are busy with, and wait until they are not."""
        self._give_up()

    def _round(self, source: Iterator[Job]) -> Generator[tuple[Card, Candidate, Verdict], None, list[Job]]:
        """Judge all of `source`; returns what lost cards gave back too late for the others to take it over."""
        jobs: SimpleQueue[Job | None] = SimpleQueue()
        supplied, failure = True, None
        returned: list[Job] = []

        def serve(card: Card, told: SimpleQueue[_Told]) -> None:
            for judged in card.device.judge(_given(card, jobs, told)):
                told.put(_Told(card, judged))

        def end() -> None:
            _drain(jobs)
            for _ in self.cards:
                jobs.put(None)

        with self._threads(serve, end) as (told, running):
            while running:
                if supplied and told.empty() and jobs.qsize() < self._ahead * len(running):
                    try:
                        jobs.put(next(source))
                        continue
                    except StopIteration:
                        pass
                    except Exception as error:  # the user's stop among them: what has not begun does not
                        failure = error
                        _drain(jobs)
                    supplied = False
                    for _ in running:
                        jobs.put(None)
                one = told.get()
                if one.took:
                    continue
                if one.judged is not None:
                    candidate, verdict = one.judged
                    del one.card.held[candidate.number]
                    yield one.card, candidate, verdict
                    continue
                running.pop(one.card).join()
                if one.error is None:
                    continue
                if isinstance(one.error, TemplateError) or not isinstance(one.error, EvoengineError):
                    raise one.error
                returned += self._lost(one.card, one.error)
                if supplied:
                    for job in returned:
                        jobs.put(job)
                    returned = []
        if failure is not None:
            raise failure
        return returned

    @contextmanager
    def _threads(
        self, work: Callable[[Card, SimpleQueue[_Told]], None], end: Callable[[], None]
    ) -> Iterator[tuple[SimpleQueue[_Told], dict[Card, Thread]]]:
        """`work` in a thread for every card, of which the last word is its end.

        Whatever interrupts the caller ends them: `end` lets those go that wait for a candidate.
        """
        told: SimpleQueue[_Told] = SimpleQueue()

        def run(card: Card) -> None:
            error = None
            try:
                work(card, told)
            except Exception as raised:
                error = raised
            told.put(_Told(card, error=error))

        running = {card: Thread(target=run, args=(card,), name=card.uuid, daemon=True) for card in self.cards}

        def give_up() -> None:
            end()
            left = dict(running)  # who waits for the cards may be another thread than this
            for card in left:
                card.device.interrupt()
            for thread in left.values():
                if thread.ident is not None:  # the interrupt may have come before it was started
                    thread.join()

        self._give_up = give_up
        try:
            for thread in running.values():
                thread.start()
            yield told, running
        except BaseException:
            give_up()
            raise
        finally:
            self._give_up = lambda: None


def _given(card: Card, jobs: SimpleQueue[Job | None], told: SimpleQueue[_Told]) -> Iterator[Job]:
    """What the pool gives to a card that is ready for it, until there is no more."""
    while (job := jobs.get()) is not None:
        card.held[job[0].number] = job
        told.put(_Told(card, took=True))
        yield job


def _drain(jobs: SimpleQueue[Job | None]) -> None:
    with suppress(Empty):
        while True:
            jobs.get_nowait()
