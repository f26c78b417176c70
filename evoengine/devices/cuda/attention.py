"""Tuned attention kernels as one function with the signature of PyTorch's `scaled_dot_product_attention`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from evoengine.build import Builder, BuildRequest
from evoengine.devices.cuda.buffers import TORCH_DTYPES
from evoengine.devices.cuda.deployed import Cards, CudaCards, Deployed
from evoengine.errors import UserError
from evoengine.export.wisdom import Advice, Wisdom, lookup, problem_macros
from evoengine.problem import AttentionProblem, problem_fields
from evoengine.template import Template
from evoengine.verdict import Rejection

DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


class Call(NamedTuple):
    """One call, of what a kernel can do."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    is_causal: bool
    scale: float | None
    enable_gqa: bool

    @property
    def seen(self) -> tuple[Any, ...]:
        """All that decides which kernel it goes to."""
        return (*((one.device, one.dtype, one.shape) for one in self[:3]), *self[3:])

    def problem(self) -> AttentionProblem:
        """What is asked.

        Raises:
            UserError: nothing that a kernel here does.
        """
        query, key, value, is_causal, scale, enable_gqa = self
        if not query.dim() == key.dim() == value.dim() == 4:
            raise UserError("tensors are not of shape (batch, heads, seq, head_dim)")
        if not query.device == key.device == value.device or not query.dtype == key.dtype == value.dtype:
            raise UserError("tensors differ in device or dtype")
        batch, heads, seq_q, head_dim = query.shape
        if key.shape != value.shape or (key.shape[0], key.shape[3]) != (batch, head_dim):
            raise UserError(f"key of {tuple(key.shape)} and value of {tuple(value.shape)} do not go with it")
        if key.shape[1] != heads and not enable_gqa:
            raise UserError(f"{heads} heads on {key.shape[1]} key heads need enable_gqa=True")
        if min(query.numel(), key.numel()) == 0:
            raise UserError("a tensor is empty")
        if scale == 0.0:
            raise UserError("scale=0: must be positive")  # to AttentionProblem, 0 is 1/sqrt(head_dim)
        return AttentionProblem(
            batch=batch,
            heads=heads,
            kv_heads=key.shape[1],
            seq_q=seq_q,
            seq_k=key.shape[2],
            head_dim=head_dim,
            dtype=DTYPE_NAMES.get(query.dtype, str(query.dtype)),
            causal=is_causal,
            scale=head_dim**-0.5 if scale is None else scale,
        )


class Attention:
    """O = softmax(scale Q Kᵀ) V for query (batch, heads, seq_q, head_dim), key and value (batch, kv_heads, seq_k, ...).

    Called as `torch.nn.functional.scaled_dot_product_attention` is. On a shape that was tuned it launches that kernel
    on the current stream; the result is contiguous. For any other, and for masks, dropout and gradients, it is
    PyTorch's own function, with a warning once for each shape or reason. Tensors that are not contiguous, as (batch,
    seq, heads, head_dim) seen through `transpose(1, 2)`, are copied first: these kernels know one layout.

    The first call of a shape loads its kernel, or builds it where the card is of another architecture than that which
    it was tuned on: call it once before capturing it into a CUDA graph. Under `torch.compile` it is one operator.

    Args:
        sizes: use the kernel that was tuned for the nearest size where there is none for a shape. It is right for every
            length, and may be slower than PyTorch's.
    """

    def __init__(
        self,
        wisdom: Wisdom,
        template: Template,
        cubins: Mapping[str, bytes],
        *,
        sizes: bool = False,
        cards: Cards | None = None,
    ) -> None:
        self._wisdom = wisdom
        self._template = template
        self._cubins = cubins
        self._sizes = sizes
        self._cards = cards or CudaCards()
        self._ready: dict[Any, Deployed | None] = {}
        self._kernels: dict[tuple[torch.device, str], Any] = {}
        self._warned: set[str] = set()
        self._number = len(_LOADED)
        _LOADED.append(self)

    def __repr__(self) -> str:
        """What is tuned in it, for a session at a prompt."""
        rows = (f"{row.provenance['shape']} on {row.device}: {1e3 * row.time:.3f} us" for row in self._wisdom.rows)
        return f"<evoengine attention, {'; '.join(rows)}>"

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        compiling = torch.compiler.is_compiling()
        unknown = _unknown(attn_mask, dropout_p, query, key, value)
        if unknown:
            if not compiling:
                self._warn(f"{unknown}: PyTorch's own attention is used", stacklevel=3)
            return functional.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        if compiling:  # not in eager mode: there the operator would cost eight times what allocating the output does
            made: torch.Tensor = _operator(query, key, value, is_causal, scale, enable_gqa, self._number)
            return made
        return self.run(Call(query, key, value, is_causal, scale, enable_gqa))

    def run(self, call: Call) -> torch.Tensor:
        """A call that asks for nothing beyond what kernels do."""
        seen = call.seen
        if seen not in self._ready:
            lines: list[str] = []
            self._ready[seen] = self._prepare(call, lines)
            for line in lines:
                self._warn(line, stacklevel=4)
        kernel = self._ready[seen]
        if kernel is not None:
            return kernel(call.query, call.key, call.value)
        return functional.scaled_dot_product_attention(
            call.query, call.key, call.value, is_causal=call.is_causal, scale=call.scale, enable_gqa=call.enable_gqa
        )

    def _prepare(self, call: Call, lines: list[str]) -> Deployed | None:
        """The kernel for a call, None where there is none; `lines` are what the user should know of it."""
        device = call.query.device
        try:
            if not self._cards.serves(device):
                raise UserError(f"tensors are on {device}")
            problem = call.problem()
            advice = self._advise(problem, self._cards.name(device))
            lines += [f"{problem.label}: {line}" for line in advice.warnings]
            return self._deploy(problem, advice, device, lines)
        except UserError as error:
            shape = "x".join(map(str, call.query.shape))
            lines.append(f"query of {shape}: {error}: PyTorch's own attention is used")
            return None

    def _advise(self, problem: AttentionProblem, card: str) -> Advice:
        default = dict(zip(self._wisdom.parameters, self._wisdom.default, strict=True))
        macros = problem_macros(self._template.module.defines(default, problem), self._wisdom.parameters)
        validators = {"template_digest": self._template.digest}
        fields = problem_fields(problem)
        advice = lookup(self._wisdom, fields, macros, card, validators, default, sizes=self._sizes)
        if advice.row is None:
            raise UserError(f"no config for {problem.label} was tuned on {card} or any other card")
        return advice

    def _deploy(self, problem: AttentionProblem, advice: Advice, device: torch.device, lines: list[str]) -> Deployed:
        """Load the kernel.

        Raises:
            UserError: it cannot be built here, or not be launched on this problem.
            RuntimeError: within a capture.
        """
        if self._cards.capturing(device):
            raise RuntimeError(
                f"the first call for {problem.label} is inside a CUDA graph capture, which can load no kernel: call it "
                "once before"
            )
        image, digest = self._image(problem, advice, self._cards.arch(device), lines)
        module = self._template.module
        if (device, digest) not in self._kernels:
            smem_bytes = module.launch(advice.values, problem).smem_bytes
            self._kernels[device, digest] = self._cards.load(device, image, module.ENTRY, smem_bytes)
        kernel = self._kernels[device, digest]
        try:
            return Deployed(self._template, problem, advice.values, kernel, device, self._cards)
        except ValueError as error:
            raise UserError(f"the nearest config does not go with {problem.label} ({error})") from error

    def _image(self, problem: AttentionProblem, advice: Advice, arch: str, lines: list[str]) -> tuple[bytes, str]:
        """The cubin that was measured, where it is here and for this architecture; else one built now. And its hash."""
        assert advice.row is not None, "the default config was refused before"
        told = advice.row.provenance
        wanted = str(told["cubin_sha256"])
        if told["arch"] == arch and wanted in self._cubins:
            return self._cubins[wanted], wanted
        module = self._template.module
        smem_bytes = module.launch(advice.values, problem).smem_bytes
        with Builder(self._template, arch, jobs=1) as builder:
            [built] = builder.build([BuildRequest(module.defines(advice.values, problem), smem_bytes)])
        if isinstance(built, Rejection):
            raise UserError(f"the config for {told['shape']} does not build for {arch} ({built.reason})")
        if told["arch"] == arch and built.cubin_sha256 != wanted:
            was = advice.row.validators.get("compiler")
            lines.append(f"{told['shape']}: {built.compiler} makes another cubin than {was}, which was measured")
        return built.cubin.read_bytes(), built.cubin_sha256

    def _warn(self, line: str, stacklevel: int) -> None:
        if line not in self._warned:
            self._warned.add(line)
            warnings.warn(f"evoengine: {line}", stacklevel=stacklevel)


_LOADED: list[Attention] = []
"""Every function there is, by the number that the operator in a compiled graph knows it by."""


SCHEMA = "(Tensor query, Tensor key, Tensor value, bool is_causal, float? scale, bool enable_gqa, int number) -> Tensor"


@torch.library.custom_op("evoengine::attention", mutates_args=(), schema=SCHEMA)
def _operator(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    number: int,
) -> torch.Tensor:
    # PyTorch's own function may answer in another layout than the one that was promised.
    return _LOADED[number].run(Call(query, key, value, is_causal, scale, enable_gqa)).contiguous()


@_operator.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object) -> torch.Tensor:
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


def _unknown(
    mask: torch.Tensor | None, dropout_p: float, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> str:
    """What is asked for that no kernel here does; empty where there is nothing."""
    if mask is not None:
        return "attn_mask is given"
    if dropout_p:
        return "dropout_p is given"
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        return "gradients are recorded"
    return "tensors are nested" if query.is_nested or key.is_nested or value.is_nested else ""
