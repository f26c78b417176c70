"""Who works on a study: processes, and whether they are still alive."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

LEASE_SECONDS = 300.0
"""How long another host believes in a session that was not renewed. The longest silence of a healthy search is one
batch of builds; on the session's own host the process table answers at once."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A process. `started` tells it from a later one with the same pid: boot id and start time in clock ticks."""

    host: str
    pid: int
    started: str

    @classmethod
    def current(cls) -> Owner:
        return cls(socket.gethostname(), os.getpid(), process_start(os.getpid()) or "")

    def is_alive(self, expires_unix_seconds: float) -> bool:
        """By the process table on this host, by the lease on another."""
        if self.host != socket.gethostname():
            return time.time() < expires_unix_seconds
        return process_start(self.pid) == self.started

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}"


def process_start(pid: int) -> str | None:
    """Boot id and start time of a running process; None when there is none (a zombie runs no more).

    Where there is no /proc (macOS), a running process has an empty start: a pid that was given to another process then
    counts as the old one.
    """
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return ""
    try:
        # proc(5): the name in parentheses may hold spaces; state is the field after it, starttime the 20th after it.
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else f"{boot}:{fields[18]}"
