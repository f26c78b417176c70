"""Which card is there and what it allows, asked of the driver in a process that ends at once.

A child process, because even `cuInit` claims memory and file handles in the process that calls it, and a driver that
hangs or crashes must not take the engine with it.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import uuid
from typing import Any

from evoengine.devices.cuda.process import child_environment
from evoengine.hardware import CARDS, DeviceLimits, barriers_per_sm

PROBE_SECONDS = 60.0
"""cuInit takes 0.1-2 s, some 10 s without persistence mode on an eight-card host; past a minute the driver hangs."""

TENSOR_FMA_PER_SM = {(8, 0): 1024, (8, 6): 512, (8, 9): 512, (9, 0): 2048, (10, 0): 4096, (12, 0): 512}
"""Dense fp16 multiply-adds a clock and SM with fp32 accumulation (vendor's architecture white papers)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Gpu:
    """One card as the driver shows it. `ordinal` is CUDA's, counted after CUDA_VISIBLE_DEVICES; NVML's is another."""

    ordinal: int
    uuid: str
    memory_bytes: int
    limits: DeviceLimits


def find_gpus() -> list[Gpu]:
    """Every card that CUDA_VISIBLE_DEVICES leaves, in CUDA's order; of a card in slices (MIG) CUDA shows one slice."""
    found = _ask("gpus", 0)
    return [Gpu(one["ordinal"], one["uuid"], one["memory_bytes"], _limits(one["limits"])) for one in found or ()]


def find_gpu(ordinal: int = 0) -> DeviceLimits | None:
    """The limits of GPU `ordinal` (counted after CUDA_VISIBLE_DEVICES), or None where there is no driver or card.

    Limits come from the device. Clock, DRAM bandwidth and tensor rate come from `hardware.CARDS` for a card known by
    name; for others they are derived: bandwidth as 2 x memory clock x bus width (double data rate), tensor rate as
    `TENSOR_FMA_PER_SM` x SMs x clock, with sm_89's figure for an unknown architecture.
    """
    fields = _ask("limits", ordinal)
    return None if fields is None else _limits(fields)


def find_uuid(ordinal: int = 0) -> str | None:
    """`GPU-...`, by which a card is locked; None where there is no driver or card."""
    found: str | None = _ask("uuid", ordinal)
    return found


def _limits(fields: dict[str, Any]) -> DeviceLimits:
    return DeviceLimits(**{**fields, "compute_capability": tuple(fields["compute_capability"])})


def begin(ordinal: int) -> None:
    """Begin to ask for the limits of a card, which takes a second: `find_gpu` then waits for the rest of it."""
    if ("limits", ordinal) not in _begun:
        _begun["limits", ordinal] = _child("limits", ordinal)


_begun: dict[tuple[str, int], subprocess.Popen[str]] = {}


def _child(what: str, ordinal: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "evoengine.devices.cuda.probe", what, str(ordinal)]
    null = subprocess.DEVNULL
    return subprocess.Popen(
        command, stdin=null, stdout=subprocess.PIPE, stderr=null, env=child_environment(), text=True
    )


def _ask(what: str, ordinal: int) -> Any:
    """What the child process says; None where it fails or hangs."""
    with _begun.pop((what, ordinal), None) or _child(what, ordinal) as child:
        try:
            said, _ = child.communicate(timeout=PROBE_SECONDS)
        except BaseException as error:
            child.kill()
            if isinstance(error, subprocess.TimeoutExpired):
                return None
            raise
    return json.loads(said) if child.returncode == 0 else None


def read_uuid(ordinal: int) -> str | None:
    """The same in this process. Creates no context."""
    try:
        from cuda.bindings import driver

        if driver.cuInit(0)[0] != driver.CUresult.CUDA_SUCCESS:
            return None
    except (ImportError, RuntimeError):  # as in read_limits
        return None
    status, device = driver.cuDeviceGet(ordinal)
    if status != driver.CUresult.CUDA_SUCCESS:
        return None
    status, found = driver.cuDeviceGetUuid(device)
    return f"GPU-{uuid.UUID(bytes=bytes(found.bytes))}" if status == driver.CUresult.CUDA_SUCCESS else None


def read_gpus() -> list[Gpu]:
    """The same as `find_gpus` in this process. Creates no context."""
    found: list[Gpu] = []
    while (limits := read_limits(ordinal := len(found))) is not None:
        from cuda.bindings import driver

        uuid, memory = read_uuid(ordinal), driver.cuDeviceTotalMem(driver.cuDeviceGet(ordinal)[1])[1]
        assert uuid is not None, "the driver has just told its limits"
        found.append(Gpu(ordinal, uuid, int(memory), limits))
    return found


def read_limits(ordinal: int) -> DeviceLimits | None:
    """The same in this process. Creates no context."""
    try:
        from cuda.bindings import driver

        status = driver.cuInit(0)[0]
    except (ImportError, RuntimeError):  # cuda-pathfinder's DynamicLibNotFoundError is a RuntimeError
        return None
    if status != driver.CUresult.CUDA_SUCCESS:
        return None
    status, device = driver.cuDeviceGet(ordinal)
    if status != driver.CUresult.CUDA_SUCCESS:
        return None

    def read(attribute: str) -> int:
        status, value = driver.cuDeviceGetAttribute(
            getattr(driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{attribute}"), device
        )
        if status != driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"the driver does not tell {attribute}: {status.name}")
        return int(value)

    name = driver.cuDeviceGetName(256, device)[1].split(b"\0")[0].decode()
    capability = read("COMPUTE_CAPABILITY_MAJOR"), read("COMPUTE_CAPABILITY_MINOR")
    sms, clock_mhz = read("MULTIPROCESSOR_COUNT"), read("CLOCK_RATE") // 1000
    ctas_per_sm = read("MAX_BLOCKS_PER_MULTIPROCESSOR")
    tensor_fma = TENSOR_FMA_PER_SM.get(capability, TENSOR_FMA_PER_SM[8, 9])
    limits = DeviceLimits(
        name=name,
        compute_capability=capability,
        sms=sms,
        smem_per_block=read("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
        smem_per_sm=read("MAX_SHARED_MEMORY_PER_MULTIPROCESSOR"),
        threads_per_sm=read("MAX_THREADS_PER_MULTIPROCESSOR"),
        ctas_per_sm=ctas_per_sm,
        l2_bytes=read("L2_CACHE_SIZE"),
        clock_mhz=clock_mhz,
        dram_gbps=2 * read("MEMORY_CLOCK_RATE") * 1000 * read("GLOBAL_MEMORY_BUS_WIDTH") / 8 / 1e9,
        tensor_tflops=2 * tensor_fma * sms * clock_mhz * 1e6 / 1e12,
        registers_per_sm=read("MAX_REGISTERS_PER_MULTIPROCESSOR"),
        threads_per_block=read("MAX_THREADS_PER_BLOCK"),
        smem_reserved_per_block=read("RESERVED_SHARED_MEMORY_PER_BLOCK"),
        barriers_per_sm=barriers_per_sm(capability, ctas_per_sm),
    )
    for known in CARDS.values():
        if known.name == name:
            return dataclasses.replace(
                limits, clock_mhz=known.clock_mhz, dram_gbps=known.dram_gbps, tensor_tflops=known.tensor_tflops
            )
    return limits


if __name__ == "__main__":
    if sys.argv[1] == "uuid":
        print(json.dumps(read_uuid(int(sys.argv[2]))))
    elif sys.argv[1] == "gpus":
        print(json.dumps([dataclasses.asdict(gpu) for gpu in read_gpus()]))
    else:
        found = read_limits(int(sys.argv[2]))
        print(json.dumps(found and found.as_json()))
