"""Attention libraries that a user may have installed beside evoengine; none of them is a dependency."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from evoengine.devices.cuda.baselines.call import Call, Unavailable
from evoengine.problem import AttentionProblem


def flash_attn_4(problem: AttentionProblem, inputs: Sequence[torch.Tensor]) -> Call:
    """FlashAttention-4's CuTe kernels (package flash-attn-4, sm_90 and newer); tensors are (batch, seq, heads, dim).

    Raises:
        Unavailable: not installed, or a mask that it does not have.
    """
    try:
        from flash_attn.cute import flash_attn_func
    except ImportError as error:
        raise _missing("flash-attn-4", error) from error
    _bottom_right_only(problem)
    query, key, value = (tensor.transpose(1, 2).contiguous() for tensor in inputs)

    def attention() -> torch.Tensor:
        result: Any = flash_attn_func(query, key, value, softmax_scale=problem.scale, causal=problem.causal)
        output: torch.Tensor = result[0] if isinstance(result, tuple) else result
        return output.transpose(1, 2)

    return attention


def flashinfer(problem: AttentionProblem, inputs: Sequence[torch.Tensor]) -> Call:
    """FlashInfer's prefill of one sequence, with the backend that it chooses itself; tensors are (seq, heads, dim).

    Raises:
        Unavailable: not installed, a batch, or a mask that it does not have.
    """
    try:
        from flashinfer import single_prefill_with_kv_cache
    except ImportError as error:
        raise _missing("flashinfer-python", error) from error
    if problem.batch != 1:
        raise Unavailable(f"its prefill function takes one sequence, this batch has {problem.batch}")
    _bottom_right_only(problem)
    query, key, value = (tensor[0].transpose(0, 1).contiguous() for tensor in inputs)

    def attention() -> torch.Tensor:
        output: torch.Tensor = single_prefill_with_kv_cache(
            query, key, value, causal=problem.causal, sm_scale=problem.scale
        )
        return output.transpose(0, 1).unsqueeze(0)

    return attention


def _missing(package: str, error: ImportError) -> Unavailable:
    return Unavailable(f"{package} is not installed or does not load ({error})")


def _bottom_right_only(problem: AttentionProblem) -> None:
    """Both libraries align a causal mask with the last key; for equal lengths that is every other library's too."""
    if problem.causal and problem.diagonal != problem.seq_k - problem.seq_q:
        raise Unavailable(f"its causal mask has diagonal {problem.seq_k - problem.seq_q}, not {problem.diagonal}")
