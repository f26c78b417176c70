"""What a device allows: limits per named card, and how many CTAs of a kernel fit on one SM."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from evoengine.errors import UserError, did_you_mean


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """Limits and rates of one card.

    Sources: CUDA C++ Programming Guide 13.0, table "Technical Specifications per Compute Capability", and
    cuda_occupancy.h (13.0) for allocation units. Clock, bandwidth and tensor rate are the vendor's datasheet values;
    only the latency estimate uses them.
    """

    name: str
    compute_capability: tuple[int, int]
    sms: int
    smem_per_block: int
    smem_per_sm: int
    threads_per_sm: int
    ctas_per_sm: int
    l2_bytes: int
    clock_mhz: int
    dram_gbps: float
    tensor_tflops: float
    registers_per_sm: int = 65536
    registers_per_thread: int = 255
    threads_per_block: int = 1024
    smem_reserved_per_block: int = 1024
    smem_unit: int = 128
    register_unit: int = 256
    barriers_per_sm: int | None = None

    @property
    def arch(self) -> str:
        """The real architecture to compile for, such as `sm_89`."""
        return architecture(self.compute_capability)

    def as_json(self) -> dict[str, object]:
        return asdict(self)


_KB = 1024
_MB = 1024 * 1024


def architecture(compute_capability: tuple[int, int]) -> str:
    """The architecture that cubins for a card are built for.

    Hopper's is sm_90a, because wgmma exists in no other (CUDA C++ Programming Guide 13.0, "Architecture-Specific
    Features"): code for sm_90a runs on 9.0 and nowhere else, as any cubin for one of its own does.
    """
    suffix = "a" if compute_capability == (9, 0) else ""
    return f"sm_{compute_capability[0]}{compute_capability[1]}{suffix}"


def barriers_per_sm(compute_capability: tuple[int, int], ctas_per_sm: int) -> int | None:
    """Hardware barriers that CTAs on one SM share: two a CTA or one, and None before sm_90, where they do not bind.

    As cuda_occupancy.h of CUDA 13.0 has it (cudaOccMaxBlocksPerSMBlockBarrierLimit).
    """
    if compute_capability[0] < 9:
        return None
    return ctas_per_sm if compute_capability[0] >= 12 or compute_capability in ((10, 1), (11, 0)) else 2 * ctas_per_sm


def _card(
    name: str, cc: tuple[int, int], sms: int, l2_mb: int, clock_mhz: int, dram_gbps: float, tensor_tflops: float
) -> DeviceLimits:
    """A card from its datasheet, with the shared-memory, thread and CTA limits of its compute capability."""
    per_block, per_sm, threads, ctas = {
        (8, 0): (163, 164, 2048, 32),
        (8, 6): (99, 100, 1536, 16),
        (8, 9): (99, 100, 1536, 24),
        (9, 0): (227, 228, 2048, 32),
        (12, 0): (99, 100, 1536, 24),
    }[cc]
    return DeviceLimits(
        name=name,
        compute_capability=cc,
        sms=sms,
        smem_per_block=per_block * _KB,
        smem_per_sm=per_sm * _KB,
        threads_per_sm=threads,
        ctas_per_sm=ctas,
        l2_bytes=l2_mb * _MB,
        clock_mhz=clock_mhz,
        dram_gbps=dram_gbps,
        tensor_tflops=tensor_tflops,
        barriers_per_sm=barriers_per_sm(cc, ctas),
    )


CARDS: dict[str, DeviceLimits] = {
    "a100": _card("NVIDIA A100-SXM4-40GB", (8, 0), 108, 40, 1410, 1555, 312),
    "a10g": _card("NVIDIA A10G", (8, 6), 80, 6, 1710, 600, 70),
    "l4": _card("NVIDIA L4", (8, 9), 58, 48, 2040, 300, 121),
    "l40s": _card("NVIDIA L40S", (8, 9), 142, 96, 2520, 864, 362),
    "rtx4090": _card("NVIDIA GeForce RTX 4090", (8, 9), 128, 72, 2520, 1008, 165),
    "h100": _card("NVIDIA H100 80GB HBM3", (9, 0), 132, 50, 1980, 3350, 989),
    "h200": _card("NVIDIA H200", (9, 0), 132, 60, 1980, 4800, 989),  # L2 as its driver tells, 62,914,560 B
}


def card(name: str) -> DeviceLimits:
    """A card by its short name, case and punctuation ignored.

    Raises:
        UserError: no such card; names the nearest ones.
    """
    key = "".join(c for c in name.lower() if c.isalnum())
    if key in CARDS:
        return CARDS[key]
    raise UserError(f"unknown card {name!r}: {did_you_mean(key, CARDS)}known are {', '.join(CARDS)}")


def gate_limits(device: DeviceLimits, named: DeviceLimits) -> DeviceLimits:
    """What `--limits` asks for: a candidate must fit both the named card and the device it runs on."""
    return replace(
        named,
        smem_per_block=min(device.smem_per_block, named.smem_per_block),
        smem_per_sm=min(device.smem_per_sm, named.smem_per_sm),
        threads_per_sm=min(device.threads_per_sm, named.threads_per_sm),
        ctas_per_sm=min(device.ctas_per_sm, named.ctas_per_sm),
    )


QUARTERS = 4
"""Sub-partitions of an SM, each with a scheduler, a tensor core and a quarter of registers and exponential units."""


def launch_bound_registers(registers_per_sm: int, threads: int, min_ctas: int) -> int:
    """Registers a thread that `__launch_bounds__(threads, min_ctas)` leave, in eights, of the quarter a warp runs in.

    May be more than a thread can have. ptxas 13.0 counts so (tests/test_interpreter_registers.py).
    """
    warps = -(-(-(-threads // 32) * min_ctas) // QUARTERS)
    return registers_per_sm // QUARTERS // warps // 32 // 8 * 8


@dataclass(frozen=True, slots=True)
class Occupancy:
    """CTAs of one kernel that fit on an SM at once, and the resource that sets that number."""

    ctas_per_sm: int
    bound_by: str


def occupancy(limits: DeviceLimits, threads: int, registers: int, smem_bytes: int, barriers: int = 1) -> Occupancy:
    """CTAs per SM for a kernel of `threads` a CTA, `registers` a thread and `smem_bytes` a CTA (static + dynamic).

    Follows cuda_occupancy.h (CUDA 13.0): registers are handed out per warp in units of 256 and warps are spread over
    the SM's four sub-partitions, each with a quarter of the register file; shared memory in units of 128 B after a
    reserve of 1 KB a CTA.
    """
    warps = -(-threads // 32)
    bounds = {"ctas": limits.ctas_per_sm, "threads": limits.threads_per_sm // (warps * 32)}
    per_warp = -(-registers * 32 // limits.register_unit) * limits.register_unit
    if per_warp:
        bounds["registers"] = (limits.registers_per_sm // QUARTERS // per_warp) * QUARTERS // warps
    reserved = -(-smem_bytes // limits.smem_unit) * limits.smem_unit + limits.smem_reserved_per_block
    bounds["smem"] = limits.smem_per_sm // reserved
    if limits.barriers_per_sm is not None:
        bounds["barriers"] = limits.barriers_per_sm // max(barriers, 1)
    name = min(bounds, key=lambda key: bounds[key])
    return Occupancy(bounds[name], name)
