"""Where the wall time of a run goes: every moment counts for one activity, the innermost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

OUTSIDE = "start-up"
"""What passes outside of every activity."""


class Stopwatch:
    """Runs from its making on. `with watch("judging"):` books what passes there, less what is booked inside."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._open = [OUTSIDE]
        self._since = clock()

    @contextmanager
    def __call__(self, activity: str) -> Iterator[None]:
        self._book()
        self._open.append(activity)
        try:
            yield
        finally:
            self._book()
            self._open.pop()

    def each(self, activity: str, items: Iterable[T]) -> Iterator[T]:
        """The `items`; waiting for each is booked."""
        iterator = iter(items)
        while True:
            with self(activity):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def seconds(self) -> dict[str, float]:
        """Wall time by activity so far, in the order in which they were met; the sum is the whole time."""
        self._book()
        return dict(self._seconds)

    def _book(self) -> None:
        now = self._clock()
        activity = self._open[-1]
        self._seconds[activity] = self._seconds.get(activity, 0.0) + now - self._since
        self._since = now
