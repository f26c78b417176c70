"""Who is still running: processes are known by a mark in the environment that they inherit."""

from __future__ import annotations

import contextlib
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

NAME = "EVO_TEST_MARK"


@dataclass(frozen=True, slots=True)
class Mark:
    """Put `name` and `value` into the environment of a child: all that it starts, and they start, can be told."""

    value: str = field(default_factory=lambda: str(uuid.uuid4()))
    name: str = NAME

    def alive(self) -> list[str]:
        """Command lines of the marked processes; zombies have none."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"{self.name}={self.value}".encode() in (process / "environ").read_bytes().split(b"\0"):
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        return found

    def left_behind(self, grace_seconds: float) -> list[str]:
        """The same, after a grace in which they may notice that they are not needed any more."""
        deadline = time.monotonic() + grace_seconds
        while (found := self.alive()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found
