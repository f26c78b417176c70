"""Who works on a study: processes, and whether they are still alive."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

LEASE_SECONDS = 300.0
"""How long others believe in a session that was not renewed, by the database's clock. The longest silence of a healthy
search is a compile of 60 s: what may take longer renews meanwhile (`heartbeat`). On the session's own host the process
table says at once that it is gone."""
RENEW_SECONDS = 20.0
"""Between two renewals: a lease is lost only by a search that was cut off for a dozen of them."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A process. `started` tells it from others with the same pid: boot id, pid namespace, start in clock ticks."""

    host: str
    pid: int
    started: str

    @classmethod
    def current(cls) -> Owner:
        return cls(socket.gethostname(), os.getpid(), process_start(os.getpid()) or "")

    @property
    def runs(self) -> bool:
        """By this host's process table."""
        return process_start(self.pid) == self.started

    def in_sight(self) -> bool:
        """Whether this host's process table knows it: machines and containers may share a name, not boot and pids."""
        here = Owner.current()
        return (self.host, self._table) == (here.host, here._table)

    @property
    def _table(self) -> str:
        return self.started.rpartition(":")[0]

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}"


def process_start(pid: int) -> str | None:
    """Boot id, pid namespace and start time of a running process; None when there is none (a zombie runs no more).

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
        pids = os.stat("/proc/self/ns/pid").st_ino
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else f"{boot}:{pids}:{fields[18]}"
