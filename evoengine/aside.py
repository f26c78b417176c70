"""A step that mostly waits for another process, in a thread of its own while its caller goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Aside(Generic[T]):
    """Runs `work` from entering on. Leaving by an error calls `give_up`, which must make `work` end soon, and waits."""

    def __init__(self, work: Callable[[], T], give_up: Callable[[], None]) -> None:
        self._work = work
        self.give_up = give_up
        self._results: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="aside", daemon=True)

    def result(self) -> T:
        """Wait for the end of `work`; raises what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._results[0]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread.is_alive() and error is not None:
            self.give_up()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._results.append(self._work())
        except BaseException as error:  # raised again in the caller's thread
            self._error = error
