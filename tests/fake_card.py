"""A card without a GPU: the kernels are Python functions over real host memory, the clock is simulated."""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evoengine.devices.cuda.cold import InTurn
from evoengine.devices.cuda.driver import CudaError
from evoengine.devices.cuda.serve import FatalCudaError
from evoengine.hardware import card
from evoengine.template import Launch

QUANTUM_US = 1.024
"""The event clock of an L4."""
SMALL = dataclasses.replace(card("l4"), l2_bytes=64 * 1024)
"""A card whose L2 evicts axpb's 16 KB after 20 others."""
COLD = 1.5
"""How many times longer a launch takes that finds L2 cold."""


class SimulatedEvents:
    """Event times in steps of the quantum, on a clock that windows advance."""

    def __init__(self, quantum_us: float = QUANTUM_US) -> None:
        self.now_us = 0.0
        self.quantum_us = quantum_us
        self._times: dict[int, float] = {}

    def record(self, index: int) -> None:
        self._times[index] = self.now_us // self.quantum_us * self.quantum_us

    def intervals_us(self, count: int) -> list[float]:
        times = [self._times[index] for index in range(count + 1)]
        return [b - a for a, b in itertools.pairwise(times)]


class SimulatedWindow:
    """Launches of `launch_us` each, with multiplicative noise."""

    def __init__(self, events: SimulatedEvents, launch_us: float, launches: int, noise: float, seed: int) -> None:
        self.launches = launches
        self._events = events
        self._launch_us = launch_us
        self._noise = noise
        self._random = random.Random(seed)

    def replay(self) -> None:
        self._events.now_us += self.launches * self._launch_us * self._random.lognormvariate(0.0, self._noise)

    def destroy(self) -> None:
        self._launch_us = float("nan")


@dataclass
class FakeKernel:
    """axpb with one of its template's bugs; the cubin is a JSON text that says which, and how long a launch takes."""

    bug: str
    launch_us: float
    launches: int = 0
    unloaded: bool = False
    before: dict[int, tuple[int, NDArray[np.float32]]] = field(default_factory=dict)
    """For each size, where it wrote first and what."""

    def run(self, arguments: Sequence[tuple[str, int | float]]) -> None:
        self.launches += 1
        x_address, y_address, a, b, n = (value for _, value in arguments)
        x = np.frombuffer((ctypes.c_float * (n + 1)).from_address(x_address), np.float32)
        y = np.frombuffer((ctypes.c_float * (n + 1)).from_address(y_address), np.float32)
        out = np.float32(a) * x[:n] + np.float32(b * 1.001 if self.bug == "wrong by 0.1 %" else b)
        if self.bug == "writes nothing":
            return
        if self.bug == "illegal address":
            raise FatalCudaError("CUDA_ERROR_ILLEGAL_ADDRESS from cuCtxSynchronize")
        if self.bug == "differs from launch to launch":
            out[0] = np.nextafter(out[0], np.float32(self.launches % 7 and np.inf))
        if self.bug == "reads uninitialised shared memory":
            out[5] = np.nan
        if self.bug == "wrong after 100 launches" and self.launches > 100:
            out += 1
        first_address, answer = self.before.setdefault(n, (y_address, out.copy()))
        if self.bug == "answers as it did before":
            out = answer
        if self.bug == "writes where it wrote before":
            y = np.frombuffer((ctypes.c_float * (n + 1)).from_address(first_address), np.float32)
        if self.bug == "loses large inputs":
            out[np.abs(x[:n]) > 100] = 0
        written = n - 32 if self.bug == "last row unwritten" else n
        y[:written] = out[:written]
        if self.bug == "writes out of bounds":
            y[n] = 1.0
        if self.bug == "changes its input":
            x[0] += 1.0

    def unload(self) -> None:
        self.unloaded = True


class FakeGraph(SimulatedWindow):
    """A window that also runs its kernel, as often as a real one would; it follows the kernel's time and the card's."""

    def __init__(self, start: Callable[[], None], kernel: FakeKernel, launches: int, card: FakeCard) -> None:
        super().__init__(card.events, kernel.launch_us, launches, card.noise, launches)
        self._start = start
        self._kernel = kernel
        self._card = card
        self._cold = isinstance(start, InTurn)

    def replay(self) -> None:
        self._launch_us = self._kernel.launch_us * (COLD if self._cold else 1.0) * self._card.slowness
        self._noise = self._card.noise
        super().replay()
        for _ in range(self.launches):
            self._start()


class FakeCard:
    """What GpuBench needs of a card."""

    name = "Fake GPU"
    quantum_us = QUANTUM_US
    torch_stream = None

    def __init__(self, ordinal: int) -> None:
        self.device = torch.device("cpu")
        self.events = SimulatedEvents()
        self.kernels: list[FakeKernel] = []
        self.limits = SMALL
        self.clock_mhz = 2000.0
        self.noise = 0.001
        self.slowness = 1.0
        self.scrubs = 0
        self.persisting_resets = 0
        self.free = 8 << 30

    def scrub(self) -> None:
        self.scrubs += 1

    def load(self, image: bytes, entry: str) -> FakeKernel:
        assert entry == "evo_axpb"
        self.kernels.append(FakeKernel(**json.loads(image)))
        return self.kernels[-1]

    def bind(
        self, kernel: FakeKernel, launch: Launch, arguments: Sequence[tuple[str, int | float]]
    ) -> Callable[[], None]:
        if kernel.bug == "wants much local memory":
            raise CudaError("CUDA_ERROR_OUT_OF_MEMORY", "cuLaunchKernel")
        if launch.smem_bytes > 99 * 1024:
            raise CudaError("CUDA_ERROR_INVALID_VALUE", "cuFuncSetAttribute")

        def start() -> None:
            kernel.run(arguments)

        start.kernel = kernel  # type: ignore[attr-defined]
        return start

    def empty(self) -> Callable[[], None]:
        def start() -> None:
            """Costs a launch and does nothing."""

        start.kernel = FakeKernel("none", 0.9)  # type: ignore[attr-defined]
        return start

    def graph(self, start: Any, launches: int) -> FakeGraph:
        one = start.calls[0] if isinstance(start, InTurn) else start
        return FakeGraph(start, one.kernel, launches, self)

    def reset_persisting(self) -> None:
        self.persisting_resets += 1

    def synchronize(self) -> None:
        """Everything has run by the time it is asked for."""

    def free_bytes(self) -> int:
        return self.free

    def clocks(self) -> dict[str, Any]:
        return {"sm_clock_mhz": self.clock_mhz}

    def environment(self) -> dict[str, Any]:
        return {"gpu": self.name}
