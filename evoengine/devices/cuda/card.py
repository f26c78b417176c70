"""The card as the worker holds it: context, stream, events, and a record of everything that could matter."""

from __future__ import annotations

import hashlib
import platform
import statistics
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cuda.bindings import driver

from evoengine.devices.cuda.driver import Events, Kernel, LaunchGraph, call, pack
from evoengine.devices.cuda.nvml import Nvml
from evoengine.devices.cuda.probe import read_limits
from evoengine.devices.cuda.scrub import Scrubber, compile_source
from evoengine.devices.cuda.serve import FatalCudaError
from evoengine.devices.cuda.timer import quantum_of
from evoengine.errors import UserError
from evoengine.template import Launch

Start = Callable[[], None]
"""Puts one launch of a kernel on the card's stream."""

QUANTUM_EVENTS = 256
"""Intervals from which the event clock's step is read."""


def identify(ordinal: int) -> tuple[str, str]:
    """(UUID, name) of a card. Creates no context.

    Raises:
        UserError: there is no driver.
        FatalCudaError: the driver does not come up, or has no such card.
    """
    _wake()
    device = call(driver.cuDeviceGet, ordinal)
    name = call(driver.cuDeviceGetName, 256, device).split(b"\0")[0].decode()
    return f"GPU-{uuid.UUID(bytes=bytes(call(driver.cuDeviceGetUuid, device).bytes))}", name


def ordinal_of(card: str) -> int:
    """The CUDA ordinal of a card that is given by it or by its UUID.

    One card of several is given by UUID: a card that falls off the bus takes its number along, and the next process
    counts the others anew.

    Raises:
        UserError: there is no driver.
        FatalCudaError: the driver does not come up, or has no such card.
    """
    if card.isdecimal():
        return int(card)
    _wake()
    for ordinal in range(call(driver.cuDeviceGetCount)):
        if identify(ordinal)[0] == card:
            return ordinal
    raise FatalCudaError(f"CUDA_ERROR_NO_DEVICE as {card} is not here any more")


def _wake() -> None:
    try:
        call(driver.cuInit, 0)
    except RuntimeError as error:
        raise UserError(f"no NVIDIA driver on this machine ({error}): use --device none") from error


class Card:
    """One GPU with torch and the driver API in the same (primary) context and on the same stream."""

    def __init__(self, ordinal: int) -> None:
        self.uuid, self.name = identify(ordinal)
        self._nvml = Nvml(self.uuid)
        self.other_processes = self._nvml.processes()  # counted before this process joins them
        self.other_load_percent = self._nvml.load_percent()
        if not torch.cuda.is_available():
            raise UserError(f"torch {torch.__version__} cannot use this GPU: install a CUDA build of torch")
        torch.cuda.set_device(ordinal)
        self.device = torch.device("cuda", ordinal)
        torch.zeros(1, device=self.device)  # torch makes the primary context...
        device = call(driver.cuDeviceGet, ordinal)
        call(driver.cuCtxSetCurrent, call(driver.cuDevicePrimaryCtxRetain, device))  # ...which is ours as well
        self.torch_stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        torch.cuda.set_stream(self.torch_stream)
        self._stream = int(self.torch_stream.cuda_stream)
        self.events = Events(self._stream)
        width = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH
        self._memory_bus_bits = call(driver.cuDeviceGetAttribute, width, device)
        limits = read_limits(ordinal)
        assert limits is not None, "identify found the card"
        self.limits = limits
        self.scrub = Scrubber(limits, self._stream)
        self.quantum_us, self.empty_us = _event_clock(self.events, self.scrub)

    def load(self, image: bytes, entry: str) -> Kernel:
        """A cubin as a kernel.

        Raises:
            CudaError: the driver refuses it.
        """
        return Kernel(image, entry)

    def bind(self, kernel: Kernel, launch: Launch, arguments: Sequence[tuple[str, int | float]]) -> Start:
        """What starts `kernel` on this card's stream."""
        kernel.allow(launch.smem_bytes)
        parameters = pack(arguments)
        return lambda: kernel.launch(launch, parameters, self._stream)

    def empty(self) -> Start:
        """What starts a kernel of one warp that does nothing: the floor under every time."""
        kernel = Kernel(compile_source(Path(__file__).with_name("empty.cu"), self.limits.arch), "empty")
        return self.bind(kernel, Launch((1, 1, 1), 32, 0), ())

    def graph(self, start: Start, launches: int) -> LaunchGraph:
        """`launches` starts as one window."""
        return LaunchGraph(start, launches, self._stream)

    def synchronize(self) -> None:
        """Wait for everything.

        Raises:
            FatalCudaError: something went wrong in any launch so far.
        """
        call(driver.cuCtxSynchronize)

    def reset_persisting(self) -> None:
        """Lines that a kernel asked L2 to keep become ordinary ones: they would outlive any traffic (llm.c#851)."""
        (status,) = driver.cuCtxResetPersistingL2Cache()
        if status not in (driver.CUresult.CUDA_SUCCESS, driver.CUresult.CUDA_ERROR_NOT_SUPPORTED):
            raise FatalCudaError(f"{status.name} from cuCtxResetPersistingL2Cache")

    def free_bytes(self) -> int:
        """Device memory that this process holds for its tensors or could still have; others' is missing from it."""
        return int(call(driver.cuMemGetInfo)) + torch.cuda.memory_reserved(self.device)

    def clocks(self) -> dict[str, Any]:
        """Clocks, power, temperature now; empty without NVML."""
        return self._nvml.now()

    def environment(self) -> dict[str, Any]:
        """What a reader needs to place the numbers. The host is recorded as a hash: two runs can be told apart."""
        return {
            "gpu": self.name,
            "uuid": self.uuid,
            "compute_capability": list(self.limits.compute_capability),
            "sms": self.limits.sms,
            "l2_bytes": self.limits.l2_bytes,
            "memory_bus_bits": self._memory_bus_bits,
            "cuda_driver": call(driver.cuDriverGetVersion),
            "cuda": torch.version.cuda,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "platform": sys.platform,
            "host": hashlib.sha256(platform.node().encode()).hexdigest()[:12],
            "event_quantum_us": self.quantum_us,
            "event_pair_us": self.empty_us,
            "window": "warm L2, CUDA graph between two events",
            "other_processes": self.other_processes,
            "other_load_percent": self.other_load_percent,
            **self._nvml.settings(),
            "clocks": self.clocks(),
        }


def _event_clock(events: Events, spin: Callable[[], None]) -> tuple[float, float]:
    """(step of the event clock, time between two events with nothing between them), in microseconds.

    Intervals around nothing and around kernels of about 20 us land on many different ticks.
    """
    spin()
    for index in range(QUANTUM_EVENTS + 1):
        events.record(index)
        if index % 2:
            spin()
    intervals = events.intervals_us(QUANTUM_EVENTS)
    return quantum_of(intervals), statistics.median(intervals[0::2])
