"""The parent's end of one worker process: start, ask with a deadline, notice death, kill.

A plain child process with a socket pair rather than `multiprocessing`: spawn would run the user's `__main__` again
and need its import guard, and JSON over a framed connection keeps pickles out.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Pipe
from pathlib import Path

from evoengine.devices.cuda.messages import Phase, Reply, Request, Working, decode_reply, encode
from evoengine.errors import EvoengineError

KILL_SECONDS = 30.0
"""How long a killed worker may take to vanish: the driver first tears down a context with a kernel in flight."""
END_SECONDS = 5.0
"""How long an idle worker may take to notice that its parent is gone."""
STDERR_BYTES = 2000
"""How much of a dead worker's last words goes into the evidence."""


class WorkerDied(Exception):
    """The process ended in the middle of a job."""

    def __init__(self, returncode: int | None, stderr: str, working: Working) -> None:
        super().__init__(f"the GPU worker ended with code {returncode} while it was busy with {working.phase}")
        self.returncode = returncode
        self.stderr = stderr
        self.working = working


class WorkerHung(Exception):
    """A phase of a job passed its deadline; the process has been killed."""

    def __init__(self, limit_seconds: float, working: Working) -> None:
        super().__init__(f"no answer in {limit_seconds:.0f} s of {working.phase}")
        self.limit_seconds = limit_seconds
        self.working = working


class Worker:
    """One running worker process."""

    def __init__(self, command: Sequence[str]) -> None:
        self._connection, theirs = Pipe()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
        self.process = subprocess.Popen(
            [*command, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=self._stderr,  # torch and template code print; neither may reach the user's --json
            stderr=self._stderr,
            pass_fds=(theirs.fileno(),),
            env=child_environment(),
            start_new_session=True,  # Ctrl-C in the terminal is the engine's to handle, not the worker's
        )
        theirs.close()
        self.busy_seconds = 0.0
        self.working = Working("start")

    def ask(self, request: Request | None, limits: Mapping[Phase, float], first: Phase) -> Reply:
        """Send and wait for the answer; with None, wait for a message that comes unasked.

        The clock starts anew with every phase the worker reports. `busy_seconds` is afterwards the time of the
        answer without the reference phase. Whatever goes wrong, the process is gone when this raises.

        Raises:
            WorkerDied: the process ended.
            WorkerHung: a phase took longer than its limit.
        """
        self.working = Working(first)
        self.busy_seconds = 0.0
        try:
            if request is not None:
                self._connection.send_bytes(encode(request))
            while True:
                started = time.monotonic()
                limit = limits[self.working.phase]
                if not self._connection.poll(limit):
                    raise WorkerHung(limit, self.working)
                reply = decode_reply(self._connection.recv_bytes())
                if self.working.phase != "reference":
                    self.busy_seconds += time.monotonic() - started
                if not isinstance(reply, Working):
                    return reply
                self.working = reply
        except (EOFError, OSError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(END_SECONDS)  # the connection closes first: let it end for its own reason
            stderr = self._last_words()
            self.kill()
            raise WorkerDied(self.process.returncode, stderr, self.working) from None
        except BaseException:  # Ctrl-C too: an answer that comes later would be taken for the next job's
            self.kill()
            raise

    @property
    def has_spoken(self) -> bool:
        """Whether there is something to read: of a worker that nobody has asked yet, that it is up or has ended."""
        return self._connection.poll()

    def kill(self) -> None:
        """End the process whatever it is doing.

        Raises:
            EvoengineError: it does not end: the driver itself hangs.
        """
        self.process.kill()
        try:
            self.process.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:
            raise EvoengineError(
                f"GPU worker {self.process.pid} lives on {KILL_SECONDS:.0f} s after its kill: the driver hangs, "
                "reset the GPU or restart the machine"
            ) from None
        self._connection.close()
        self._stderr.close()

    def close(self) -> None:
        """Let an idle process end by itself: its end of the connection closes."""
        self._connection.close()
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        self._stderr.close()

    def _last_words(self) -> str:
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(size - STDERR_BYTES, 0))
        return self._stderr.read().decode(errors="replace").strip()


def child_environment() -> dict[str, str]:
    """The environment with this very evoengine importable, wherever the child starts."""
    package = str(Path(__file__).resolve().parents[3])
    inherited = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([package, inherited] if inherited else [package])}
