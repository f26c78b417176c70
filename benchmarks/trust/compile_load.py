"""What a search's builds do to the machine: one process a core that compiles a template with NVRTC without end.

    python -m benchmarks.trust.compile_load FOLDER ARCH DEFINES

DEFINES is JSON. The processes die with their parent; `CompileLoad` stops and continues them.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h
ROOT = Path(__file__).resolve().parents[2]


class CompileLoad:
    """`processes` compilers, halted at first."""

    def __init__(self, folder: Path, arch: str, defines: Mapping[str, int], processes: int) -> None:
        command = [
            sys.executable,
            "-m",
            "benchmarks.trust.compile_load",
            str(folder.resolve()),
            arch,
            json.dumps(dict(defines)),
        ]
        self._processes = [
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(processes)
        ]
        for process in self._processes:
            assert process.stdout is not None
            if not process.stdout.readline():  # a line after the first compile
                self.close()
                raise RuntimeError("a compile of the load fails")
        self.pause()

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def run(self) -> None:
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            process.send_signal(number)


def compile_for_ever(folder: Path, arch: str, defines: Mapping[str, int]) -> None:
    """As the build step does it; prints a line when the first compile has succeeded."""
    from cuda.bindings import nvrtc

    source = (folder / "kernel.cu").read_bytes()
    base = (f"--gpu-architecture={arch}", "--std=c++20", "--no-cache", f"--include-path={folder}")
    options = [option.encode() for option in (*base, *(f"-D{name}={value}" for name, value in defines.items()))]
    first = True
    while True:
        _, program = nvrtc.nvrtcCreateProgram(source, b"kernel.cu", 0, [], [])
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            sys.exit(status.name)
        nvrtc.nvrtcDestroyProgram(program)
        if first:
            print("compiled", flush=True)
            first = False


if __name__ == "__main__":
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == parent:
        compile_for_ever(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))
