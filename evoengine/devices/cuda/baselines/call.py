"""A competitor as the bench sees it: a function to call, windows of many calls, its error against the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from evoengine.devices.cuda.results import Deviation
from evoengine.devices.cuda.timer import Window
from evoengine.oracle import InputSet

WARM_CALLS = 3
"""cuDNN plans, cuBLAS handles and just-in-time compiles come with a first call, which a graph capture would refuse."""

Call = Callable[[], torch.Tensor]
"""Computes the output, of shape (batch, heads, seq_q, head_dim), on torch's current stream."""


class Unavailable(Exception):
    """A competitor that cannot run here; the message says why."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A competitor that is ready: its call, its window, and what a reader should know of how it was set up."""

    call: Call
    window: Window
    about: str = ""


class Stopwatch(Protocol):
    """The clock that candidates are timed with, for a competitor that tunes itself."""

    def estimate_call(self, call: Call) -> float: ...

    def median_us(self, calls: list[Call]) -> list[float]: ...


class CallGraph:
    """A CUDA graph of `launches` calls of a torch function, the counterpart of `driver.LaunchGraph`."""

    def __init__(self, function: Call, launches: int, stream: torch.cuda.Stream) -> None:
        self.launches = launches
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: the default mode makes any other thread's CUDA call an error
        with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            for _ in range(launches):
                function()

    def replay(self) -> None:
        self._graph.replay()

    def destroy(self) -> None:
        self._graph.reset()


def deviation(output: torch.Tensor, input_set: InputSet) -> Deviation:
    """Errors against the float64 reference.

    A row that sees no key is NaN in some backends and zero in the reference: counted, and left out of the errors.
    """
    truth = next(iter(input_set.reference.values()))
    values = output.double().cpu().numpy().reshape(truth.shape)
    finite = np.isfinite(values)
    error = np.where(finite, values - truth, 0.0)
    norm = float(np.sqrt(np.square(truth).sum())) or 1.0
    return Deviation(float(np.abs(error).max()), float(np.sqrt(np.square(error).sum())) / norm, int((~finite).sum()))
