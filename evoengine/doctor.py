"""What this machine has, what it lacks, and the command that mends it. Data only; the command line draws the table."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Literal

from evoengine.errors import EvoengineError, UserError
from evoengine.hardware import card
from evoengine.space import load_space
from evoengine.template import load_template, shipped

State = Literal["ok", "warn", "missing"]
CUDA_13_DRIVER = 580
"""First driver branch that runs CUDA 13 (CUDA Toolkit 13.0 release notes, table of minimum driver versions)."""
TORCH_SECONDS = 120
"""Importing torch takes 3-4 s from a warm disk; over a minute has been seen on a cold network one."""
_INSTALL = "pip install --force-reinstall --no-deps evoengine"
_CU12 = "install a CUDA 12 build of torch, then: pip install 'evoengine[cu12]'"
_TORCH_PROBE = """\
import json, torch
print(json.dumps([torch.__version__, torch.version.cuda, torch.cuda.is_available()]))
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: `warn` costs a feature, `missing` stops a search. All well needs no `remedy`."""

    name: str
    state: State
    detail: str
    remedy: str = ""


def diagnose(storage: str | None = None) -> list[Finding]:
    """Look at everything a search touches. No check can keep another from running, and nothing is left behind.

    `storage` is the study database, a file or a URL; without one the database is not looked at. Takes a few
    seconds, most of them torch's import in a child process.
    """
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("python", _python),
        ("gpu", _gpu),
        ("driver", _driver),
        ("nvrtc", partial(_compiler, "nvrtc")),
        ("nvcc", partial(_compiler, "nvcc")),
        ("torch", _torch),
        ("optuna", partial(_library, "optuna", 5)),
        ("sqlalchemy", partial(_library, "sqlalchemy", 2)),
        ("ninja", _ninja),
        ("cache", _cache),
        ("template", _template),
    ]
    if storage is not None:
        checks.append(("database", partial(_database, storage)))
    checks += [
        ("ncu", partial(_tool, "ncu", "`evoengine profile`")),
        ("compute-sanitizer", partial(_tool, "compute-sanitizer", "`search --sanitize` and the reasons of faults")),
        ("cuobjdump", partial(_tool, "cuobjdump", "listings of machine code")),
        ("postgresql", _postgresql),
    ]
    return [_isolated(name, check) for name, check in checks]


def _isolated(name: str, check: Callable[[], Finding]) -> Finding:
    """The finding of `check`; a check that breaks is a finding as well, so that it hides no other."""
    try:
        return check()
    except EvoengineError as error:
        return Finding(name, "missing", str(error))
    except Exception as error:  # whatever an installation of others' software may raise
        return Finding(name, "missing", f"{type(error).__name__}: {_first_line(str(error))}", "pip check")


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:200]


def _answer(command: Sequence[str], seconds: float = 30) -> str:
    """What `command` prints. Raises OSError or SubprocessError where it does not run, fails or hangs."""
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=True).stdout.strip()


def _python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")


def _gpu() -> Finding:
    from evoengine.devices.cuda import find_gpu

    gpu = find_gpu()
    if gpu is None:
        detail = "none: search compiles for a named card, proves candidates in the interpreter and measures nothing"
        return Finding("gpu", "warn", detail, "run on a machine with an NVIDIA GPU of compute capability 8.0 or newer")
    detail = f"{gpu.name}, {gpu.arch}, {gpu.sms} SMs, {gpu.smem_per_block // 1024} KB of shared memory a CTA"
    if gpu.compute_capability < (8, 0):
        return Finding("gpu", "missing", detail, "use a GPU of compute capability 8.0 or newer (Ampere, Ada, Hopper)")
    return Finding("gpu", "ok", detail)


def _driver() -> Finding:
    remedy = f"install NVIDIA's driver, {CUDA_13_DRIVER} or newer"
    if shutil.which("nvidia-smi") is None:
        return Finding("driver", "warn", "no nvidia-smi on PATH", remedy)
    try:
        answer = _answer(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("driver", "missing", f"nvidia-smi does not answer: {_first_line(str(error))}", remedy)
    version = _first_line(answer)
    major = re.match(r"\d+", version)
    if major is None:
        return Finding("driver", "missing", f"nvidia-smi names no driver: {version!r}", remedy)
    bindings = metadata.version("cuda-bindings")
    if int(major[0]) < CUDA_13_DRIVER and not bindings.startswith("12."):
        detail = f"{version} is older than {CUDA_13_DRIVER}: it cannot run CUDA 13 (cuda-bindings {bindings})"
        return Finding("driver", "missing", detail, _CU12)
    return Finding("driver", "ok", version)


def _compiler(name: Literal["nvrtc", "nvcc"]) -> Finding:
    from evoengine.build import find_toolchain

    try:
        return Finding(name, "ok", find_toolchain(name).version)
    except UserError as error:
        detail, _, remedy = str(error).rpartition(": ")
        # NVRTC is what a search uses unless told otherwise; nvcc is the second opinion.
        return Finding(name, "missing" if name == "nvrtc" else "warn", detail, remedy)


def _torch() -> Finding:
    # In a child process: a torch that hangs or crashes on import must not take the other findings with it.
    try:
        version, cuda, usable = json.loads(_answer([sys.executable, "-c", _TORCH_PROBE], TORCH_SECONDS))
    except subprocess.CalledProcessError as error:
        last_line = error.stderr.strip().rpartition("\n")[2][:200]
        return Finding("torch", "missing", f"cannot be imported: {last_line}", "pip install 'torch>=2.11,<3'")
    except subprocess.TimeoutExpired:
        return Finding("torch", "missing", f"import took over {TORCH_SECONDS} s", "pip install 'torch>=2.11,<3'")
    detail = f"{version}, {f'CUDA {cuda}' if cuda else 'CPU build'}"
    if usable or shutil.which("nvidia-smi") is None:
        return Finding("torch", "ok", detail)
    if cuda is None:
        return Finding("torch", "missing", f"{detail} on a machine with a GPU", "install a CUDA build of torch")
    return Finding("torch", "missing", f"{detail}, but it can use no GPU here", _CU12)


def _library(name: str, major: int) -> Finding:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, "missing", "not installed", f"pip install '{name}>={major}'")
    if int(version.partition(".")[0]) < major:
        return Finding(name, "missing", f"{version}, needed is {major}.0 or newer", f"pip install '{name}>={major}'")
    return Finding(name, "ok", version)


def _ninja() -> Finding:
    remedy = "pip install --force-reinstall ninja"
    try:
        import ninja

        return Finding("ninja", "ok", _answer([str(Path(ninja.BIN_DIR) / "ninja"), "--version"]))
    except (ImportError, OSError, subprocess.SubprocessError) as error:
        return Finding("ninja", "missing", _first_line(str(error)), remedy)


def _cache() -> Finding:
    from evoengine.build import cache_home

    home = cache_home()
    place = _nearest_folder(home)
    try:
        with tempfile.NamedTemporaryFile(dir=place):
            pass
    except OSError as error:
        remedy = "set EVOENGINE_HOME to a folder that can be written to"
        return Finding("cache", "missing", f"cannot write to {home} ({error.strerror})", remedy)
    files, size = 0, 0
    for folder, _, names in os.walk(home):
        for name in names:
            with suppress(FileNotFoundError):  # a search beside us may be tidying up
                size += os.lstat(os.path.join(folder, name)).st_size
                files += 1
    free = shutil.disk_usage(place).free
    return Finding("cache", "ok", f"{home}: {files} files, {size / 1e6:.1f} MB; {free / 1e9:.1f} GB free")


def _nearest_folder(path: Path) -> Path:
    """`path` if it exists, else the closest folder above it: where it would be made."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def _template() -> Finding:
    template = load_template(shipped("kernel_templates") / "attention")
    space = load_space(shipped("search_spaces") / "attention.py")
    problem = template.module.PROBLEM()
    feasible = space.feasible(problem, card("l4"))
    detail = f"{template.name} {template.digest}, {len(feasible.points)} of {space.product} configs follow its rules"
    if not feasible.points:
        return Finding("template", "missing", detail, _INSTALL)
    return Finding("template", "ok", detail)


def _database(storage: str) -> Finding:
    from evoengine.archive.archive import Archive
    from evoengine.archive.database import file_of

    file = file_of(storage)
    if file is not None and not file.exists():
        # Opening would make it; looking must not.
        folder = _nearest_folder(file)
        if folder.is_dir() and os.access(folder, os.W_OK):
            return Finding("database", "ok", f"{file} does not exist yet and will be made")
        return Finding("database", "missing", f"{folder} cannot be written to", "give another with --storage")
    try:
        with closing(Archive.open(storage)) as archive:
            return Finding("database", "ok", archive.name)
    except UserError as error:
        return Finding("database", "missing", str(error), "give another with --storage")


def _tool(name: str, use: str) -> Finding:
    from evoengine.devices.cuda.watched import find_tool

    remedy = "install the CUDA toolkit and put its bin folder on PATH"
    found = find_tool(name)
    if found is None:
        return Finding(name, "warn", f"not on PATH; optional, for {use}", remedy)
    try:
        answer = _answer([str(found), "--version"])
    except (OSError, subprocess.SubprocessError) as error:
        return Finding(name, "warn", f"{found} does not run: {_first_line(str(error))}", remedy)
    version = re.search(r"(?i)version:? (\S+)|\bV(\d[\w.]*)", answer)
    return Finding(name, "ok", f"{found}{f', {version[1] or version[2]}' if version else ''}")


def _postgresql() -> Finding:
    try:
        return Finding("postgresql", "ok", f"psycopg {metadata.version('psycopg')}")
    except metadata.PackageNotFoundError:
        detail = "no driver; optional, for a study that several machines share"
        return Finding("postgresql", "warn", detail, "pip install 'evoengine[postgres]'")
