"""Device buffers that betray a kernel: guard bands around each, poison in outputs and scratch, pristine inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from evoengine.dtypes import BITS, Arrays, to_bits
from evoengine.oracle import POISON, Observed
from evoengine.problem import Problem
from evoengine.template import Argument, Template, Tensor

GUARD_BYTES = 64 * 1024
"""A store one tile (128 rows of 128 halves, 32 KB) beyond a buffer still hits its guard; 4 KB would miss it."""
FILLS = (*POISON, 0x3555)
"""What outputs hold before a launch, in turn. The last is a number in every dtype: a kernel that leaves alone what is
already there would be right on poison, and be timed doing nothing."""
TORCH_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class GuardedBuffer:
    """One tensor between two guard bands, all seen as 16-bit words.

    The guards hold the two poison words in turn. Both are NaN, so that a kernel which reads out of bounds and uses
    what it read gives NaN; one that writes there changes a word.
    """

    def __init__(self, tensor: Tensor, device: torch.device) -> None:
        self.tensor = tensor
        words = math.prod(tensor.shape) * BITS[tensor.dtype].itemsize // 2
        guard = GUARD_BYTES // 2
        self._all = torch.empty(2 * guard + words, dtype=torch.int16, device=device)
        self.words = self._all[guard : guard + words]
        self._guards = (self._all[:guard], self._all[guard + words :])
        self._pattern = torch.tensor([_signed(w) for w in POISON], dtype=torch.int16, device=device).repeat(guard // 2)
        self.reset_guards()

    @property
    def address(self) -> int:
        return self.words.data_ptr()

    def reset_guards(self) -> None:
        for guard in self._guards:
            guard.copy_(self._pattern)

    def guard_hits(self) -> torch.Tensor:
        """Number of changed guard words, on the device."""
        return sum((torch.ne(guard, self._pattern).sum() for guard in self._guards), start=_zero(self._all))

    def poison(self, turn: int) -> None:
        self.words.fill_(_signed(FILLS[turn % len(FILLS)]))

    def poison_left(self, turn: int) -> torch.Tensor:
        """Number of elements that still hold what `poison` wrote at `turn`, on the device."""
        still = torch.eq(self.words, _signed(FILLS[turn % len(FILLS)]))
        return still.view(-1, BITS[self.tensor.dtype].itemsize // 2).all(dim=1).sum()

    def values(self) -> torch.Tensor:
        """The tensor as torch sees it, sharing memory."""
        return self.view(self.words)

    def view(self, words: torch.Tensor) -> torch.Tensor:
        """Words of this buffer or a copy of them as torch sees the tensor."""
        return words.view(TORCH_DTYPES[self.tensor.dtype]).view(self.tensor.shape)


@dataclass(frozen=True, slots=True)
class BufferCopy:
    """The tensors of one problem without guards: words by tensor name, and the inputs as torch sees them."""

    words: Mapping[str, torch.Tensor]
    inputs: Sequence[torch.Tensor]

    def arguments(self, arguments: Sequence[Argument]) -> list[tuple[str, int | float]]:
        """Kernel arguments with tensors replaced by their addresses."""
        return _addressed(arguments, {name: words.data_ptr() for name, words in self.words.items()})


class ProblemBuffers:
    """Every tensor of one problem on the device, loaded with one input set."""

    def __init__(self, template: Template, problem: Problem, inputs: Arrays, device: torch.device) -> None:
        tensors = template.module.tensors(problem)
        self._device = device
        self._buffers = {tensor.name: GuardedBuffer(tensor, device) for tensor in tensors}
        self.inputs = [buffer for buffer in self._buffers.values() if buffer.tensor.role == "input"]
        self.outputs = [buffer for buffer in self._buffers.values() if buffer.tensor.role == "output"]
        scratch = [buffer for buffer in self._buffers.values() if buffer.tensor.role == "scratch"]
        self._counters = [buffer for buffer in scratch if buffer.tensor.dtype == "int32"]
        self._poisoned = [*self.outputs, *(buffer for buffer in scratch if buffer.tensor.dtype != "int32")]
        self.load(inputs)

    def load(self, inputs: Arrays) -> None:
        """Other inputs in the same buffers."""
        self._pristine = [
            _upload(inputs[buffer.tensor.name], buffer.tensor.dtype, self._device) for buffer in self.inputs
        ]
        self.restore()

    def restore(self) -> None:
        """Inputs, counters and guards as they should be, whatever the last kernel did to them."""
        for buffer, pristine in zip(self.inputs, self._pristine, strict=True):
            buffer.words.copy_(pristine)
        self.reset_counters()
        for buffer in self._buffers.values():
            buffer.reset_guards()

    def reset_counters(self) -> None:
        for buffer in self._counters:
            buffer.words.zero_()

    def arguments(self, arguments: Sequence[Argument]) -> list[tuple[str, int | float]]:
        """Kernel arguments with tensors replaced by their addresses."""
        return _addressed(arguments, {name: buffer.address for name, buffer in self._buffers.items()})

    @property
    def traffic_bytes(self) -> int:
        """Of inputs and outputs: what one launch moves at least."""
        return sum(buffer.words.nbytes for buffer in (*self.inputs, *self.outputs))

    def copy(self) -> BufferCopy:
        """Inputs and outputs as they are now, elsewhere and without guards: for launches that are timed only.

        The scratch is shared, as a workspace is among the layers of a model; it may be larger than all the rest.
        """
        shared = {name for name, buffer in self._buffers.items() if buffer.tensor.role == "scratch"}
        words = {name: b.words if name in shared else b.words.clone() for name, b in self._buffers.items()}
        return BufferCopy(words, [buffer.view(words[buffer.tensor.name]) for buffer in self.inputs])

    def poison(self, turn: int) -> None:
        """Outputs and what of the scratch is no counter: partial results of the last launch would be right again."""
        for buffer in self._poisoned:
            buffer.poison(turn)

    def poison_left(self, turn: int) -> torch.Tensor:
        return sum((buffer.poison_left(turn) for buffer in self.outputs), start=_zero_on(self._device))

    def guard_hits(self) -> torch.Tensor:
        return sum((buffer.guard_hits() for buffer in self._buffers.values()), start=_zero_on(self._device))

    def inputs_changed(self) -> torch.Tensor:
        """Number of changed input words, on the device."""
        pairs = zip(self.inputs, self._pristine, strict=True)
        return sum((torch.ne(b.words, p).sum() for b, p in pairs), start=_zero_on(self._device))

    def snapshot(self) -> list[torch.Tensor]:
        """The outputs' words, copied on the device."""
        return [buffer.words.clone() for buffer in self.outputs]

    def differs(self, snapshot: Sequence[torch.Tensor]) -> torch.Tensor:
        """1 where any output word differs from the snapshot's, else 0; on the device."""
        pairs = zip(self.outputs, snapshot, strict=True)
        words = sum((torch.ne(b.words, s).sum() for b, s in pairs), start=_zero_on(self._device))
        return (words > 0).to(torch.int64)

    def bits(self, snapshot: Sequence[torch.Tensor]) -> dict[str, NDArray[np.unsignedinteger]]:
        """A snapshot on the host, by tensor name, in the tensors' shapes."""
        return {
            b.tensor.name: words.cpu().numpy().view(BITS[b.tensor.dtype]).reshape(b.tensor.shape)
            for b, words in zip(self.outputs, snapshot, strict=True)
        }


def observe(
    launch: Callable[[], None],
    buffers: ProblemBuffers,
    repeats: int,
    scrub: Callable[[], None],
    synchronize: Callable[[], None],
) -> tuple[Observed, list[torch.Tensor]]:
    """Run a kernel on prepared buffers, `repeats` times; what was seen, and the first output on the device.

    Every launch gets poisoned outputs, with the words of FILLS in turn: an output left over from another launch shows.
    Counters are as the launch before left them. Only the first launch waits for the device, so that its failure
    is known as such; the others queue up back to back, the state in which races between CTAs show, and their
    differences add up on the device.
    """
    buffers.restore()
    buffers.poison(0)
    scrub()
    launch()
    synchronize()
    first = buffers.snapshot()
    poison_left = buffers.poison_left(0)
    mismatches = torch.zeros_like(poison_left)
    for turn in range(1, repeats):
        buffers.poison(turn)
        launch()
        mismatches += buffers.differs(first)
    guard_hits, inputs_changed = buffers.guard_hits(), buffers.inputs_changed()
    synchronize()
    observed = Observed(
        outputs=buffers.bits(first),
        poison_left=int(poison_left),
        guard_hits=int(guard_hits),
        inputs_changed=bool(inputs_changed),
        repeats=repeats,
        repeat_mismatches=int(mismatches),
    )
    return observed, first


def drifted(
    launch: Callable[[], None],
    buffers: ProblemBuffers,
    accepted: Sequence[torch.Tensor],
    synchronize: Callable[[], None],
) -> str:
    """Launch once more: what is no longer as it was when `accepted` was proven right, or nothing.

    Bit-equal outputs need no second judgement on the CPU.
    """
    buffers.poison(1)
    launch()
    differs, guard_hits, changed = buffers.differs(accepted), buffers.guard_hits(), buffers.inputs_changed()
    synchronize()
    if int(guard_hits):
        return f"{int(guard_hits)} guard words outside a buffer were overwritten"
    if int(changed):
        return "the kernel changed its inputs"
    if int(differs):
        return "the output differs from the one that was proven right"
    return ""


def _addressed(arguments: Sequence[Argument], addresses: Mapping[str, int]) -> list[tuple[str, int | float]]:
    return [
        ("pointer", addresses[str(a.value)])
        if a.kind == "tensor"
        else (a.kind, int(a.value) if a.kind == "int32" else float(a.value))
        for a in arguments
    ]


def _upload(values: NDArray[np.float32], dtype: str, device: torch.device) -> torch.Tensor:
    words = np.ascontiguousarray(to_bits(values, dtype)).reshape(-1).view(np.int16)
    return torch.from_numpy(words.copy()).to(device)


def _signed(word: int) -> int:
    """A 16-bit word as the int16 that torch holds."""
    return word - 0x10000 if word >= 0x8000 else word


def _zero(like: torch.Tensor) -> torch.Tensor:
    return _zero_on(like.device)


def _zero_on(device: torch.device) -> torch.Tensor:
    return torch.zeros((), dtype=torch.int64, device=device)
