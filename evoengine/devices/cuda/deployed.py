"""A tuned kernel in a user's process: on the card that the tensors are on, on torch's current stream."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from cuda.bindings import driver

from evoengine.devices.cuda.buffers import TORCH_DTYPES
from evoengine.devices.cuda.driver import Kernel, Parameters, call, pack
from evoengine.hardware import architecture
from evoengine.problem import Problem
from evoengine.space import Values
from evoengine.template import Launch, Template

ALIGNMENT = 16
"""Bytes; what a kernel's vector loads ask of the first element, and torch's own allocations always give."""


class Cards(Protocol):
    """The machine's cards as a deployed kernel sees them."""

    def serves(self, device: torch.device) -> bool: ...

    def name(self, device: torch.device) -> str: ...

    def arch(self, device: torch.device) -> str: ...

    def capturing(self, device: torch.device) -> bool:
        """Whether launches on the current stream become part of a CUDA graph."""
        ...

    def load(self, device: torch.device, image: bytes, entry: str, smem_bytes: int) -> Any:
        """A cubin's kernel on a card, allowed `smem_bytes` of shared memory a CTA."""
        ...

    def start(self, device: torch.device, kernel: Any, launch: Launch, parameters: Parameters) -> None:
        """Put one launch on the card's current stream."""
        ...


class CudaCards:
    """The real ones: torch's primary context and stream, the driver's launch."""

    def __init__(self) -> None:
        self._contexts: dict[int, Any] = {}

    def serves(self, device: torch.device) -> bool:
        return device.type == "cuda"

    def name(self, device: torch.device) -> str:
        return torch.cuda.get_device_name(device)

    def arch(self, device: torch.device) -> str:
        return architecture(torch.cuda.get_device_capability(device))

    def capturing(self, device: torch.device) -> bool:
        with torch.cuda.device(device):
            return torch.cuda.is_current_stream_capturing()

    def load(self, device: torch.device, image: bytes, entry: str, smem_bytes: int) -> Kernel:
        assert device.index is not None, "a tensor's device has an index"
        with torch.cuda.device(device):
            call(driver.cuInit, 0)
            ordinal = call(driver.cuDeviceGet, device.index)  # torch's primary context is ours as well
            self._contexts[device.index] = call(driver.cuDevicePrimaryCtxRetain, ordinal)
            call(driver.cuCtxSetCurrent, self._contexts[device.index])
            kernel = Kernel(image, entry)
            kernel.allow(smem_bytes)
        return kernel

    def start(self, device: torch.device, kernel: Kernel, launch: Launch, parameters: Parameters) -> None:
        with torch.cuda.device(device):
            # A thread in which torch has done nothing but take memory from its cache has no context yet.
            call(driver.cuCtxSetCurrent, self._contexts[device.index])
            kernel.launch(launch, parameters, torch.cuda.current_stream(device).cuda_stream)


class Deployed:
    """One config on one problem on one card. Calling it launches once and gives the first output.

    Scratch is taken from torch's allocator for each launch, which keeps what one stream frees for that stream and puts
    what a capture takes into the graph's own pool: launches on several streams, and graphs that are replayed at the
    same time, never share any. Counters are zeroed with it, a memset of a few hundred bytes. Counters that are kept
    would save that, but two graphs captured on one stream would count in the same ones.

    Raises:
        ValueError: the template has no arguments for this config on this problem.
    """

    def __init__(
        self, template: Template, problem: Problem, values: Values, kernel: Any, device: torch.device, cards: Cards
    ) -> None:
        module = template.module
        used = module.scratch(values, problem) if hasattr(module, "scratch") else {}
        tensors = module.tensors(problem)
        self._inputs = [tensor.name for tensor in tensors if tensor.role == "input"]
        self._outputs = [(one.name, one.shape, TORCH_DTYPES[one.dtype]) for one in tensors if one.role == "output"]
        counters = {tensor.name for tensor in tensors if tensor.dtype == "int32"}
        self._scratch = [(name, count, name in counters) for name, count in used.items()]
        self._launch = module.launch(values, problem)
        self._arguments = module.arguments(values, problem)
        kinds = ["pointer" if one.kind == "tensor" else one.kind for one in self._arguments]
        _, self._types = pack([(kind, 0) for kind in kinds])
        self._kernel, self._device, self._cards = kernel, device, cards

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        held = dict(zip(self._inputs, map(dense, inputs), strict=True))
        for name, shape, dtype in self._outputs:
            held[name] = torch.empty(shape, dtype=dtype, device=self._device)
        for name, count, zeroed in self._scratch:
            make = torch.zeros if zeroed else torch.empty
            held[name] = make(count, dtype=torch.uint8, device=self._device)
        values = tuple(
            held[str(one.value)].data_ptr() if one.kind == "tensor" else one.value for one in self._arguments
        )
        self._cards.start(self._device, self._kernel, self._launch, (values, self._types))  # type: ignore[arg-type]
        return held[self._outputs[0][0]]


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` itself where it is contiguous and aligned, else a copy that is."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()
