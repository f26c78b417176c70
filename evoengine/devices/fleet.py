"""Several cards of one model as one judge: a thread and a worker process for each, one supply of candidates, one scale.

The thread that draws verdicts from `Fleet.judge` draws candidates too: that runs the builder's stream and commits what
it rejects. A card's own thread only talks to its worker. One candidate more than there are cards waits for whichever
card is free first, so that none waits for another, for a commit, or for a build that is ready.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Protocol

from evoengine.devices import TimingDevice, Work
from evoengine.devices.cuda.results import Finals, Setup
from evoengine.errors import EvoengineError, TemplateError
from evoengine.space import Values
from evoengine.verdict import Artifact, Candidate, Estimate, Rejection, Verdict, on_shapes

MOST_LOSSES = 2
"""A candidate that was in flight when so many cards were lost is not given to another: it waits for the next run."""

Job = tuple[Candidate, Artifact]


class CardDevice(TimingDevice, Protocol):
    """What a fleet is made of."""

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


class Fleet:
    """Judges on every card at once.

    Each card proves and times the default config and the baselines for itself, and normalises by its own control. A
    value is that ratio times the control's level on the first card (or the one that a study that goes on has given to
    all of them), so that values of all cards are comparable. The `card` of a verdict's evidence says who reached it.

    A card that fails for good is dropped, which `note` is told: what it had in flight goes to another. When the last
    one fails, its error is raised.

    `name` is the model's; `after` is called once every card is closed.
    """

    def __init__(
        self, name: str, cards: Sequence[Card], note: Callable[[str], None], after: Callable[[], None] = lambda: None
    ) -> None:
        self.name = f"{len(cards)} x {name}"
        self._cards = list(cards)
        self._note = note
        self._after = after
        self._reference_us = float("nan")
        self._shape_us: dict[str, float] = {}
        self._losses: Counter[int] = Counter()
        self._give_up: Callable[[], None] = lambda: None

    def start(self, values: Values, artifact: Artifact) -> Setup:
        """Prove and time the default config and the baselines on every card at the same time.

        The set-up is the first card's. What each found is in `cards` of its environment, by UUID: the default config's
        `control_us` and `noise`, the medians of `baselines_us`, and what `differs` from the first card's environment.

        Raises:
            TemplateError, UserError, EvoengineError: as the device of a card does, naming the card. A card that is not
                fit to begin with is not left out silently.
        """
        setups: dict[Card, Setup] = {}

        def prove(card: Card, told: SimpleQueue[_Told]) -> None:
            setups[card] = card.device.start(values, artifact)

        errors: dict[Card, Exception] = {}
        with self._threads(prove, lambda: None) as (told, running):
            while running:
                one = told.get()
                running.pop(one.card).join()
                if one.error is not None:
                    errors[one.card] = one.error
        for card in self._cards:
            if card in errors:
                raise _of_card(errors[card], card)
        for card, setup in setups.items():
            card.reference_us = setup.control_us
        first = setups[self._cards[0]]
        self._reference_us = first.control_us
        self._shape_us = {row["shape"]: row["control_reference_us"] for row in on_shapes(first.control.evidence)}
        environment = {**first.environment, "cards": {c.uuid: _found(setups[c], first) for c in self._cards}}
        warnings = tuple(f"card {c.uuid}: {line}" for c in self._cards for line in setups[c].warnings)
        return dataclasses.replace(first, environment=environment, warnings=warnings)

    def judge(self, work: Iterable[Job]) -> Iterator[tuple[Candidate, Verdict]]:
        """One verdict a candidate, each as soon as it is known, in whatever order.

        Where `work` raises, what the cards have in flight is judged first. Where the caller goes away, or is
        interrupted, that is given up and the fleet judges no more.

        Raises:
            EvoengineError: the last card is lost.
        """
        source = iter(work)
        while returned := (yield from self._round(source)):
            source = iter(returned)

    def finals(self, work: Work, seed: int) -> Finals:
        """The final run, all finalists on the first card there is: their times are compared with one another.

        Raises:
            TemplateError: the default config fails.
            EvoengineError: the last card is lost.
        """
        while True:
            card = self._cards[0]
            try:
                return card.device.finals(work, seed)
            except TemplateError:
                raise
            except EvoengineError as error:
                self._drop(card, error)

    def close(self) -> None:
        """End the workers and free the cards, whatever they are busy with: an error on its way through the caller can
        keep what `judge` returned alive."""
        self._give_up()
        with ExitStack() as stack:
            stack.callback(self._after)
            for card in self._cards:
                stack.callback(card.device.close)

    def _round(self, source: Iterator[Job]) -> Generator[tuple[Candidate, Verdict], None, list[Job]]:
        """Judge all of `source`; returns what lost cards gave back too late for the others to take it over."""
        jobs: SimpleQueue[Job | None] = SimpleQueue()
        supplied, failure = True, None
        returned: list[Job] = []

        def serve(card: Card, told: SimpleQueue[_Told]) -> None:
            for judged in card.device.judge(_given(card, jobs, told)):
                told.put(_Told(card, judged))

        def end() -> None:
            _drain(jobs)
            for _ in self._cards:
                jobs.put(None)

        with self._threads(serve, end) as (told, running):
            while running:
                if supplied and told.empty() and jobs.qsize() < len(running):
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
                    yield candidate, self._on_scale(one.card, verdict)
                    continue
                running.pop(one.card).join()
                if one.error is None:
                    continue
                if isinstance(one.error, TemplateError) or not isinstance(one.error, EvoengineError):
                    raise one.error
                returned += self._drop(one.card, one.error)
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

        running = {card: Thread(target=run, args=(card,), name=card.uuid, daemon=True) for card in self._cards}

        def give_up() -> None:
            end()
            for card in running:
                card.device.interrupt()
            for thread in running.values():
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

    def _on_scale(self, card: Card, verdict: Verdict) -> Verdict:
        """The verdict with the card that reached it and, if it is a time, on the common scale; the others learn it."""
        assert not isinstance(verdict, Estimate), "cards measure"
        evidence = {**verdict.evidence, "card": card.uuid}
        if isinstance(verdict, Rejection):
            return dataclasses.replace(verdict, evidence=evidence)
        if rows := on_shapes(verdict.evidence):
            evidence["shapes"] = [self._row_on_scale(row) for row in rows]
        measured = dataclasses.replace(verdict, control_reference_us=self._reference_us, evidence=evidence)
        for other in self._cards:
            other.device.learn_best(measured.ratio * other.reference_us)
        return measured

    def _row_on_scale(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """What a verdict on a set of shapes holds of one of them, on the scale of that shape."""
        us = self._shape_us[row["shape"]]
        return {**row, "control_reference_us": us, "median_us": row["ratio_to_default"] * us}

    def _drop(self, card: Card, error: EvoengineError) -> list[Job]:
        """Go on without a card; what it had in flight, without what should not be tried again.

        Raises:
            EvoengineError: it was the last.
        """
        self._cards.remove(card)
        with suppress(EvoengineError):  # a worker that cannot be killed: there is nothing more to do about it
            card.device.close()
        if not self._cards:
            raise type(error)(f"no card is left; the last was {card.uuid}: {error}") from error
        held = list(card.held.values())
        self._losses.update(card.held.keys())
        count = f"{len(self._cards)} card{'s' * (len(self._cards) > 1)}"
        self._note(f"card {card.uuid} is lost, going on with {count} and what it had in flight: {error}")
        for candidate, _ in held:
            if self._losses[candidate.number] >= MOST_LOSSES:
                why = f"was in flight on {MOST_LOSSES} cards that were lost"
                self._note(f"trial {candidate.number} {why}: left for the next run")
        return [job for job in held if self._losses[job[0].number] < MOST_LOSSES]


def _given(card: Card, jobs: SimpleQueue[Job | None], told: SimpleQueue[_Told]) -> Iterator[Job]:
    """What the fleet gives to a card that is ready for it, until there is no more."""
    while (job := jobs.get()) is not None:
        card.held[job[0].number] = job
        told.put(_Told(card, took=True))
        yield job


def _drain(jobs: SimpleQueue[Job | None]) -> None:
    with suppress(Empty):
        while True:
            jobs.get_nowait()


def _of_card(error: Exception, card: Card) -> Exception:
    """The same error, naming the card where evoengine knows what it is."""
    return type(error)(f"card {card.uuid}: {error}") if isinstance(error, EvoengineError) else error


def _found(setup: Setup, first: Setup) -> dict[str, object]:
    """What `shared_cards.SharedCard` reads."""
    differs = {key: value for key, value in setup.environment.items() if value != first.environment.get(key)}
    times = {baseline.name: baseline.median_us for baseline in setup.baselines}
    return {
        "control_us": setup.control_us,
        "noise": setup.control.noise,
        "baselines_us": times,
        "differs": differs,
    }
