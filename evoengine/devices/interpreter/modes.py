"""The schedules that a launch is run under."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Mode:
    """One legal behaviour of the machine: when cp.async data land, and in which order warps run.

    Where copies are late wgmma is eager, and the other way round: late products would not see an early refill by late
    copies, nor eager products one by eager copies.
    """

    copies: Literal["late", "eager"]
    order: Literal["ascending", "descending"]

    def __str__(self) -> str:
        return f"{self.copies} copies, {self.order} warps"


MODES = (
    Mode("late", "ascending"),
    Mode("late", "descending"),
    Mode("eager", "ascending"),
    Mode("eager", "descending"),
)
"""Every combination, late ones first."""
