"""How many candidates are in flight, and which verdicts a proposal may know: fixed by trial numbers alone.

While the card judges some, the next are compiled, so a proposal cannot wait for every verdict. The first batch knows
none. After it an eighth of a batch is proposed at a time, once all trials but the last half batch are judged; that half
counts as running, whatever is known of it by then. So a proposal rests on the same verdicts whether the search was
stopped and resumed in between or not, and lacks as many as it would lack on average with a whole batch at a time.

Replayed on five public spaces with batches of 16 that scores 0.77 over random search, whole batches 0.79, two halves
in turn 0.75.

A card takes some ten seconds to come up (torch, references, the default's proof), in which every core compiles five or
six candidates. A search that is told of its space beforehand can have more than a batch ready by then, a head start.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from evoengine.sampler import Seen

CATCH_UP = 2
"""Verdicts more that each proposal knows after a head start, until it knows all but the last half batch: a card judges
19 a second and 16 cores compile 11, so that the compilers do not wait until half of the head start is judged."""


@dataclass(frozen=True, slots=True)
class Pace:
    """`batch` candidates are in flight at most; with one, each is judged before the next is proposed.

    With a `head_start` of more than a batch so many are proposed before any verdict is known, in whole steps.
    """

    batch: int
    head_start: int = 0

    @property
    def step(self) -> int:
        """How many are proposed at a time."""
        return max(self.batch // 8, 1)

    @property
    def most(self) -> int:
        """How many are in flight at most, and how many are proposed before any verdict is known."""
        return max(self.batch, self.head_start - self.head_start % self.step)

    def known(self, number: int) -> int:
        """Who proposes trial `number` knows the verdicts of all trials before this one."""
        if number < self.most:
            return 0
        first = number - number % self.step
        known = first - self.batch // 2
        return known if self.most == self.batch else min(known, CATCH_UP * (first - self.most) + self.step)

    def room(self, number: int) -> int:
        """How many trials from `number` on are proposed together: the rest of their step."""
        rest = self.step - number % self.step
        return min(rest, self.most - number) if number < self.most else rest


def visible(trials: Iterable[Seen], known: int) -> list[Seen]:
    """Trials as a proposal may see them: those from `known` on run."""
    return [one if one.number < known else replace(one, value=None, state="running") for one in trials]
