"""How many candidates are in flight, and which verdicts a proposal may know: fixed by trial numbers alone.

While the card judges some, the next are compiled, so a proposal cannot wait for every verdict. An eighth of a batch is
proposed at a time, once all trials but the last half batch are judged; that half counts as running, whatever is known
of it by then. So a proposal rests on the same verdicts whether the search was stopped and resumed in between or not,
and lacks as many as it would lack on average with a whole batch at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from evoengine.sampler import Seen


@dataclass(frozen=True, slots=True)
class Pace:
    """Of a search by batches of `batch`; of one it is one candidate after the other."""

    batch: int

    @property
    def step(self) -> int:
        """How many are proposed at a time."""
        return max(self.batch // 8, 1)

    @property
    def most(self) -> int:
        """In flight."""
        return self.batch // 2 + self.step

    def known(self, number: int) -> int:
        """Who proposes trial `number` knows the verdicts of all trials before this one."""
        return max(number - number % self.step - self.batch // 2, 0)

    def room(self, number: int) -> int:
        """How many trials from `number` on are proposed together: the rest of their step."""
        return self.step - number % self.step


def visible(trials: Iterable[Seen], known: int) -> list[Seen]:
    """Trials as a proposal may see them: those from `known` on run."""
    return [one if one.number < known else replace(one, value=None, state="running") for one in trials]
