"""How many candidates are in flight, and which verdicts a proposal may know: fixed by trial numbers alone.

A batch is two halves: while the card judges one, the next is compiled. A half is proposed once every half but the last
has its verdicts, and the last counts as running whatever is known of it by then. So a proposal rests on the same
verdicts whether the search was stopped and resumed in between or not, and lacks at most what a whole batch would lack.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from evoengine.sampler import Seen


@dataclass(frozen=True, slots=True)
class Pace:
    """`batch` candidates are in flight at most; a half of an odd batch is rounded down."""

    batch: int

    @property
    def half(self) -> int:
        return max(self.batch // 2, 1)

    def known(self, number: int) -> int:
        """Who proposes trial `number` knows the verdicts of all trials before this one."""
        behind = 0 if self.batch == 1 else self.half
        return max(number - number % self.half - behind, 0)

    def room(self, number: int) -> int:
        """How many trials from `number` on are proposed together: the rest of its half."""
        return self.half - number % self.half


def visible(trials: Iterable[Seen], known: int) -> list[Seen]:
    """Trials as a proposal may see them: those from `known` on run."""
    return [one if one.number < known else replace(one, value=None, state="running") for one in trials]
