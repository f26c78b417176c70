"""What a tuned kernel is compared with: each competitor a torch function, timed in the candidates' own windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from evoengine.devices.cuda.baselines import flex, installed, sdpa, triton_flash
from evoengine.devices.cuda.baselines.call import (
    WARM_CALLS,
    Call,
    CallGraph,
    Contender,
    Stopwatch,
    Unavailable,
    deviation,
)
from evoengine.hardware import DeviceLimits
from evoengine.problem import AttentionProblem, Problem

__all__ = ["WARM_CALLS", "Call", "CallGraph", "Contender", "Stopwatch", "Unavailable", "deviation", "prepare"]


def prepare(
    name: str, problem: Problem, inputs: Sequence[torch.Tensor], limits: DeviceLimits, clock: Stopwatch
) -> tuple[Call, str]:
    """The call of one competitor (a name of `messages.COMPETITORS`) and a line on how it was set up, perhaps empty.

    Raises:
        Unavailable: it is not installed or does not take this problem; others say so in a RuntimeError at their first
            call.
    """
    if not isinstance(problem, AttentionProblem):
        raise Unavailable("it computes attention")
    backends = sdpa.calls(problem, inputs)
    if name in backends:
        return backends[name], ""
    if name == "triton":
        return triton_flash.tune(problem, inputs, limits, clock)
    if name == "flex":
        return flex.flex(problem, inputs), f"torch.compile, {flex.MODE}"
    others: dict[str, Callable[[AttentionProblem, Sequence[torch.Tensor]], Call]] = {
        "flash_attn_4": installed.flash_attn_4,
        "flashinfer": installed.flashinfer,
    }
    return others[name](problem, inputs), ""
