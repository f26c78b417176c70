"""What tests of the interpreter share: small kernels written in PTX, and a template compiled to PTX alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from cuda.bindings import nvrtc
from numpy.typing import ArrayLike, NDArray

from evoengine.devices.interpreter import MODES, Mode, Program, execute
from evoengine.problem import Problem
from evoengine.space import Values
from evoengine.template import Launch, Template

Array = NDArray[Any]
ONE_MODE = MODES[:1]


def program(
    body: str, parameters: Sequence[str] = (), before: str = "", bounds: str = ".maxntid 1024, 1, 1"
) -> Program:
    """A kernel `k` of that body with 64-bit parameters. Registers: %p0-9, %h0-9 (16 bits), %r0-39, %d0-19, %f0-39."""
    declared = ", ".join(f".param .u64 {name}" for name in parameters)
    return Program(
        f"""
        .version 9.0
        .target sm_89
        .address_size 64
        {before}
        .visible .entry k({declared})
        {bounds}
        {{
            .reg .pred %p<10>;
            .reg .b16 %h<10>;
            .reg .b32 %r<40>;
            .reg .b64 %d<20>;
            .reg .f32 %f<40>;
            {body}
            ret;
        }}
        """,
        "k",
    )


def run(
    body: str,
    buffers: dict[str, Array],
    *,
    threads: int = 32,
    ctas: int = 1,
    smem_bytes: int = 0,
    modes: Sequence[Mode] = ONE_MODE,
    before: str = "",
    bounds: str = ".maxntid 1024, 1, 1",
    step_limit: int = 100_000,
) -> list[dict[str, Array]]:
    """Run a body with the buffers' addresses as parameters; the buffers afterwards, typed as given, for each mode."""
    code = program(body, list(buffers), before, bounds)
    launch = Launch((ctas, 1, 1), threads, smem_bytes)
    done = execute(code, launch, list(buffers), buffers, modes=modes, step_limit=step_limit)
    return [{name: left[name].view(buffers[name].dtype) for name in buffers} for left in done.buffers]


def lanewise(instruction: str, *inputs: ArrayLike, out: type[np.generic]) -> Array:
    """The result in `%out` of an instruction on `%in0`, `%in1`, ..., one element per lane, as `out`.

    Inputs are numpy arrays of one length up to 32; a 16-bit one arrives in a 16-bit register, and so on.
    """
    arrays = [np.atleast_1d(np.asarray(values)) for values in inputs]
    lanes = len(arrays[0])
    buffers: dict[str, Array] = {f"in{i}": array for i, array in enumerate(arrays)}
    buffers["out"] = np.zeros(lanes, out)
    loads = ["mov.u32 %r0, %tid.x;", f".reg .b{buffers['out'].itemsize * 8} %out;"]
    for name, array in buffers.items():
        bits = array.itemsize * 8
        loads += [f"ld.param.u64 %d0, [{name}];", f"mad.wide.u32 %d1, %r0, {array.itemsize}, %d0;"]
        loads += [f".reg .b{bits} %{name};", f"ld.global.b{bits} %{name}, [%d1];"] if name != "out" else []
    store = f"st.global.b{buffers['out'].itemsize * 8} [%d1], %out;"
    return run("\n".join([*loads, instruction, store]), buffers, threads=lanes)[0]["out"]


def succeed(result: tuple[nvrtc.nvrtcResult, ...]) -> None:
    assert nvrtc.nvrtcResult.NVRTC_SUCCESS == result[0]


def compile_ptx(template: Template, values: Values, problem: Problem) -> str:
    """PTX alone, which takes a third of a whole build."""
    defines = template.module.defines(values, problem)
    more = [f"-I{template.folder}", *(f"-D{name}={value}" for name, value in defines.items())]
    return compile_source(template.kernel.read_bytes(), more, "compute_90a" if values.get("WGMMA") else "compute_89")


def compile_source(source: bytes, more_options: Sequence[str] = (), arch: str = "compute_89") -> str:
    return _compiled(source, more_options, arch)[0]


def registers_used(source: bytes, arch: str) -> int:
    """Registers a thread of the one kernel in `source`, as ptxas reports them."""
    (counted,) = re.findall(r"Used (\d+) registers", _compiled(source, ["--ptxas-options=-v"], arch)[1])
    return int(counted)


def _compiled(source: bytes, more_options: Sequence[str], arch: str) -> tuple[str, str]:
    """PTX and log."""
    status, handle = nvrtc.nvrtcCreateProgram(source, b"kernel.cu", 0, [], [])
    succeed((status,))
    options = [f"-arch={arch}".encode(), b"-std=c++17", *(option.encode() for option in more_options)]
    (status,) = nvrtc.nvrtcCompileProgram(handle, len(options), options)
    log = bytearray(nvrtc.nvrtcGetProgramLogSize(handle)[1])
    nvrtc.nvrtcGetProgramLog(handle, log)
    assert nvrtc.nvrtcResult.NVRTC_SUCCESS == status, log.decode()
    ptx = bytearray(nvrtc.nvrtcGetPTXSize(handle)[1])
    succeed(nvrtc.nvrtcGetPTX(handle, ptx))
    succeed(nvrtc.nvrtcDestroyProgram(handle))
    return ptx.rstrip(b"\0").decode(), log.decode()
