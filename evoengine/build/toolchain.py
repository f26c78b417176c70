"""Which compiler turns a template into a cubin, and what identifies it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evoengine.errors import UserError

Compiler = Literal["nvrtc", "nvcc"]


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A compiler that was found and has answered. `digest` changes with every release of it."""

    compiler: Compiler
    version: str
    digest: str
    executable: Path | None = None

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


def _nvrtc() -> Toolchain:
    remedy = "pip install cuda-bindings nvidia-cuda-nvrtc, or use --compiler nvcc"
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise UserError(f"NVRTC is not usable ({error}): {remedy}") from error
    try:
        _, program = nvrtc.nvrtcCreateProgram(b'extern "C" __global__ void f() {}', b"version.cu", 0, [], [])
    except RuntimeError as error:  # cuda-pathfinder's DynamicLibNotFoundError is one
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"libnvrtc cannot be loaded ({reason}): {remedy}") from error
    # nvrtcVersion() stops at 13.0. The header of any PTX has the full version and the build, at 20 ms for an empty
    # kernel.
    (status,) = nvrtc.nvrtcCompileProgram(program, 0, [])
    _, size = nvrtc.nvrtcGetPTXSize(program)
    ptx = bytes(size)  # the binding writes into it
    nvrtc.nvrtcGetPTX(program, ptx)
    nvrtc.nvrtcDestroyProgram(program)
    header = b"".join(line for line in ptx.splitlines(keepends=True) if line.startswith(b"//")).decode()
    version = re.search(r"\bV(\d+\.\d+\.\d+)", header)
    if version is None:
        raise UserError(f"NVRTC does not compile an empty kernel ({status.name}): {remedy}")
    return Toolchain("nvrtc", f"NVRTC {version[1]}", _digest("nvrtc", header))


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
