"""The CUDA driver API as the worker uses it: every return code checked, kernels launched, launches captured."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

from cuda.bindings import driver

from evoengine.devices.cuda.serve import FatalCudaError
from evoengine.template import Launch

Parameters = tuple[tuple[int | float, ...], tuple[Any, ...]]
"""Kernel arguments as values and ctypes, the form that cuLaunchKernel's binding packs."""

LAUNCH_ERRORS = frozenset(
    {
        "CUDA_ERROR_INVALID_VALUE",
        "CUDA_ERROR_INVALID_IMAGE",
        "CUDA_ERROR_NO_BINARY_FOR_GPU",
        "CUDA_ERROR_NOT_FOUND",
        "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES",
        "CUDA_ERROR_OUT_OF_MEMORY",
    }
)
"""Refusals: nothing ran and the context lives on. Any other error may have left it unusable."""


class CudaError(Exception):
    """A driver call that did not return CUDA_SUCCESS."""

    def __init__(self, name: str, function: str) -> None:
        super().__init__(f"{name} from {function}")
        self.name = name


def call(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
    """The value that a driver function returns beside its status.

    Raises:
        CudaError: a refusal; the context is usable.
        FatalCudaError: any other status.
    """
    status, *values = function(*arguments)
    if status != driver.CUresult.CUDA_SUCCESS:
        error = CudaError(status.name, function.__name__)
        if status.name in LAUNCH_ERRORS:
            raise error
        raise FatalCudaError(str(error)) from error
    return values[0] if values else None


class Kernel:
    """One loaded cubin's entry point.

    Raises:
        CudaError: the driver refuses the image, the entry point or the shared memory.
    """

    def __init__(self, image: bytes, entry: str) -> None:
        self._module = call(driver.cuModuleLoadData, image)
        self._function = call(driver.cuModuleGetFunction, self._module, entry.encode())

    def allow(self, smem_bytes: int) -> None:
        """Opt in to `smem_bytes` of dynamic shared memory a CTA; above 48 KB a launch fails without."""
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        call(driver.cuFuncSetAttribute, self._function, attribute, smem_bytes)

    def launch(self, launch: Launch, parameters: Parameters, stream: int) -> None:
        call(
            driver.cuLaunchKernel,
            self._function,
            *launch.grid,
            launch.block,
            1,
            1,
            launch.smem_bytes,
            stream,
            parameters,
            0,
        )

    def unload(self) -> None:
        call(driver.cuModuleUnload, self._module)


def pack(values: Sequence[tuple[str, int | float]]) -> Parameters:
    """(kind, value) pairs, kind being `pointer`, `int32` or `float32`, as kernel arguments."""
    types = {"pointer": ctypes.c_void_p, "int32": ctypes.c_int, "float32": ctypes.c_float}
    return tuple(value for _, value in values), tuple(types[kind] for kind, _ in values)


class LaunchGraph:
    """A CUDA graph of `launches` equal launches: one host call starts them all, so host gaps vanish."""

    def __init__(self, launch: Callable[[], None], launches: int, stream: int) -> None:
        self.launches = launches
        self._stream = stream
        # THREAD_LOCAL: what torch does in its own threads must not break the capture
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        call(driver.cuStreamBeginCapture, stream, mode)
        try:
            for _ in range(launches):
                launch()
        except CudaError as error:  # a stream left in capture is of no more use
            raise FatalCudaError(str(error)) from error
        graph = call(driver.cuStreamEndCapture, stream)
        self._exec = call(driver.cuGraphInstantiate, graph, 0)
        call(driver.cuGraphDestroy, graph)

    def replay(self) -> None:
        call(driver.cuGraphLaunch, self._exec, self._stream)

    def destroy(self) -> None:
        call(driver.cuGraphExecDestroy, self._exec)


class Events:
    """A growing row of timing events on one stream."""

    def __init__(self, stream: int) -> None:
        self._stream = stream
        self._events: list[Any] = []

    def record(self, index: int) -> None:
        while index >= len(self._events):
            self._events.append(call(driver.cuEventCreate, 0))
        call(driver.cuEventRecord, self._events[index], self._stream)

    def intervals_us(self, count: int) -> list[float]:
        """Microseconds from event i to event i + 1 for i < count, after waiting for the last."""
        call(driver.cuEventSynchronize, self._events[count])
        pairs = zip(self._events[:count], self._events[1 : count + 1], strict=True)
        return [call(driver.cuEventElapsedTime, start, end) * 1e3 for start, end in pairs]
