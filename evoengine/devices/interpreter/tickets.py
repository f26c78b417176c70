"""Which CTAs go first in a grid whose CTAs take tickets: atomics in global memory that give the old value.

Such a kernel lets the CTA with the last ticket merge what all have written. Two schedules show what it may have wrong.
The one with the last ticket runs on as far as it can before the others do anything more: what it reads of theirs has to
be there by then. And in the eager modes the first CTA, which in descending order is the one of the highest number, has
ended before the others begin: which one is the last may not be written into the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evoengine.devices.interpreter.layout import WARP, Array, Mask
from evoengine.devices.interpreter.modes import Mode


class Tickets:
    """CTAs of all modes, some held back until none of the others can go on."""

    def __init__(self, modes: Sequence[Mode], ctas: int, *, taken: bool) -> None:
        """`taken` says whether the kernel takes tickets at all."""
        self._modes = modes
        self._held, self._holding = np.zeros((len(modes), ctas), bool), taken
        if taken:
            for mode, held in zip(modes, self._held, strict=True):
                held[:] = mode.copies == "eager"
                held[-1 if mode.order == "descending" else 0] = False

    def take(self, mask: Mask) -> None:
        """Lanes took tickets, in their mode's order: hold back their CTAs but the last of each mode."""
        executing = np.ones(self._held.size * WARP, bool) if mask is True else mask
        took = np.asarray(executing.reshape(*self._held.shape, WARP).any(axis=2))
        for mode, each in zip(self._modes, took, strict=True):
            if each.any():
                each[np.flatnonzero(each)[0 if mode.order == "descending" else -1]] = False
        self._held |= took
        self._holding = True

    def let_go(self, able: Array) -> Array:
        """Those of the CTAs that can go on that may."""
        if not self._holding:
            return able
        free = np.asarray(able & ~self._held.reshape(-1))
        if free.any():
            return free
        self._held[:] = self._holding = False
        return able
