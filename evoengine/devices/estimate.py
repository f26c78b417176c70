"""A latency model that ranks candidates where nothing can be measured. Its numbers are estimates, never measurements.

The time of a wave is what the SM's units need for its co-resident CTAs, plus what the chain of dependent steps costs
whatever the occupancy. Tensor cores and shared memory work side by side, exponentials wait for scores and outputs for
exponentials, copies from L2 run under both:

    wave = n * max(max(tensor, shared) / fed + exp, L2) + steps * STEP_CLOCKS + ENDS_CLOCKS

with n CTAs on an SM and `fed` the share of its four tensor cores that has a warp. Unit rates are the vendor's; the
three latencies were read off a sweep of 421 attention kernels on an H200 (2026) at B=1 H=8 S=512 D=64, of which the
180 without clusters are ranked with a Spearman correlation of 0.97.
"""

from __future__ import annotations

from evoengine.hardware import DeviceLimits, occupancy
from evoengine.template import Launch, Work
from evoengine.verdict import ResourceUsage

EXP_PER_CLOCK = 16.0
"""Special-function results per clock and SM: CUDA C++ Programming Guide 13.0, table of arithmetic throughput."""
L2_BYTES_PER_CLOCK = 64.0
"""From L2 into one SM: NVIDIA A100 whitepaper (5120 B/clk for the chip); 52 were measured on the H200."""
SMEM_BYTES_PER_CLOCK = 128.0
"""32 banks of 4 B: CUDA C++ Programming Guide 13.0, "Shared Memory". The L1 that spills go through shares them."""
MMA_SYNC_SHARE = {9: 0.62}
"""Part of the tensor rate that mma.sync reaches on a compute capability whose rate needs wgmma: Luo et al. 2024,
"Benchmarking and Dissecting the Nvidia Hopper GPU Architecture via Microbenchmarking"."""
TENSOR_CORES_PER_SM = 4
LAUNCH_US = 1.2
"""An empty kernel inside a graph, measured on the H200."""
ENDS_CLOCKS = 2400.0
"""First tile on its way and last output stored: 0.8 + 0.4 us on the H200 at 1.98 GHz."""
STEP_CLOCKS = 600.0
"""Barrier, ldmatrix, dependent mma, shuffles and exponentials of one trip through the main loop: fitted."""


def estimate_us(launch: Launch, work: Work, resources: ResourceUsage, limits: DeviceLimits) -> float:
    """Estimated device time of one launch in microseconds, inputs in L2.

    Raises:
        ValueError: not one CTA fits on an SM; the resource gate refuses such a candidate before.
    """
    smem_bytes = resources.static_smem_bytes + launch.smem_bytes
    fitting = occupancy(limits, launch.block, resources.registers, smem_bytes, resources.barriers).ctas_per_sm
    if fitting < 1:
        raise ValueError(f"no CTA of {launch.block} threads and {smem_bytes} B fits on {limits.name}")
    resident = min(fitting, -(-launch.ctas // limits.sms))
    waves = -(-launch.ctas // (limits.sms * resident))
    clocks_per_us = float(limits.clock_mhz)
    share = MMA_SYNC_SHARE.get(limits.compute_capability[0], 1.0)
    flops_per_clock = limits.tensor_tflops * 1e6 / (limits.sms * clocks_per_us) * share
    fed = min(1.0, work.compute_warps * resident / TENSOR_CORES_PER_SM)
    spilled = resources.spill_bytes * launch.block * work.steps  # as if every spill lay in the main loop
    shared = (work.smem_bytes + spilled) / SMEM_BYTES_PER_CLOCK
    compute = max(work.tensor_flops / flops_per_clock, shared) / fed + work.exponentials / EXP_PER_CLOCK
    busy = resident * max(compute, work.l2_bytes / L2_BYTES_PER_CLOCK)
    return LAUNCH_US + waves * (busy + work.steps * STEP_CLOCKS + ENDS_CLOCKS) / clocks_per_us
