"""What a tuned kernel is compared with: PyTorch's scaled dot-product attention, default and backend by backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from evoengine.oracle import InputSet
from evoengine.problem import AttentionProblem, Problem

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
WARM_CALLS = 3
"""cuDNN plans and cuBLAS handles are made in a first call, which a graph capture would refuse."""

Call = Callable[[], torch.Tensor]


class CallGraph:
    """A CUDA graph of `launches` calls of a torch function, the counterpart of `driver.LaunchGraph`."""

    def __init__(self, function: Call, launches: int, stream: torch.cuda.Stream) -> None:
        self.launches = launches
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: the default mode makes any other thread's CUDA call an error
        with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            for _ in range(launches):
                function()

    def replay(self) -> None:
        self._graph.replay()

    def destroy(self) -> None:
        self._graph.reset()


def calls(problem: Problem, inputs: Sequence[torch.Tensor]) -> dict[str, Call]:
    """Baselines by name for attention with inputs Q, K, V; none for a problem that PyTorch has no function for."""
    if not isinstance(problem, AttentionProblem):
        return {}
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


def errors(output: torch.Tensor, input_set: InputSet) -> tuple[float, float, int]:
    """(largest absolute error, relative Frobenius error, non-finite values) against the float64 reference.

    A row that sees no key is NaN in some backends and zero in the reference: counted, and left out of the errors.
    """
    truth = next(iter(input_set.reference.values()))
    values = output.double().cpu().numpy().reshape(truth.shape)
    finite = np.isfinite(values)
    error = np.where(finite, values - truth, 0.0)
    norm = float(np.sqrt(np.square(truth).sum())) or 1.0
    return float(np.abs(error).max()), float(np.sqrt(np.square(error).sum())) / norm, int((~finite).sum())


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
