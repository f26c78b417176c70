"""Cards for deployed kernels without a GPU: the kernel is NumPy on the tensors' real memory, told by its arguments."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from evoengine.devices.cuda.driver import Parameters
from evoengine.problem import AttentionProblem
from evoengine.template import Launch


@dataclass
class FakeCards:
    """One card that tensors on the CPU are on. `problem` says what its kernels were compiled for."""

    problem: AttentionProblem
    card: str = "NVIDIA L4"
    architecture: str = "sm_89"
    in_capture: bool = False
    loaded: list[bytes] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    addresses: list[tuple[int, ...]] = field(default_factory=list)

    def serves(self, device: torch.device) -> bool:
        return device.type == "cpu"

    def name(self, device: torch.device) -> str:
        return self.card

    def arch(self, device: torch.device) -> str:
        return self.architecture

    def capturing(self, device: torch.device) -> bool:
        return self.in_capture

    def load(self, device: torch.device, image: bytes, entry: str, smem_bytes: int) -> bytes:
        assert (entry, smem_bytes > 0) == ("evo_attention", True)
        self.loaded.append(image)
        return image

    def start(self, device: torch.device, kernel: bytes, launch: Launch, parameters: Parameters) -> None:
        values, types = parameters
        pointers = [int(value) for value, kind in zip(values, types, strict=True) if kind is ctypes.c_void_p]
        seq_q, seq_k, kv_heads, group, diagonal, scale_log2 = values[len(pointers) :]
        assert all(pointer % 16 == 0 for pointer in pointers)
        _, heads, batch = launch.grid
        assert heads == kv_heads * group
        dim = self.problem.head_dim
        q = self._read(pointers[0], (batch, heads, int(seq_q), dim))
        k, v = (self._read(pointer, (batch, int(kv_heads), int(seq_k), dim)) for pointer in pointers[1:3])
        if len(pointers) > 4:  # a split of the keys: partial results may be anything, counters are zero
            counters = (ctypes.c_int32 * (launch.ctas // 4)).from_address(pointers[5])
            assert not any(counters)
        scores = np.einsum("bhid,bhjd->bhij", q, k.repeat(int(group), 1)) * (scale_log2 / math.log2(math.e))
        if self.problem.causal:
            hidden = np.arange(seq_k)[None, :] > np.arange(seq_q)[:, None] + diagonal
            scores[..., hidden] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        out = np.einsum("bhij,bhjd->bhid", weights / weights.sum(axis=-1, keepdims=True), v.repeat(int(group), 1))
        self._memory(pointers[3], out.size)[:] = out.astype(np.float16).view(np.uint16).ravel()
        self.launches.append(launch)
        self.addresses.append(tuple(pointers))

    def _read(self, address: int, shape: tuple[int, ...]) -> Any:
        return self._memory(address, math.prod(shape)).view(np.float16).astype(np.float64).reshape(shape)

    @staticmethod
    def _memory(address: int, count: int) -> Any:
        return np.frombuffer((ctypes.c_uint16 * count).from_address(address), np.uint16)
