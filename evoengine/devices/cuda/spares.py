"""Worker processes that are begun before they are needed: importing torch takes seconds."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from evoengine.devices.cuda.process import Worker


class Spares:
    """Workers of one `command` that wait, `first` in front: they import torch, and leave the card alone.

    Sessions on one card may share them; the first that closes ends those that wait.
    """

    def __init__(self, command: Sequence[str], first: Worker | None = None) -> None:
        self.command = command
        self._waiting = deque([] if first is None else [first])

    def begin(self) -> None:
        """One more."""
        self._waiting.append(Worker(self.command))

    def keep(self) -> None:
        """One, where none waits."""
        if not self._waiting:
            self.begin()

    @property
    def ready(self) -> bool:
        """Whether the next one is up, so that nobody waits for it."""
        return bool(self._waiting) and self._waiting[0].has_spoken

    def take(self) -> Worker:
        """The one that waits longest, or a new one."""
        return self._waiting.popleft() if self._waiting else Worker(self.command)

    def close(self) -> None:
        """End all that wait."""
        while self._waiting:
            self._waiting.popleft().close()
