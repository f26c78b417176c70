"""A latency model that ranks candidates where nothing can be measured. Its numbers are estimates, never measurements.

The busiest SM gets c = ceil(CTAs / SMs) CTAs, r of them at a time, in w = ceil(c / r) waves. Resources overlap
imperfectly: times a and b together take norm(a, b) = (a^p + b^p)^(1/p), between their sum (p = 1) and the longer
(p = infinity). With everything in clocks over the whole main loop of `steps` trips:

    compute = norm_unit(tensor, shared, exp, fragments of a warp, instructions of a warp) + w * (steps * step + copies)
    loop    = norm_load(compute, bytes from L2, w * loads / loads ahead) + w * steps * spills
    time    = LAUNCH_US + (loop + w * (first load + ragged loads + round trips) + merge) / clock

The first three units are shared by all warps of the SM (tensor cores and exponentials in quarters of it, of which one
warp uses one); the chains of a single warp are paid once a wave, whatever else runs. The products of a warpgroup belong
to the instructions of its warps, which wait for them, as far as no other CTA fills the time. Copies cost computing
warps nothing where others load. Rates are the vendors'; what they leave open are the nine `Costs`, of an H200: clocks
carry over to other cards as far as their SMs are alike.
"""

from __future__ import annotations

from dataclasses import dataclass

from evoengine.hardware import QUARTERS, DeviceLimits, launch_bound_registers, occupancy
from evoengine.problem import Problem
from evoengine.space import Values
from evoengine.template import Launch, TemplateModule, Work
from evoengine.verdict import ResourceUsage

EXP_PER_CLOCK = 16.0
"""Special-function results per clock and SM: CUDA C++ Programming Guide 13.0, table of arithmetic throughput."""
L2_BYTES_PER_CLOCK = 64.0
"""From L2 into one SM: NVIDIA A100 whitepaper (5120 B/clk for the chip); 52 were measured on the H200."""
SMEM_BYTES_PER_CLOCK = 128.0
"""32 banks of 4 B: CUDA C++ Programming Guide 13.0, "Shared Memory"."""
MMA_SYNC_SHARE = {9: 0.62}
"""Part of the tensor rate that mma.sync reaches on a compute capability whose rate needs wgmma: Luo et al. 2024,
"Benchmarking and Dissecting the Nvidia Hopper GPU Architecture via Microbenchmarking"."""
WARPGROUP = 4
"""Warps that issue a wgmma together, one on each quarter of the SM: alone they have the whole tensor rate."""
INSTRUCTIONS_PER_EXP = 4.5
"""Of a softmax, for each score: maximum, multiply-add, exponential, sum, and half a conversion to 16 bits."""
LAUNCH_US = 0.55
"""The fixed part of a launch inside a graph: what an empty kernel takes on an H200. Held while `Costs` were fitted."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What vendors' figures leave open, fitted by `benchmarks/fit_estimate.py` to one half of the 18,300 attention
    kernels recorded at three shapes on an H200 (2026), to three digits: `studies/h200/estimate.json`.

    Clocks are the SM's.
    """

    step_clocks: float = 484.0
    """One trip through the main loop beyond its instructions: barriers, ldmatrix and mma latency, shuffles."""
    issue_clocks: float = 3.31
    """From one dependent instruction of a warp's softmax to the next."""
    load_clocks: float = 1040.0
    """From the last copy of a tile until it has landed from L2."""
    copy_clocks: float = 17.0
    """From one copy instruction of a warp to its next."""
    slow_copy_clocks: float = 67.7
    """What a copy with a bound check in a loop takes longer."""
    spill_clocks: float = 3.56
    """Each spilled word of a thread that is stored or loaded; all are taken to lie in the main loop."""
    merge_line_clocks: float = 6.34
    """Leave 128 bytes of partial results in shared memory, read and weigh them."""
    unit_overlap: float = 1.29
    """Exponent with which tensor cores, shared memory, exponentials and a warp's own chains overlap; 1: they do not."""
    load_overlap: float = 8.88
    """Exponent with which loads from L2 overlap with computing."""


FITTED = Costs()


def dram_bytes(problem: Problem, limits: DeviceLimits) -> int:
    """What every launch has to fetch from device memory or write there: all of a problem that L2 does not hold."""
    return problem.bytes_moved if problem.bytes_moved > limits.l2_bytes else 0


def estimate_us(
    launch: Launch,
    work: Work,
    resources: ResourceUsage | None,
    limits: DeviceLimits,
    costs: Costs = FITTED,
    *,
    from_dram_bytes: int = 0,
) -> float:
    """Estimated device time of one launch in microseconds; all but `from_dram_bytes` is in L2.

    Without `resources` (before compiling) registers are what `work` expects, as far as the launch bounds leave them.

    Raises:
        ValueError: not one CTA fits on an SM; the resource gate refuses such a candidate before.
    """
    used = expected_resources(launch, work, limits) if resources is None else resources
    smem_bytes = used.static_smem_bytes + launch.smem_bytes
    fitting = occupancy(limits, launch.block, used.registers, smem_bytes, used.barriers).ctas_per_sm
    if fitting < 1:
        raise ValueError(f"no CTA of {launch.block} threads and {smem_bytes} B fits on {limits.name}")
    ctas = -(-launch.ctas // limits.sms)
    resident = min(fitting, ctas)
    waves = -(-ctas // resident)
    warps = work.compute_warps
    fed = min(1.0, resident * warps / QUARTERS)
    share = 1.0 if work.warpgroup_mma else MMA_SYNC_SHARE.get(limits.compute_capability[0], 1.0)
    flops_per_clock = limits.tensor_tflops * 1e6 / (limits.sms * limits.clock_mhz) * share

    fragments = work.smem_bytes / SMEM_BYTES_PER_CLOCK
    instructions = INSTRUCTIONS_PER_EXP * work.exponentials / 32 / warps
    alone = WARPGROUP / warps * work.tensor_flops / flops_per_clock
    awaited = alone / resident if work.warpgroup_mma else 0.0
    compute = _norm(
        costs.unit_overlap,
        ctas * work.tensor_flops / flops_per_clock / fed,
        ctas * fragments,
        ctas * work.exponentials / EXP_PER_CLOCK / fed,
        waves * fragments / warps,
        waves * (instructions * costs.issue_clocks + awaited),
    )
    copies = work.copies * costs.copy_clocks
    compute += waves * (work.steps * costs.step_clocks + (0.0 if work.dedicated_loads else copies))
    from_l2 = ctas * work.l2_bytes / L2_BYTES_PER_CLOCK
    loads = work.steps * costs.load_clocks + copies
    from_dram = from_dram_bytes / (limits.dram_gbps * 1e3 / limits.clock_mhz)
    loop = _norm(costs.load_overlap, compute, from_l2, from_dram, waves * loads / work.loads_ahead)
    loop += waves * work.steps * used.spill_bytes / 4 * costs.spill_clocks
    ends = loads / work.steps + work.slow_copies * costs.slow_copy_clocks if work.steps else 0.0
    ends += work.round_trips * costs.load_clocks
    merge = ctas * work.merge_bytes / 128 * costs.merge_line_clocks
    return LAUNCH_US + (loop + waves * ends + merge) / limits.clock_mhz


def candidate_us(
    module: TemplateModule,
    values: Values,
    problem: Problem,
    limits: DeviceLimits,
    resources: ResourceUsage | None = None,
    costs: Costs = FITTED,
) -> float:
    """`estimate_us` of a config on one problem; what L2 does not hold of that comes from device memory.

    Raises:
        ValueError: as `estimate_us`.
    """
    launch, work = module.launch(values, problem), module.work(values, problem)
    return estimate_us(launch, work, resources, limits, costs, from_dram_bytes=dram_bytes(problem, limits))


def expected_resources(launch: Launch, work: Work, limits: DeviceLimits) -> ResourceUsage:
    """What a compiler is likely to report: the registers that `work` expects, and each one that the launch bounds do
    not leave as a word stored and loaded again."""
    bounds = launch_bound_registers(limits.registers_per_sm, launch.block, launch.min_ctas)
    registers = min(work.registers, bounds, limits.registers_per_thread)
    spilled = 4 * (work.registers - registers)
    return ResourceUsage(registers, spilled, spilled, 0, 0, launch.smem_bytes)


def _norm(exponent: float, *times: float) -> float:
    """(sum of times^exponent)^(1/exponent): with 1 one after the other, the larger the nearer to the longest alone."""
    return float(sum(time**exponent for time in times) ** (1.0 / exponent))
