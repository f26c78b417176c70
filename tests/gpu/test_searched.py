"""What a search on a real card leaves, in use: profiled, built as a bundle, compiled, captured, for other lengths."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from measured_study import TEMPLATE
from test_end_to_end import environment, evoengine
from test_toolkit import needs_ncu

import evoengine as package
from evoengine.bottleneck import Figures, diagnose
from evoengine.devices.cuda.attention import Attention
from evoengine.devices.cuda.buffers import TORCH_DTYPES
from evoengine.devices.cuda.deployed import CudaCards
from evoengine.export.header import parse_header
from evoengine.oracle import InputSet, Observed, check, make_input_set
from evoengine.problem import AttentionProblem, parse_shape
from evoengine.template import Launch

pytestmark = pytest.mark.gpu

SHAPES = ("1,8,512,64", "1,8,1024,64", "1,8,777,128,kv_heads=2,dtype=bf16,causal")
TUNED = [parse_shape(AttentionProblem, shape) for shape in SHAPES]
OTHERS = [
    (TUNED[0], AttentionProblem(seq_q=333)),
    (TUNED[1], AttentionProblem(seq_q=900)),
    (TUNED[0], AttentionProblem(seq_q=1, seq_k=1023)),
    (TUNED[2], dataclasses.replace(TUNED[2], seq_q=501, seq_k=1301)),
]
"""Lengths without an elite, and the problem whose elite is for them."""
OURS = "error:evoengine"
"""A filter for tests in which torch and triton warn of deprecations of their own while they compile."""
ROUNDS = 5
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Model = Callable[[Tensors, bool], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Searched:
    """A finished study a shape, in the order of `SHAPES`, and the rows of their table."""

    folder: Path
    rows: list[dict[str, Any]]

    @property
    def studies(self) -> list[str]:
        return [row["study"] for row in self.rows]

    def load(self, **options: Any) -> Attention:
        return package.load(*self.studies, storage=str(self.folder / "studies" / "evoengine.db"), **options)


@dataclasses.dataclass(frozen=True)
class Asked:
    """A problem's random inputs, also on the card, and the truth for them."""

    problem: AttentionProblem
    known: InputSet
    inputs: Tensors

    @classmethod
    def of(cls, problem: AttentionProblem, seed: int = 5) -> Asked:
        known, dtype = make_input_set(TEMPLATE, problem, seed, "random"), TORCH_DTYPES[problem.dtype]
        q, k, v = (torch.from_numpy(known.inputs[name]).to("cuda", dtype) for name in "qkv")
        return cls(problem, known, (q, k, v))

    def answer(self, function: Attention) -> torch.Tensor:
        q, k, v = self.inputs
        return function(q, k, v, is_causal=self.problem.causal, enable_gqa=True)

    def wrong(self, found: torch.Tensor) -> str:
        """What the gate of a search would say of it; empty where it is right."""
        bits = found.contiguous().view(torch.int16).cpu().numpy().view(np.uint16)
        return check(TEMPLATE, self.known, Observed({"o": bits})).reason


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    folder = tmp_path_factory.mktemp("searched")
    shapes = [word for shape in SHAPES for word in ("--shape", shape)]
    rows = json.loads(evoengine(folder, "search", "--per-shape", "--budget", "6", *shapes, "--json"))["shapes"]
    assert [problem.label for problem in TUNED] == [row["shape"] for row in rows]
    return Searched(folder, rows)


@pytest.fixture(scope="module")
def tuned(searched: Searched) -> Attention:
    return searched.load()


@pytest.fixture(scope="module")
def calls(tuned: Attention) -> list[tuple[Asked, torch.Tensor]]:
    """Every tuned shape, and what the function gives for it uncompiled."""
    asked = [Asked.of(problem) for problem in TUNED]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of what is not tuned it would warn, and let PyTorch do it
        return [(one, one.answer(tuned)) for one in asked]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """Every launch of a tuned kernel, into a graph or not; replaying a graph is none."""
    launches: list[Launch] = []
    start = CudaCards.start

    def listen(cards: CudaCards, device: Any, kernel: Any, launch: Launch, parameters: Any) -> None:
        launches.append(launch)
        start(cards, device, kernel, launch, parameters)

    monkeypatch.setattr(CudaCards, "start", listen)
    return launches


# *** profile ***


@pytest.fixture(scope="module")
def profiled(searched: Searched) -> dict[str, Any]:
    """The fastest elite of the first study, as `profile` prints it."""
    command = [sys.executable, "-m", "evoengine", "profile", searched.studies[0], "--top", "1", "--json"]
    done = subprocess.run(command, cwd=searched.folder, env=environment(), capture_output=True, text=True, timeout=240)
    if "ERR_NVGPUCTRPERM" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert 0 == done.returncode, done.stderr
    (row,) = json.loads(done.stdout)["elites"]
    return dict(row)


def shown(row: dict[str, Any]) -> list[str]:
    """The cells of an elite in a table of profiles: its trial, and figures in percent."""
    names = ("sm_pct", "tensor_pct", "issue_pct", "l1_pct", "l2_pct", "dram_pct", "occupancy_pct")
    return [str(row["trial"]), *(f"{row['profile']['figures'][name]:.0f}" for name in names)]


@needs_ncu
def test_a_profile_of_the_fastest_elite_is_counted_and_stored(searched: Searched, profiled: dict[str, Any]) -> None:
    fastest, *others = json.loads(evoengine(searched.folder, "show", searched.studies[0], "--json"))["elites"]
    profile = profiled["profile"]
    figures = Figures(**profile["figures"])

    assert profile == fastest["profile"]
    assert all(one["profile"] is None for one in others)
    assert fastest["cubin_sha256"] == profile["cubin_sha256"]
    percentages = {name: value for name, value in profile["figures"].items() if name.endswith("_pct")}
    assert [] == [name for name, value in percentages.items() if value is None or not 0 <= value <= 101], percentages
    assert 1 < percentages["tensor_pct"], "it is made of mma instructions"
    assert diagnose(figures) == profile["diagnosis"]
    assert "\n" not in profile["diagnosis"]


@needs_ncu
def test_show_has_the_figures_and_the_line_that_says_what_bounds_it(
    searched: Searched, profiled: dict[str, Any]
) -> None:
    text = " ".join(evoengine(searched.folder, "show", searched.studies[0]).split())

    assert "profiled, % of the peak" in text
    assert " ".join(shown(profiled)) in text
    assert profiled["profile"]["diagnosis"] in text


@needs_ncu
def test_a_report_has_them_too(searched: Searched, profiled: dict[str, Any]) -> None:
    evoengine(searched.folder, "report", searched.studies[0], "-o", "report.md")
    lines = (searched.folder / "report.md").read_text().splitlines()

    (row,) = [line for line in lines if profiled["profile"]["diagnosis"] in line]
    assert row.startswith(f"| {' | '.join(shown(profiled))} |")


# *** bundle ***


@pytest.mark.skipif(not all(map(shutil.which, ("cmake", "nvcc"))), reason="cmake and nvcc are not both on PATH")
def test_the_bundle_of_a_study_builds_and_finds_its_kernel_right(searched: Searched) -> None:
    chosen, folder = searched.rows[0], searched.folder / "my bundle"
    evoengine(searched.folder, "export", chosen["study"], "--format", "bundle", "-o", folder.name)
    for command in (("cmake", "-B", "build"), ("cmake", "--build", "build", "-j", "4")):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, check=False)
        assert 0 == done.returncode, done.stdout + done.stderr
    tested = subprocess.run(
        ["ctest", "--test-dir", "build", "-V"], cwd=folder, capture_output=True, text=True, timeout=200, check=False
    )
    facts = parse_header((folder / "config.h").read_text())

    assert (chosen["study"], chosen["trial"], chosen["label"]) == (facts.study, facts.trial, facts.config)
    assert 0 == tested.returncode, tested.stdout
    assert "Skipped" not in tested.stdout
    assert "batch 1, heads 8/8, 512 queries, 512 keys" in tested.stdout
    assert 3 == tested.stdout.count("largest error")


# *** one function for several shapes ***


@pytest.mark.parametrize("nearest", [False, True])
def test_each_shape_has_its_own_kernel_and_is_right(
    searched: Searched, calls: list[tuple[Asked, torch.Tensor]], started: list[Launch], nearest: bool
) -> None:
    function = searched.load(nearest=nearest)
    found = [asked.answer(function) for asked, _ in calls]
    values = [row["config"] for row in searched.rows]

    assert [TEMPLATE.module.launch(*one) for one in zip(values, TUNED, strict=True)] == started
    assert [""] * len(calls) == [asked.wrong(one) for one, (asked, _) in zip(found, calls, strict=True)]
    assert all(expected.equal(one) for one, (_, expected) in zip(found, calls, strict=True))


def model_of(tuned: Attention) -> Model:
    def model(inputs: Tensors, causal: bool) -> torch.Tensor:
        q, k, v = inputs
        return tuned(q + 0.0, k, v, is_causal=causal, enable_gqa=True) * 2.0

    return model


@pytest.mark.filterwarnings("default", OURS)
@pytest.mark.parametrize(("mode", "dynamic"), [("default", True), ("reduce-overhead", None)])
def test_one_compiled_model_computes_the_same_at_every_shape(
    tuned: Attention, calls: list[tuple[Asked, torch.Tensor]], started: list[Launch], mode: str, dynamic: bool | None
) -> None:
    torch.compiler.reset()
    compiled = torch.compile(model_of(tuned), fullgraph=True, mode=mode, dynamic=dynamic)
    with torch.no_grad():
        for _ in range(ROUNDS):
            started.clear()
            for asked, expected in calls:
                found = compiled(asked.inputs, asked.problem.causal).clone()
                assert (expected * 2.0).equal(found), asked.problem.label

    assert (len(calls) if mode == "default" else 0) == len(started), "reduce-overhead replays graphs by now"


@pytest.mark.filterwarnings("default", OURS)
@pytest.mark.parametrize("compiling", [False, True], ids=["plain", "compiled"])
def test_one_graph_holds_every_shape(
    tuned: Attention, calls: list[tuple[Asked, torch.Tensor]], started: list[Launch], compiling: bool
) -> None:
    torch.compiler.reset()
    model = torch.compile(model_of(tuned), fullgraph=True) if compiling else model_of(tuned)
    held = [(Asked.of(asked.problem, 6).inputs, asked) for asked, _ in calls]

    def every() -> list[torch.Tensor]:
        return [model(inputs, asked.problem.causal) for inputs, asked in held]

    graph = torch.cuda.CUDAGraph()
    with torch.no_grad():
        for _ in range(2):
            every()  # compiles
        started.clear()
        with torch.cuda.graph(graph):
            out = every()
    assert len(calls) == len(started)
    for inputs, asked in held:
        for target, source in zip(inputs, asked.inputs, strict=True):
            target.copy_(source)
    for _ in range(3):
        for one in out:
            one.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert [True] * len(calls) == [(2.0 * want).equal(one) for one, (_, want) in zip(out, calls, strict=True)]


# *** lengths without an elite ***


@pytest.fixture(scope="module")
def nearest(searched: Searched) -> Attention:
    return searched.load(nearest=True)


@pytest.mark.parametrize(("near", "problem"), OTHERS, ids=[problem.label for _, problem in OTHERS])
def test_the_nearest_kernel_is_right_for_another_length_and_says_which_it_is(
    nearest: Attention, started: list[Launch], near: AttentionProblem, problem: AttentionProblem
) -> None:
    asked = Asked.of(problem)
    with pytest.warns(UserWarning, match="evoengine") as caught:
        found = asked.answer(nearest)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = asked.answer(nearest)

    where = f"no wisdom for this problem on {torch.cuda.get_device_name(0)}"
    assert [f"evoengine: {problem.label}: {where}: using that for {near.label}"] == [str(one.message) for one in caught]
    assert 2 == len(started), "PyTorch's own attention has none"
    assert "" == asked.wrong(found)
    assert found.equal(again)
