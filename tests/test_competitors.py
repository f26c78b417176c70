"""The competitors of `compare` as far as they run without a GPU: setting up, layouts, masks, and honest refusals."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from fake_card import FakeCard
from torch.nn import functional

from evoengine.devices.cuda import baselines, windows
from evoengine.devices.cuda.baselines import Unavailable, flex, installed, triton_flash
from evoengine.devices.cuda.messages import COMPETITORS, Working
from evoengine.devices.cuda.serve import FatalCudaError
from evoengine.hardware import card
from evoengine.problem import AttentionProblem
from evoengine.template import load_template, shipped

TEMPLATE = load_template(shipped("kernel_templates") / "attention")
PROBLEMS = [
    AttentionProblem(batch=1, heads=4, seq_q=32),
    AttentionProblem(batch=1, heads=4, kv_heads=2, seq_q=24, seq_k=40, causal=True, diagonal=16),
]
MISSION = AttentionProblem()


def tensors(problem: AttentionProblem) -> list[torch.Tensor]:
    arrays = TEMPLATE.module.inputs(problem, 3)
    return [torch.from_numpy(arrays[name]).half() for name in ("q", "k", "v")]


def error(output: torch.Tensor, problem: AttentionProblem) -> float:
    truth = TEMPLATE.module.reference(problem, TEMPLATE.module.inputs(problem, 3))["o"]
    assert tuple(output.shape) == truth.shape
    return float(np.abs(output.double().numpy() - truth).max())


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.label)
def test_flex_attention_is_given_the_problem_that_it_is_compared_on(
    problem: AttentionProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda function, **given: options.append(given) or function)
    call = flex.flex(problem, tensors(problem))

    assert error(call(), problem) < 2e-3
    assert "max-autotune-no-cudagraphs" == options[0]["mode"]


def expected_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, causal: bool) -> torch.Tensor:
    """(batch, seq, heads, dim) with a bottom-right mask, as both libraries have it."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
    mask = mask.tril(k.shape[2] - q.shape[2]) if causal else mask
    return functional.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True).transpose(1, 2)


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins with the libraries' own signatures and tensor layouts."""

    def flash_attn_func(q: Any, k: Any, v: Any, softmax_scale: float | None = None, causal: bool = False) -> Any:
        return expected_attention(q, k, v, softmax_scale or 0.0, causal), None

    def single_prefill_with_kv_cache(q: Any, k: Any, v: Any, *, causal: bool, sm_scale: float) -> Any:
        return expected_attention(q[None], k[None], v[None], sm_scale, causal)[0]

    cute, flashinfer = ModuleType("flash_attn.cute"), ModuleType("flashinfer")
    cute.flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
    flashinfer.single_prefill_with_kv_cache = single_prefill_with_kv_cache  # type: ignore[attr-defined]
    for name, module in {"flash_attn": ModuleType("flash_attn"), "flash_attn.cute": cute}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "flashinfer", flashinfer)


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.label)
def test_installed_libraries_get_their_own_layout(problem: AttentionProblem) -> None:
    assert error(installed.flash_attn_4(problem, tensors(problem))(), problem) < 2e-3
    assert error(installed.flashinfer(problem, tensors(problem))(), problem) < 2e-3


@pytest.mark.usefixtures("libraries")
def test_what_a_library_does_not_have_is_said() -> None:
    top_left = AttentionProblem(seq_q=8, seq_k=16, causal=True)
    batch = AttentionProblem(batch=2, seq_q=8)

    with pytest.raises(Unavailable, match="diagonal 8, not 0"):
        installed.flash_attn_4(top_left, tensors(top_left))
    with pytest.raises(Unavailable, match="this batch has 2"):
        installed.flashinfer(batch, tensors(batch))


@pytest.mark.parametrize(
    ("module", "name"), [("triton", "triton"), ("flash_attn.cute", "flash_attn_4"), ("flashinfer", "flashinfer")]
)
def test_a_library_that_is_not_there_is_a_reason(monkeypatch: pytest.MonkeyPatch, module: str, name: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    clock: Any = None

    with pytest.raises(Unavailable, match="is not installed"):
        baselines.prepare(name, MISSION, tensors(MISSION), card("l4"), clock)


def test_the_config_list_loses_only_what_cannot_win() -> None:
    every = triton_flash.tiles(MISSION, card("h200"))
    on_l4 = triton_flash.tiles(AttentionProblem(seq_q=4096, head_dim=128), card("l4"))
    short = triton_flash.tiles(AttentionProblem(seq_q=64), card("h200"))

    assert 90 <= len(every) == len(set(every)) <= 108
    assert triton_flash.Tile(64, 64, 4, 4) in every
    assert triton_flash.Tile(128, 128, 2, 1) not in every, "512 registers a thread"
    assert {32, 64, 128} == {tile.block_m for tile in on_l4} == {tile.block_n for tile in on_l4}
    assert triton_flash.Tile(128, 128, 8, 4) not in on_l4, "three buffers of K and V are 192 KB"
    assert triton_flash.Tile(128, 128, 8, 2) in on_l4
    assert 2 == max(tile.stages for tile in short if tile.block_n == 32)
    assert 1 == max(tile.stages for tile in short if tile.block_n == 64)


class Clock:
    """Times by tile: an estimate first, then windows taken in turn."""

    def __init__(self, medians: dict[str, float]) -> None:
        self.medians = medians
        self.timed_again = 0

    def estimate_call(self, call: Any) -> float:
        return 1.05 * self.medians.get(call(), 9.0)

    def median_us(self, calls: list[Any]) -> list[float]:
        self.timed_again = len(calls)
        return [self.medians.get(call(), 9.0) for call in calls]


def test_the_triton_opponent_is_the_best_of_all_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []

    def launcher(problem: Any, inputs: Any, output: Any, tile: triton_flash.Tile) -> Any:
        def launch(only_compile: bool) -> str:
            if only_compile:
                compiled.append(str(tile))
            elif tile.stages == 4:
                raise RuntimeError("out of resource: shared memory")
            return str(tile)

        return launch

    triton: Any = ModuleType("triton")
    triton.__version__ = "3.6.0"
    triton.AsyncCompileMode = lambda pool, ignore_errors: nullcontext()
    monkeypatch.setitem(sys.modules, "triton", triton)
    monkeypatch.setattr(triton_flash, "launcher", launcher)
    best = str(triton_flash.Tile(64, 32, 4, 3))
    clock = Clock({best: 5.0, str(triton_flash.Tile(64, 64, 4, 3)): 5.1, str(triton_flash.Tile(64, 64, 4, 4)): 1.0})
    call, about = triton_flash.tune(MISSION, tensors(MISSION), card("h200"), clock)

    every = triton_flash.tiles(MISSION, card("h200"))
    failing = sum(tile.stages == 4 for tile in every)
    assert [str(tile) for tile in every] == compiled
    assert best == call()
    assert f"{best}: the best of {len(every)} configs, {failing} of them do not run; triton 3.6.0" == about
    assert triton_flash.FINALISTS == clock.timed_again

    monkeypatch.setattr(triton_flash, "tiles", lambda *_: [triton_flash.Tile(64, 64, 4, 4)])
    with pytest.raises(Unavailable, match="none of 1 configs runs: RuntimeError: out of resource"):
        triton_flash.tune(MISSION, tensors(MISSION), card("h200"), clock)


class Line:
    """A line-up over a fake card, with competitors that behave as `acts` says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, acts: dict[str, Any]) -> None:
        self.told: list[Working] = []
        self.card: Any = FakeCard(0)
        self.card.limits = card("l4")
        self.synchronized = 0
        self.card.synchronize = self._synchronize

        def prepare(name: str, *_: Any) -> Any:
            if isinstance(acts[name], Exception):
                raise acts[name]
            return acts[name], f"about {name}"

        monkeypatch.setattr(baselines, "prepare", prepare)
        monkeypatch.setattr(windows.Windows, "of_call", lambda self, call: f"window of {call()}")
        self.ready, self.unavailable = windows.Windows(self.card, self.told.append).line_up(list(acts), MISSION, [])

    def _synchronize(self) -> None:
        self.synchronized += 1


def test_who_runs_is_timed_and_who_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> str:
        raise RuntimeError("\nNo available kernel. Aborting execution.\nmore")

    calls = []

    def runs() -> str:
        calls.append(1)
        return "one"

    acts = {"sdpa": runs, "sdpa_cudnn": fails, "flex": ValueError("no such layout"), "triton": Unavailable("no triton")}
    line = Line(monkeypatch, acts)

    assert ["sdpa"] == list(line.ready)
    assert ("window of one", "about sdpa") == (line.ready["sdpa"].window, line.ready["sdpa"].about)
    assert baselines.WARM_CALLS + 1 == len(calls), "warm calls, then the capture"
    assert {
        "sdpa_cudnn": "No available kernel. Aborting execution.",
        "flex": "ValueError: no such layout",
        "triton": "no triton",
    } == line.unavailable
    assert 3 == line.synchronized, "a failure that is the card's must surface at once"
    assert [Working("prepare", name) for name in acts] == line.told


def test_a_fault_of_the_card_is_no_reason_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FatalCudaError):
        Line(monkeypatch, {"flex": FatalCudaError("CUDA_ERROR_ILLEGAL_ADDRESS")})


def test_every_competitor_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("triton", "flash_attn.cute", "flashinfer"):
        monkeypatch.setitem(sys.modules, module, None)
    clock: Any = None
    outcome = {}
    for name in COMPETITORS:
        try:
            outcome[name] = callable(baselines.prepare(name, MISSION, tensors(MISSION), card("l4"), clock)[0])
        except Unavailable:
            outcome[name] = False

    assert [True] * 6 + [False] * 3 == list(outcome.values())
