"""One tool of the CUDA toolkit over one `bare` process: found, run with a deadline, and ended whatever it does."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evoengine.devices.cuda.bare import Job, Launched, read_launches
from evoengine.devices.cuda.process import KILL_SECONDS, STDERR_BYTES, child_environment
from evoengine.errors import EvoengineError, UserError

LOG = "log.txt"
"""Where a tool is told to write, in the folder it runs in: its manual gives % in a file name a meaning."""


@dataclass(frozen=True, slots=True)
class Watched:
    """How a run ended. `code` is None where the deadline passed; `words` are the last that the process printed.

    `launched` is what `bare` had begun, `finished` whether it got to its end; `log` is what the tool wrote.
    """

    code: int | None
    launched: tuple[Launched, ...]
    finished: bool
    log: str
    words: str


def find_tool(name: str) -> Path | None:
    """A tool of the toolkit: in $CUDA_HOME/bin where that is set, as for nvcc, or else on PATH."""
    home = os.environ.get("CUDA_HOME")
    beside = shutil.which(name, path=os.path.join(home, "bin")) if home else None
    found = beside or shutil.which(name)
    return None if found is None else Path(found).absolute()


def require_tool(name: str, option: str) -> Path:
    """The same where `option` cannot do without.

    Raises:
        UserError: it is not installed.
    """
    found = find_tool(name)
    if found is None:
        raise UserError(
            f"{option} needs {name}, which is neither in $CUDA_HOME/bin nor on PATH: install the CUDA toolkit and put "
            "its bin folder on PATH"
        )
    return found


def watch(tool: Sequence[str], job: Job, seconds: float) -> Watched:
    """Run `tool`, a command line that takes a program behind it, over a launch of `job`.

    The tool and what it starts are one process group, which is killed when `seconds` are over or the caller is
    interrupted.

    Raises:
        EvoengineError: the group does not end: the driver itself hangs.
    """
    with tempfile.TemporaryDirectory(prefix="evoengine-") as name, tempfile.TemporaryFile() as output:
        folder = Path(name)
        job.write(folder)
        process = subprocess.Popen(
            [*tool, sys.executable, "-m", "evoengine.devices.cuda.bare", name],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=child_environment(),
            start_new_session=True,
        )
        try:
            code = _wait(process, seconds)
        finally:
            _end(process)
        launched, finished = read_launches(folder)
        log = folder / LOG
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        output.seek(max(output.seek(0, os.SEEK_END) - STDERR_BYTES, 0))
        words = output.read().decode(errors="replace").strip()
        return Watched(code, tuple(launched), finished, text, words)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the group; a tool may be gone before the program it watched."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(KILL_SECONDS)
    except subprocess.TimeoutExpired:
        raise EvoengineError(
            f"process {process.pid} lives on {KILL_SECONDS:.0f} s after its kill: the driver hangs, reset the GPU or "
            "restart the machine"
        ) from None
