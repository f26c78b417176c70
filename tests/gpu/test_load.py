"""`evoengine.load` on a real card: the worker's bits, also on streams, in graphs and in compiled models."""

from __future__ import annotations

import dataclasses
import threading
import warnings
from functools import cache
from typing import Any

import pytest
import torch
from measured_study import TEMPLATE, make_chosen
from torch.nn.functional import scaled_dot_product_attention as sdpa

from evoengine.build import Builder, BuildRequest
from evoengine.devices.cuda import find_gpu
from evoengine.devices.cuda.attention import Attention
from evoengine.devices.cuda.buffers import ProblemBuffers
from evoengine.devices.cuda.driver import Kernel, pack
from evoengine.export.chosen import Chosen
from evoengine.export.gather import wisdom_of
from evoengine.hardware import DeviceLimits
from evoengine.problem import AttentionProblem
from evoengine.verdict import Artifact

pytestmark = pytest.mark.gpu

MISSION = AttentionProblem()
GROUPED = AttentionProblem(batch=2, heads=8, kv_heads=2, seq_q=333, head_dim=128, dtype="bf16", causal=True)
DECODE = AttentionProblem(batch=1, heads=8, seq_q=16, seq_k=4096)
CASES = [
    (MISSION, dict(WARPS_M=2, BLOCK_N=256, WARPS_KV=2, STAGES=1, PRODUCER_WARPS=4, SUM_MMA=1)),  # above 48 KB
    (GROUPED, dict(HEAVY_FIRST=1)),
    (DECODE, dict(WARPS_M=1, BLOCK_N=64, SPLIT_KV=16)),
]
Tensors = list[torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A function of one config on this card, inputs, and what the worker's way of launching gives for them."""

    problem: AttentionProblem
    function: Attention
    inputs: Tensors
    expected: torch.Tensor

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.function(*(inputs or self.inputs), is_causal=self.problem.causal, enable_gqa=True)


@cache
def card() -> DeviceLimits:
    gpu = find_gpu()
    assert gpu is not None, "marked gpu"
    return gpu


def on_this_card(problem: AttentionProblem, axes: dict[str, int]) -> tuple[Chosen, bytes]:
    """A config as if it had been tuned here, and its cubin."""
    gpu = card()
    made = make_chosen(problem, **axes)
    with Builder(TEMPLATE, gpu.arch) as builder:
        [built] = builder.build([BuildRequest(made.facts.defines, made.facts.smem_bytes)])
    assert isinstance(built, Artifact), built
    facts = dataclasses.replace(
        made.facts, device=gpu.name, arch=gpu.arch, compiler=built.compiler, cubin_sha256=built.cubin_sha256
    )
    return dataclasses.replace(made, facts=facts), built.cubin.read_bytes()


def launched_as_the_worker_does(
    chosen: Chosen, cubin: bytes, problem: AttentionProblem
) -> tuple[Tensors, torch.Tensor]:
    """Inputs and output of one launch between guard bands."""
    module = TEMPLATE.module
    buffers = ProblemBuffers(TEMPLATE, problem, module.inputs(problem, 5), torch.device("cuda", 0))
    buffers.poison(0)
    launch = module.launch(chosen.values, problem)
    kernel = Kernel(cubin, module.ENTRY)
    kernel.allow(launch.smem_bytes)
    stream = torch.cuda.current_stream().cuda_stream
    kernel.launch(launch, pack(buffers.arguments(module.arguments(chosen.values, problem))), stream)
    torch.cuda.synchronize()
    kernel.unload()
    return [one.values().clone() for one in buffers.inputs], buffers.outputs[0].values().clone()


@pytest.fixture(scope="module", params=CASES, ids=["mission", "grouped causal bf16", "split keys"])
def tuned(request: pytest.FixtureRequest) -> Tuned:
    return make_tuned(*request.param)


@pytest.fixture(scope="module")
def split() -> Tuned:
    return make_tuned(*CASES[2])


def make_tuned(problem: AttentionProblem, axes: dict[str, int]) -> Tuned:
    torch.zeros(1, device="cuda")  # the primary context, in which the worker's launch is
    chosen, cubin = on_this_card(problem, axes)
    function = Attention(wisdom_of([chosen]), TEMPLATE, {chosen.facts.cubin_sha256: cubin})
    return Tuned(problem, function, *launched_as_the_worker_does(chosen, cubin, problem))


def seq_before_heads(tensor: torch.Tensor) -> torch.Tensor:
    """The same values in (batch, seq, heads, head_dim) memory."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def misaligned(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat((tensor.new_zeros(1), tensor.flatten()))[1:].view(tensor.shape)


def test_it_computes_bit_for_bit_what_the_worker_does(tuned: Tuned) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = tuned()
    reference = sdpa(*(one.double() for one in tuned.inputs), is_causal=tuned.problem.causal, enable_gqa=True)

    assert tuned.expected.isfinite().all()
    assert tuned.expected.equal(found)
    torch.testing.assert_close(reference, found.double(), rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("changed", [seq_before_heads, misaligned])
def test_any_strides_give_the_same_bits(tuned: Tuned, changed: Any) -> None:
    assert tuned.expected.equal(tuned(*map(changed, tuned.inputs)))


def test_it_runs_on_the_current_stream_of_any_thread(tuned: Tuned) -> None:
    found: Tensors = []

    def run() -> None:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)  # 10 ms: what ran on another stream would be done before
            late = [torch.empty_like(one).copy_(one) for one in tuned.inputs]
            found.append(tuned(*late))
        stream.synchronize()

    torch.cuda.synchronize()
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()

    assert tuned.expected.equal(found[0])


def test_streams_do_not_share_scratch(split: Tuned) -> None:
    streams = [torch.cuda.Stream() for _ in range(4)]
    found: Tensors = []
    split()
    torch.cuda.synchronize()
    for _ in range(50):
        for stream in streams:
            with torch.cuda.stream(stream):
                found.append(split())
    torch.cuda.synchronize()

    assert 200 == sum(split.expected.equal(one) for one in found)


def capture(tuned: Tuned, inputs: Tensors) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        torch.zeros(1, device="cuda")  # of a graph that stays empty torch would warn
        for _ in range(3):
            out = tuned(*inputs)
    return graph, out


def test_a_captured_graph_computes_anew_on_every_replay(tuned: Tuned) -> None:
    tuned()  # loads the kernel
    inputs = [torch.zeros_like(one) for one in tuned.inputs]
    graph, out = capture(tuned, inputs)
    for target, source in zip(inputs, tuned.inputs, strict=True):
        target.copy_(source)
    for _ in range(3):
        out.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert tuned.expected.equal(out)


def test_graphs_that_are_replayed_at_the_same_time_do_not_share_scratch(split: Tuned) -> None:
    split()
    graphs = [capture(split, split.inputs) for _ in range(2)]
    streams = [torch.cuda.Stream() for _ in graphs]
    torch.cuda.synchronize()
    for _ in range(50):
        for (graph, _), stream in zip(graphs, streams, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
    torch.cuda.synchronize()

    assert all(split.expected.equal(out) for _, out in graphs)


def test_a_first_call_inside_a_capture_says_what_to_do() -> None:
    tuned = make_tuned(MISSION, dict(STAGES=2))
    with pytest.raises(RuntimeError, match=r"call it once before"):
        capture(tuned, tuned.inputs)

    assert tuned.expected.equal(tuned())


@pytest.mark.filterwarnings("default")  # torch and triton warn of deprecations of their own while they compile
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_model_computes_the_same(split: Tuned, mode: str) -> None:
    def model(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return split(q + 0.0, k, v) * 2.0

    compiled = torch.compile(model, fullgraph=True, mode=mode)
    with torch.no_grad():
        for _ in range(4):  # reduce-overhead captures a graph on the third
            found = compiled(*split.inputs).clone()
            assert (split.expected * 2.0).equal(found)


def test_another_shape_is_pytorchs_with_one_warning(tuned: Tuned) -> None:
    inputs = [one[:, :, : one.shape[2] // 2].contiguous() for one in tuned.inputs]
    with pytest.warns(UserWarning, match=r"PyTorch's own attention is used") as caught:
        found, again = (tuned(*inputs) for _ in range(2))

    assert 1 == sum("evoengine" in str(one.message) for one in caught)
    assert found.equal(again)
    assert found.equal(sdpa(*inputs, is_causal=tuned.problem.causal, enable_gqa=True))


def test_a_config_of_another_card_is_built_for_this_one() -> None:
    function = Attention(wisdom_of([make_chosen(MISSION, "a10g")]), TEMPLATE, {})
    here = make_tuned(MISSION, {})
    with pytest.warns(UserWarning, match=r"on NVIDIA A10G"):
        found = function(*here.inputs)

    assert here.expected.equal(found)
