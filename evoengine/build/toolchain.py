"""Which compiler turns a template into a cubin, and what identifies it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from evoengine.errors import UserError

Compiler = Literal["nvrtc", "nvcc"]
WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A compiler that was found and has answered. `digest` changes with every release of it.

    `executable` is nvcc, `library` is NVRTC's.
    """

    compiler: Compiler
    version: str
    digest: str
    executable: Path | None = None
    library: Path | None = None

    def command(self, arch: str) -> tuple[str, ...]:
        """The fixed part of every compile: nvcc's own path first, options after it. Both print what ptxas measured."""
        if self.executable is None:
            # Where a driver is installed, NVRTC keeps a cache of its own and answers from it with an empty log.
            base = (f"--gpu-architecture={arch}", "--std=c++20", "--no-cache")
            return (*base, "--ptxas-options=-v", "--include-path=src")
        return (str(self.executable), "-cubin", f"-arch={arch}", "-std=c++20", "-O3", "-Xptxas", "-v")


def find_toolchain(compiler: Compiler) -> Toolchain:
    """The NVRTC that cuda-bindings loads, or nvcc from $CUDA_HOME/bin, else from PATH.

    Raises:
        UserError: it is not installed or does not run.
    """
    return _nvrtc() if compiler == "nvrtc" else _nvcc()


def begin() -> None:
    """Begin to ask NVRTC what it is, which takes 0.2 s: `find_toolchain` then waits for the rest of it."""
    if not _begun and not _nvrtc.cache_info().currsize:
        _begun.append(_ask_nvrtc())


_begun: list[subprocess.Popen[str]] = []


def _ask_nvrtc() -> subprocess.Popen[str]:
    # In a process of its own, like every compile: NVRTC puts the SIGINT handler back with SA_RESTART set, after which
    # Ctrl-C no longer wakes a Python process that waits.
    command = [sys.executable, "-P", str(WORKER), "--identify-nvrtc"]
    null, pipe = subprocess.DEVNULL, subprocess.PIPE
    return subprocess.Popen(command, stdin=null, stdout=pipe, stderr=pipe, text=True)


@cache
def _nvrtc() -> Toolchain:
    with _begun.pop() if _begun else _ask_nvrtc() as child:
        try:
            said, complaint = child.communicate(timeout=60)
        except BaseException:
            child.kill()
            raise
    version = re.search(r"\bV(\d+\.\d+\.\d+)", said)
    if version is None:
        reason = (complaint.strip() or f"exit code {child.returncode}").splitlines()[-1]
        remedy = "pip install cuda-bindings nvidia-cuda-nvrtc, or use --compiler nvcc"
        raise UserError(f"NVRTC is not usable ({reason}): {remedy}")
    library, _, about = said.partition("\n")
    return Toolchain("nvrtc", f"NVRTC {version[1]}", _digest("nvrtc", about), library=Path(library))


def _nvcc() -> Toolchain:
    remedy = "install the CUDA toolkit, set CUDA_HOME to it, or use --compiler nvrtc"
    home = os.environ.get("CUDA_HOME")
    found = shutil.which("nvcc", path=os.path.join(home, "bin") if home else None)
    if found is None:
        raise UserError(f"nvcc is not in {f'CUDA_HOME={home}' if home else 'PATH'}: {remedy}")
    try:
        answer = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"{found} does not run ({error}): {remedy}") from error
    version = re.search(r"\bV(\d+\.\d+\.\d+)", answer)
    if version is None:
        raise UserError(f"{found} --version names no version: {remedy}")
    return Toolchain("nvcc", f"nvcc {version[1]}", _digest("nvcc", answer), Path(found).absolute())


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
