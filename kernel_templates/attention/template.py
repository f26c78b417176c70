"""The host's side of the attention template, as `evoengine.template.TemplateModule` asks for it."""

from __future__ import annotations

import math

from evoengine.problem import AttentionProblem
from evoengine.space import Values
from evoengine.template import Argument

from .checks import check_problems, full_checks, small_problems
from .cta_work import work
from .geometry import PARTIAL_ROWS, grid, launch, partial_rows, scratch, smem_bytes, tensors
from .input_kinds import inputs
from .truth import baseline, reference

__all__ = [
    "AXES",
    "ENTRY",
    "LAUNCH_AXES",
    "PROBLEM",
    "arguments",
    "baseline",
    "check_problems",
    "defines",
    "full_checks",
    "grid",
    "inputs",
    "launch",
    "reference",
    "scratch",
    "small_problems",
    "tensors",
    "work",
]

ENTRY = "evo_attention"
PROBLEM = AttentionProblem

AXES = (
    "WARPS_M",
    "ROW_TILES",
    "BLOCK_N",
    "WARPS_KV",
    "STAGES",
    "PRODUCER_WARPS",
    "MBARRIER",
    "UNROLL",
    "LATE_LOADS",
    "Q_IN_REGS",
    "OVERLAP",
    "LAZY_RESCALE",
    "SUM_MMA",
    "MASK_SPLIT",
    "ONE_TILE",
    "HEAVY_FIRST",
    "SPLIT_KV",
    "MIN_CTAS",
    "WGMMA",
)
LAUNCH_AXES = (
    "WARPS_M",
    "ROW_TILES",
    "BLOCK_N",
    "WARPS_KV",
    "STAGES",
    "PRODUCER_WARPS",
    "MBARRIER",
    "HEAVY_FIRST",
    "SPLIT_KV",
    "MIN_CTAS",
)


def defines(values: Values, problem: AttentionProblem) -> dict[str, int]:
    macros = {f"EVO_{name}": values[name] for name in AXES}
    macros["EVO_HEAD_DIM"] = problem.head_dim
    macros["EVO_CAUSAL"] = int(problem.causal)
    macros["EVO_DTYPE"] = ("fp16", "bf16").index(problem.dtype)
    macros["EVO_LSE"] = int(problem.lse)
    macros["EVO_SMEM_BYTES"] = smem_bytes(values, problem.head_dim)
    return macros


def arguments(values: Values, problem: AttentionProblem) -> tuple[Argument, ...]:
    split = values["SPLIT_KV"] > 1
    if partial_rows(values, problem) > PARTIAL_ROWS:
        raise ValueError(f"{partial_rows(values, problem)} rows of partial results, scratch holds {PARTIAL_ROWS}")
    return (
        *(Argument("tensor", tensor.name) for tensor in tensors(problem) if tensor.role != "scratch" or split),
        Argument("int32", problem.seq_q),
        Argument("int32", problem.seq_k),
        Argument("int32", problem.kv_heads),
        Argument("int32", problem.heads // problem.kv_heads),
        Argument("int32", problem.diagonal),
        Argument("float32", problem.scale * math.log2(math.e)),
    )
