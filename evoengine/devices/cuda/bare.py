"""A cubin launched and nothing else, for tools that watch a process: `python -m evoengine.devices.cuda.bare FOLDER`.

compute-sanitizer and Nsight Compute slow down all that a process does, so this one has no torch, whose import alone
takes 3-4 s, but cuda-bindings. Every tensor is an allocation of its own, of exactly its size, and holds nothing that
the kernel should have written: what a launch reads or writes elsewhere is a finding. None is freed before the end, so
that an address names one tensor of one problem.

FOLDER holds job.json. Before each launch, and at the end, a line is added to launches.jsonl, so that whoever reads a
tool's report knows which problem was running and where its tensors were.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

from evoengine.devices.cuda.messages import make_problem
from evoengine.problem import Problem
from evoengine.template import Argument, Launch, Template, load_template

JOB, LAUNCHES = "job.json", "launches.jsonl"


@dataclass(frozen=True, slots=True)
class Job:
    """What to launch: a template's folder, a cubin with its config, and problems as their fields.

    Each problem's kernel is launched `launches` times on the same tensors, with inputs drawn from `seed`.
    """

    template: str
    cubin: str
    values: Mapping[str, int]
    problems: Sequence[Mapping[str, int | float | str | bool]]
    ordinal: int
    seed: int
    launches: int = 1

    def write(self, folder: Path) -> None:
        (folder / JOB).write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> Job:
        return cls(**json.loads((folder / JOB).read_text()))


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a tensor was: the address of its first byte, and its bytes."""

    name: str
    address: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Launched:
    """A problem whose launches began, with its tensors."""

    problem: str
    tensors: tuple[Placed, ...]


def read_launches(folder: Path) -> tuple[list[Launched], bool]:
    """What was launched, and whether all of it ended well."""
    path = folder / LAUNCHES
    lines = path.read_text().splitlines() if path.exists() else []
    documents = [json.loads(line) for line in lines]
    launched = [
        Launched(one["problem"], tuple(Placed(**tensor) for tensor in one["tensors"]))
        for one in documents
        if "problem" in one
    ]
    return launched, any("done" in one for one in documents)


class Gpu(Protocol):
    """What launching takes of a card."""

    def upload(self, data: bytes) -> int:
        """The address of a new allocation with these bytes in it."""
        ...

    def allocate(self, size: int) -> int:
        """The address of a new allocation with nothing written to it."""
        ...

    def load(self, image: bytes, entry: str) -> Any: ...

    def launch(self, kernel: Any, launch: Launch, arguments: Sequence[tuple[str, int | float]]) -> None:
        """Launch and wait."""
        ...


class DriverGpu:
    """The card by the driver API alone."""

    def __init__(self, ordinal: int) -> None:
        from cuda.bindings import driver

        from evoengine.devices.cuda.driver import call

        self._driver, self._call = driver, call
        call(driver.cuInit, 0)
        call(driver.cuCtxSetCurrent, call(driver.cuDevicePrimaryCtxRetain, call(driver.cuDeviceGet, ordinal)))

    def upload(self, data: bytes) -> int:
        address = self.allocate(len(data))
        self._call(self._driver.cuMemcpyHtoD, address, data, len(data))
        return address

    def allocate(self, size: int) -> int:
        return int(self._call(self._driver.cuMemAlloc, size))

    def load(self, image: bytes, entry: str) -> Any:
        from evoengine.devices.cuda.driver import Kernel

        return Kernel(image, entry)

    def launch(self, kernel: Any, launch: Launch, arguments: Sequence[tuple[str, int | float]]) -> None:
        from evoengine.devices.cuda.driver import pack

        kernel.allow(launch.smem_bytes)
        kernel.launch(launch, pack(arguments), 0)
        self._call(self._driver.cuCtxSynchronize)


def launch_all(job: Job, gpu: Gpu, tell: Callable[[dict[str, Any]], None]) -> None:
    """Every problem in turn.

    Raises:
        CudaError, FatalCudaError: the driver refuses a launch, or a launch fails.
    """
    template = load_template(Path(job.template))
    kernel = gpu.load(Path(job.cubin).read_bytes(), template.module.ENTRY)
    for fields in job.problems:
        problem = make_problem(template.module.PROBLEM, fields)
        tensors = _place(template, problem, job.seed, gpu)
        tell(asdict(Launched(problem.label, tuple(tensors))))
        addresses = {tensor.name: tensor.address for tensor in tensors}
        arguments = [_argument(one, addresses) for one in template.module.arguments(job.values, problem)]
        for _ in range(job.launches):
            gpu.launch(kernel, template.module.launch(job.values, problem), arguments)
    tell({"done": True})


def _place(template: Template, problem: Problem, seed: int, gpu: Gpu) -> list[Placed]:
    """Inputs uploaded, counters zeroed, the rest left as it was allocated."""
    from evoengine.dtypes import BITS, to_bits

    inputs = template.module.inputs(problem, seed)
    placed = []
    for tensor in template.module.tensors(problem):
        size = prod(tensor.shape) * BITS[tensor.dtype].itemsize
        if tensor.role == "input":
            address = gpu.upload(to_bits(inputs[tensor.name], tensor.dtype).tobytes())
        elif tensor.role == "scratch" and tensor.dtype == "int32":
            address = gpu.upload(bytes(size))
        else:
            address = gpu.allocate(size)
        placed.append(Placed(tensor.name, address, size))
    return placed


def _argument(argument: Argument, addresses: Mapping[str, int]) -> tuple[str, int | float]:
    if argument.kind == "tensor":
        return "pointer", addresses[str(argument.value)]
    return argument.kind, int(argument.value) if argument.kind == "int32" else float(argument.value)


def main(folder: Path) -> None:
    job = Job.read(folder)

    def tell(document: dict[str, Any]) -> None:
        with (folder / LAUNCHES).open("a") as file:  # closed before the launch: a fault may end the process
            file.write(json.dumps(document) + "\n")

    launch_all(job, DriverGpu(job.ordinal), tell)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
