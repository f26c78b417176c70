"""One ninja run over the candidates of a batch, and the channel on which its workers report."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import ninja

from evoengine.build.toolchain import WORKER, Toolchain

CANDIDATES_PER_EDGE = 4
"""At most: a worker starts in 0.05 s of CPU, and 4 compiles take 2 s."""
SIGNAL_SECONDS = 0.5
"""A Ctrl-C just before the wait for a message does not end that wait, so it has an end of its own."""
MESSAGE_BYTES = 16384
"""Above the longest message a worker sends."""
STOP_SECONDS = 10.0
"""ninja ends as soon as its workers have killed their compiles; a machine that swaps may need seconds for that."""


def chunks(names: Sequence[str], jobs: int, elsewhere: int) -> list[Sequence[str]]:
    """`names` over as few edges as keep every job busy to the end: equal sizes, at most CANDIDATES_PER_EDGE.

    With `elsewhere` compiles of other batches that share the jobs, they get their part of the edges of all. Where that
    is but a few a job each has an edge of its own: in a search in steps those after it wait for the slowest, and in a
    model of 200 candidates on 16 jobs that took 4 of 30 s less.
    """
    total = len(names) + elsewhere
    rounds = math.ceil(total / (CANDIDATES_PER_EDGE * jobs))
    if elsewhere and rounds == 1:
        return [[name] for name in names]
    edges = math.ceil(min(total, rounds * jobs) * len(names) / total)
    return [names[edge::edges] for edge in range(edges)]


class NinjaRun:
    """A running ninja with its workers: iterate over what they report.

    Each edge runs one worker over one chunk and its declared outputs are the candidates' result.json, which a failed
    compile has as well. `command` is the fixed part of the compile, `candidates` maps a folder name in `work` to its
    `-D` options. The workers hold the other end of a socket, which tells three things without polling: who has
    finished, that ninja and all of them are gone (it reads as closed here), and that the engine is gone (there). Of all
    runs that share the file `slots`, `jobs` compile at a time.
    """

    def __init__(
        self,
        work: Path,
        toolchain: Toolchain,
        command: Sequence[str],
        candidates: Mapping[str, Sequence[str]],
        chunked: Sequence[Sequence[str]],
        deadline_seconds: float,
        memory_bytes: int,
        jobs: int,
        slots: int,
    ) -> None:
        self._channel, workers_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.settimeout(SIGNAL_SECONDS)
        worker = shlex.join([sys.executable, "-I", "-S", str(WORKER)]).replace("$", "$$")
        # exec: the worker itself must lead the process group that ninja signals.
        lines = ["rule compile", f"  command = exec {worker} $in {workers_end.fileno()} {slots}"]
        for number, names in enumerate(chunked):
            chunk = {
                "compiler": toolchain.compiler,
                "nvrtc": str(toolchain.library),
                "command": command,
                "deadline_seconds": deadline_seconds,
                "memory_bytes": memory_bytes,
                "jobs": jobs,
                "candidates": {name: candidates[name] for name in names},
            }
            (work / f"chunk{number}.json").write_text(json.dumps(chunk))
            results = " ".join(f"{name}/result.json" for name in names)
            lines.append(f"build {results}: compile chunk{number}.json")
        (work / "build.ninja").write_text("\n".join(lines) + "\n")
        with workers_end, (work / "ninja.log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(Path(ninja.BIN_DIR) / "ninja"), "-j", str(jobs), "-k", "0"],
                cwd=work,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[workers_end.fileno(), slots],
                start_new_session=True,  # Ctrl-C is the engine's to handle, not ninja's
            )

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Messages as pairs of kind and text; worker.py lists the kinds. Ends when ninja and every worker are gone."""
        while True:
            try:
                message = self._channel.recv(MESSAGE_BYTES)
            except TimeoutError:
                continue
            if not message:
                return
            kind, _, text = message.decode(errors="replace").partition(" ")
            yield kind, text

    def interrupt(self) -> None:
        """End the run: its workers see the channel close and kill their compiles. Safe to call from another thread."""
        with contextlib.suppress(OSError):  # closed already
            self._channel.shutdown(socket.SHUT_RDWR)
        self._process.terminate()

    def close(self) -> None:
        """Interrupt the run if it still goes on, and wait until ninja, which waits for its workers, is gone."""
        if self._process.poll() is None:
            self.interrupt()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            self._channel.close()
            self._kill_session()

    def _kill_session(self) -> None:
        """Shoot what is still in ninja's session: what a compiler driver started, where its worker was shot first."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getsid(int(process.name)) == self._process.pid:
                    os.kill(int(process.name), signal.SIGKILL)
