"""Several cards of one model as one judge: one supply of candidates, one scale, and what a lost card costs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from typing import Any

from evoengine.devices import Work
from evoengine.devices.cuda.results import Finals, Setup
from evoengine.devices.pool import Card, CardDevice, CardPool, Job
from evoengine.errors import EvoengineError, TemplateError
from evoengine.space import Values
from evoengine.verdict import Artifact, Candidate, Estimate, Rejection, Verdict, on_shapes

MOST_LOSSES = 2
"""A candidate that was in flight when so many cards were lost is not given to another: it waits for the next run."""
AHEAD = 1
"""Candidates that wait for each card. More would be taken from those in flight that are being compiled."""


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
        self._pool = CardPool(cards, self._drop, AHEAD)
        self._note = note
        self._after = after
        self._reference_us = float("nan")
        self._shape_us: dict[str, float] = {}
        self._losses: Counter[int] = Counter()
        self._racing: CardDevice | None = None
        self._closed = False

    def start(self, values: Values, artifact: Artifact) -> Setup:
        """Prove and time the default config and the baselines on every card at the same time.

        The set-up is the first card's. What each found is in `cards` of its environment, by UUID: the default config's
        `control_us` and `noise`, the medians of `baselines_us`, and what `differs` from the first card's environment.

        Raises:
            TemplateError, UserError, EvoengineError: as the device of a card does, naming the card. A card that is not
                fit to begin with is not left out silently.
        """
        setups: dict[Card, Setup] = {}

        def prove(card: Card) -> None:
            setups[card] = card.device.start(values, artifact)

        errors, cards = self._pool.together(prove), self._pool.cards
        for card in cards:
            if card in errors:
                raise _of_card(errors[card], card)
        for card, setup in setups.items():
            card.reference_us = setup.control_us
        first = setups[cards[0]]
        self._reference_us = first.control_us
        self._shape_us = {row["shape"]: row["control_reference_us"] for row in on_shapes(first.control.evidence)}
        environment = {**first.environment, "cards": {c.uuid: _found(setups[c], first) for c in cards}}
        warnings = tuple(f"card {c.uuid}: {line}" for c in cards for line in setups[c].warnings)
        return dataclasses.replace(first, environment=environment, warnings=warnings)

    def judge(self, work: Iterable[Job]) -> Iterator[tuple[Candidate, Verdict]]:
        """One verdict a candidate, each as soon as it is known, in whatever order.

        Where `work` raises, what the cards have in flight is judged first. Where the caller goes away, or is
        interrupted, that is given up and the fleet judges no more.

        Raises:
            EvoengineError: the last card is lost.
        """
        with closing(self._pool.judge(work)) as judged:
            for card, candidate, verdict in judged:
                yield candidate, self._on_scale(card, verdict)

    def finals(self, work: Work, seed: int) -> Finals:
        """The final run, all finalists on the first card there is: their times are compared with one another.

        Raises:
            TemplateError: the default config fails.
            EvoengineError: the last card is lost.
        """
        while True:
            card = self._pool.cards[0]
            self._racing = card.device
            try:
                return card.device.finals(work, seed)
            except TemplateError:
                raise
            except EvoengineError as error:
                if self._closed:
                    raise
                self._drop(card, error)
            finally:
                self._racing = None

    def in_hand(self) -> list[list[int]]:
        return self._pool.in_hand()

    def close(self) -> None:
        """End the workers and free the cards, whatever they are busy with: an error on its way through the caller can
        keep what `judge` returned alive."""
        self._closed = True
        self._pool.give_up()
        if (racing := self._racing) is not None:  # in another thread, which is waited for
            racing.interrupt()
        with ExitStack() as stack:
            stack.callback(self._after)
            for card in self._pool.cards:
                stack.callback(card.device.close)

    def _on_scale(self, card: Card, verdict: Verdict) -> Verdict:
        """The verdict with the card that reached it and, if it is a time, on the common scale; the others learn it."""
        assert not isinstance(verdict, Estimate), "cards measure"
        evidence = {**verdict.evidence, "card": card.uuid}
        if isinstance(verdict, Rejection):
            return dataclasses.replace(verdict, evidence=evidence)
        if rows := on_shapes(verdict.evidence):
            evidence["shapes"] = [self._row_on_scale(row) for row in rows]
        measured = dataclasses.replace(verdict, control_reference_us=self._reference_us, evidence=evidence)
        for other in self._pool.cards:
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
        self._pool.cards.remove(card)
        with suppress(EvoengineError):  # a worker that cannot be killed: there is nothing more to do about it
            card.device.close()
        if not self._pool.cards:
            raise error.saying(f"no card is left; the last was {card.uuid}: {error}") from error
        held = list(card.held.values())
        self._losses.update(card.held.keys())
        count = f"{len(self._pool.cards)} card{'s' * (len(self._pool.cards) > 1)}"
        self._note(f"card {card.uuid} is lost, going on with {count} and what it had in flight: {error}")
        for candidate, _ in held:
            if self._losses[candidate.number] >= MOST_LOSSES:
                why = f"was in flight on {MOST_LOSSES} cards that were lost"
                self._note(f"trial {candidate.number} {why}: left for the next run")
        return [job for job in held if self._losses[job[0].number] < MOST_LOSSES]


def _of_card(error: Exception, card: Card) -> Exception:
    """The same error, naming the card where evoengine knows what it is."""
    return error.saying(f"card {card.uuid}: {error}") if isinstance(error, EvoengineError) else error


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
