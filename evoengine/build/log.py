"""What a compiler's log says: the resources of a kernel, or why there is none."""

from __future__ import annotations

import re

from evoengine.errors import TemplateError, UserError
from evoengine.verdict import Gate, Rejection, ResourceUsage

LOG_TAIL_CHARS = 2000
"""What a rejection keeps of a log; its reason has the first error already."""

_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
# nvcc indents the line with blanks, NVRTC puts "ptxas         ." before it.
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers.*")
_BARRIERS = re.compile(r"used (\d+) barriers")
_SMEM = re.compile(r"(\d+) bytes smem")
_CUMULATIVE_STACK = re.compile(r"(\d+) bytes cumulative stack size")

_MISSING = re.compile(r"error.*EVO missing (\w+)")
_RULE = re.compile(r'static assertion failed with "EVO rule (\w+): (.*)"')
_CRASH = re.compile(r"died due to signal (\d+)")
_UNUSABLE = re.compile(r"^(?:nvcc fatal\s*: |nvrtc: error: ).*", re.MULTILINE)
_ERROR = re.compile(r"^.*\berror\b.*", re.MULTILINE)
_NO_HEADER = re.compile(r"(?:could not|cannot) open source file")
_INTERNAL = re.compile(r"nvrtc returned (\w+)")
# cudafe++ and NVRTC's front end, LLVM, NVRTC itself, ptxas, C++, gcc.
_MEMORY = re.compile(r"out of memory|OUT_OF_MEMORY|emory allocation failure|std::bad_alloc|Cannot allocate memory")


def resource_usage(log: str, entry: str, smem_bytes: int) -> ResourceUsage:
    """Resources of the kernel `entry` from ptxas' verbose output, NVRTC's or nvcc's.

    Spills and stack frames of device functions that were not inlined count too: they are the kernel's cost. Dynamic
    shared memory never shows in the log, so the launch's `smem_bytes` is passed in.

    Raises:
        TemplateError: the log is not that of exactly one kernel of this name.
    """
    entries = _ENTRY.findall(log)
    used = _USED.search(log)
    if entries != [entry] or used is None:
        found = ", ".join(entries) or "none"
        raise TemplateError(f'kernel.cu must define one extern "C" __global__ function, {entry}; it defines {found}')
    frames = [tuple(map(int, frame)) for frame in _FRAME.findall(log)]
    return ResourceUsage(
        registers=int(used[1]),
        spill_store_bytes=sum(stores for _, stores, _ in frames),
        spill_load_bytes=sum(loads for _, _, loads in frames),
        stack_bytes=max(sum(stack for stack, _, _ in frames), _first(_CUMULATIVE_STACK, used[0])),
        static_smem_bytes=_first(_SMEM, used[0]),
        smem_bytes=smem_bytes,
        barriers=_first(_BARRIERS, used[0]),
    )


def _first(pattern: re.Pattern[str], line: str) -> int:
    match = pattern.search(line)
    return int(match[1]) if match else 0


def out_of_memory(log: str) -> bool:
    """Whether the compiler ended because it was given no more memory."""
    return _RULE.search(log) is None and _MEMORY.search(log) is not None


def failure(log: str, compiler: str, arch: str) -> tuple[Rejection, bool]:
    """Why a compile that ended with an exit code gave no cubin, and whether it would end so every time.

    Raises:
        TemplateError: the kernel needs a macro that the template does not define: no config can compile.
        UserError: the compiler itself cannot work: unknown architecture, no host compiler, disk full.
    """
    if missing := _MISSING.search(log):
        raise TemplateError(f"kernel.cu needs the macro {missing[1]}, which template.py's defines() does not give")
    if "No space left on device" in log:
        raise UserError(f"{compiler}: no space left on device: free some, or set EVOENGINE_HOME to another disk")
    if unusable := _UNUSABLE.search(log):
        raise UserError(f"{compiler} cannot compile for {arch}: {unusable[0]}")
    evidence: dict[str, str | bool] = {"compiler": compiler, "arch": arch, "log_tail": log[-LOG_TAIL_CHARS:]}
    if rule := _RULE.search(log):
        evidence |= {"rule": rule[1], "late_rule": True}
        return Rejection(Gate.COMPILE, f"rule {rule[1]}: {rule[2]}", evidence), True
    if crash := _CRASH.search(log):
        return Rejection(Gate.COMPILE, f"compiler killed by signal {crash[1]}", evidence), False
    if internal := _INTERNAL.search(log):
        return Rejection(Gate.COMPILE, f"compiler failed: {internal[1]}", evidence), False
    if error := _ERROR.search(log):
        reason = error[0].strip()
        if compiler.startswith("NVRTC") and _NO_HEADER.search(reason):
            reason += ": NVRTC has no headers of CUDA or C++, do without or compile with --compiler nvcc"
        return Rejection(Gate.COMPILE, reason, evidence), True
    return Rejection(Gate.COMPILE, "compiler failed and gave no reason", evidence), False
