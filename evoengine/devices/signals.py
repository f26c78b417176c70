"""Ends of a worker process that no candidate can bring about."""

from __future__ import annotations

import signal

SHOT = frozenset({-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP, -signal.SIGINT})
"""Return codes of a process that another one has ended: a user, a job scheduler, a system out of memory. Its candidate
is judged once more."""
