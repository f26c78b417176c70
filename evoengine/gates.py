"""The static and the resource gate: pure functions from numbers to a reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from evoengine.hardware import DeviceLimits, occupancy
from evoengine.problem import Problem
from evoengine.space import Rule, SearchSpace, Values
from evoengine.template import Launch, Template
from evoengine.verdict import Gate, Rejection, ResourceUsage


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The user's own limits on top of the device's; None leaves a resource to the device."""

    max_registers: int | None = None
    max_smem_bytes: int | None = None
    max_spill_bytes: int | None = None


def hardware_rules(template: Template, axes: tuple[str, ...], ceilings: Ceilings) -> tuple[Rule, ...]:
    """Rules that follow from the launch alone, for any template: threads, shared memory, grid.

    A template may name the axes that its `launch` reads as LAUNCH_AXES; the rules are then tested without the others.
    """
    read = tuple(getattr(template.module, "LAUNCH_AXES", axes))
    last: tuple[Values, Problem, Launch] | None = None

    def launched(values: Values, problem: Problem) -> Launch:
        """The rules are asked of one config after the other: its launch is a fifth of listing a space."""
        nonlocal last
        if last is None or last[0] != values or last[1] is not problem:
            last = dict(values), problem, template.module.launch(values, problem)
        return last[2]

    def rule(id: str, check: Callable[[Launch, DeviceLimits], str | None]) -> Rule:
        def checked(values: Values, problem: Problem, limits: DeviceLimits) -> str | None:
            return check(launched(values, problem), limits)

        return Rule(id, read, checked)

    def threads(launch: Launch, limits: DeviceLimits) -> str | None:
        if launch.block <= limits.threads_per_block:
            return None
        return f"{launch.block} threads a CTA, {limits.name} allows {limits.threads_per_block}"

    def smem(launch: Launch, limits: DeviceLimits) -> str | None:
        allowed = min(limits.smem_per_block, ceilings.max_smem_bytes or limits.smem_per_block)
        if launch.smem_bytes <= allowed:
            return None
        return f"{launch.smem_bytes} B of shared memory a CTA, allowed are {allowed} B ({limits.name})"

    def grid(launch: Launch, limits: DeviceLimits) -> str | None:
        x, y, z = launch.grid
        if x < 2**31 and y <= 65535 and z <= 65535:
            return None
        return f"grid {launch.grid}: CUDA allows (2147483647, 65535, 65535)"

    def min_ctas(launch: Launch, limits: DeviceLimits) -> str | None:
        fit = occupancy(limits, launch.block, 0, launch.smem_bytes)
        if launch.min_ctas <= max(fit.ctas_per_sm, 1):
            return None
        return f"promises {launch.min_ctas} CTAs an SM where {fit.bound_by} lets {limits.name} hold {fit.ctas_per_sm}"

    named = (("threads_per_cta", threads), ("smem_per_cta", smem), ("min_ctas_reachable", min_ctas), ("grid", grid))
    return tuple(rule(id, check) for id, check in named)


def static_gate(
    space: SearchSpace,
    hardware: tuple[Rule, ...],
    values: Values,
    problem: Problem,
    limits: DeviceLimits,
) -> Rejection | None:
    """Arithmetic only, free: the space's rules, then what the launch asks of the device."""
    broken = space.broken(values, problem, limits, hardware)
    if broken is None:
        return None
    return Rejection(Gate.STATIC, f"{broken.rule}: {broken.reason}", {"rule": broken.rule})


def resource_gate(
    resources: ResourceUsage, launch: Launch, limits: DeviceLimits, ceilings: Ceilings
) -> Rejection | None:
    """What the compiler reported against what the device and the user allow.

    Spills are recorded and not refused unless `max_spill_bytes` says so: a config that spills a little can still win,
    and timing decides.
    """
    smem = resources.static_smem_bytes + resources.smem_bytes
    fit = occupancy(limits, launch.block, resources.registers, smem, resources.barriers)
    evidence = {
        "registers": resources.registers,
        "spill_bytes": resources.spill_bytes,
        "smem_bytes": smem,
        "ctas_per_sm": fit.ctas_per_sm,
        "bound_by": fit.bound_by,
        "limits": limits.name,
    }

    def refuse(reason: str) -> Rejection:
        return Rejection(Gate.RESOURCES, reason, evidence)

    allowed_smem = min(limits.smem_per_block, ceilings.max_smem_bytes or limits.smem_per_block)
    if smem > allowed_smem:
        return refuse(f"{smem} B of shared memory, allowed are {allowed_smem} B")
    allowed_registers = min(limits.registers_per_thread, ceilings.max_registers or limits.registers_per_thread)
    if resources.registers > allowed_registers:
        return refuse(f"{resources.registers} registers a thread, allowed are {allowed_registers}")
    if ceilings.max_spill_bytes is not None and resources.spill_bytes > ceilings.max_spill_bytes:
        return refuse(f"{resources.spill_bytes} B of register spills a thread, allowed are {ceilings.max_spill_bytes}")
    if fit.ctas_per_sm < 1:
        return refuse(f"not one CTA fits on an SM of {limits.name} (bound by {fit.bound_by})")
    return None
