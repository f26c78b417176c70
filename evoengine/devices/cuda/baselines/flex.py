"""FlexAttention, compiled and autotuned by torch.compile for exactly this problem."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evoengine.devices.cuda.baselines.call import Call
from evoengine.problem import AttentionProblem

MODE = "max-autotune-no-cudagraphs"
"""Tries every tile config that PyTorch ships for the card; the graph around the calls is ours."""


def flex(problem: AttentionProblem, inputs: Sequence[torch.Tensor]) -> Call:
    """FlexAttention on Q, K, V; a causal mask as a block mask, so that hidden tiles are skipped."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    query, key, value = inputs
    mask = None
    if problem.causal:
        diagonal = problem.diagonal

        def visible(batch: torch.Tensor, head: torch.Tensor, row: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            return key <= row + diagonal

        mask = create_block_mask(visible, None, None, problem.seq_q, problem.seq_k, device=query.device)
    function = torch.compile(flex_attention, mode=MODE, dynamic=False, fullgraph=True)

    def attention() -> torch.Tensor:
        output: torch.Tensor = function(
            query,
            key,
            value,
            block_mask=mask,
            scale=problem.scale,
            enable_gqa=problem.kv_heads != problem.heads,
        )
        return output

    return attention
