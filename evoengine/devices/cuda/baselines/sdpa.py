"""PyTorch's scaled dot-product attention, its own choice of backend and backend by backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from evoengine.devices.cuda.baselines.call import Call
from evoengine.problem import AttentionProblem

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


def calls(problem: AttentionProblem, inputs: Sequence[torch.Tensor]) -> dict[str, Call]:
    """Every backend by name, for inputs Q, K, V."""
    query, key, value = inputs
    mask = _mask(problem, query.device)

    def attention() -> torch.Tensor:
        return functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=problem.causal and mask is None,
            scale=problem.scale,
            enable_gqa=problem.kv_heads != problem.heads,
        )

    def only(backend: SDPBackend) -> Call:
        def chosen() -> torch.Tensor:
            with sdpa_kernel(backend):
                return attention()

        return chosen

    return {"sdpa": attention, **{f"sdpa_{name}": only(backend) for name, backend in BACKENDS.items()}}


def _mask(problem: AttentionProblem, device: torch.device) -> torch.Tensor | None:
    """None where `is_causal` (top-left) or no mask says it all.

    FlashAttention's bottom-right mask keeps its fast path through `causal_lower_right`; any other diagonal needs a
    materialised mask, which the flash backend does not take.
    """
    if not problem.causal or problem.diagonal == 0:
        return None
    if problem.diagonal == problem.seq_k - problem.seq_q and problem.diagonal > 0:
        bias: torch.Tensor = causal_lower_right(problem.seq_q, problem.seq_k)
        return bias
    every = torch.ones(problem.seq_q, problem.seq_k, dtype=torch.bool, device=device)
    return every.tril(problem.diagonal)
