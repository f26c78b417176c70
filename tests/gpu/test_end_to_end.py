"""The whole of evoengine on a real card, by its command line: search, kill, resume, export, the header in use."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from evoengine.archive.archive import Archive
from evoengine.build import Builder, BuildRequest
from evoengine.devices.cuda import find_gpu
from evoengine.export.header import HeaderFacts, parse_header
from evoengine.hardware import CARDS, DeviceLimits
from evoengine.problem import AttentionProblem, parse_shape
from evoengine.template import load_template, shipped
from evoengine.verdict import Artifact, Gate, Rejection

pytestmark = pytest.mark.gpu

SHAPE = "1,8,512,64"
NVCC = shutil.which("nvcc")


def evoengine(folder: Path, *arguments: str) -> str:
    """Run one command in `folder` and return its standard output."""
    command = [sys.executable, "-m", "evoengine", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def environment() -> dict[str, str]:
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A small search at the mission shape: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("searched")
    return folder, json.loads(evoengine(folder, "search", "--budget", "24", "--shape", SHAPE, "--json"))


def test_every_elite_is_right_and_confirmed_beside_sdpa(searched: tuple[Path, dict[str, Any]]) -> None:
    _, result = searched
    baselines = {one["name"]: one for one in result["baselines"] if "median_us" in one}

    assert 24 == result["spent"]
    assert "sdpa" in baselines
    assert 0 < len(result["elites"]) <= 8
    for elite in result["elites"]:
        assert elite["error"] < 1e-3
        assert elite["verdict"] in ("FASTER", "SAME", "SLOWER")
        ratio = baselines["sdpa"]["median_us"] / elite["median_us"]
        assert ratio == pytest.approx(elite["ratio_to_sdpa"], rel=0.02)
    assert [elite["median_us"] for elite in result["elites"]] == sorted(e["median_us"] for e in result["elites"])


@pytest.mark.skipif(NVCC is None, reason="no nvcc on PATH")
@pytest.mark.parametrize("limits", [None, "l4"])
def test_the_exported_header_builds_with_nvcc_and_computes_the_same(
    searched: tuple[Path, dict[str, Any]], tmp_path: Path, limits: str | None
) -> None:
    folder, result = searched
    best = next(one for one in result["elites"] if limits is None or fits(one, CARDS[limits]))
    header = tmp_path / "attention_config.h"
    evoengine(folder, "export", "-o", str(header), "--trial", str(best["trial"]))
    facts = parse_header(header.read_text())
    template = load_template(shipped("kernel_templates") / "attention")
    problem = parse_shape(AttentionProblem, SHAPE)
    gpu = find_gpu()
    assert gpu is not None, "marked gpu"
    with Builder(template, gpu.arch) as builder:
        request = BuildRequest(template.module.defines(best["config"], problem), best["smem_bytes"])
        (measured,) = builder.build([request])

    for arch in {gpu.arch} | {card.arch for card in CARDS.values() if fits(best, card)}:
        compile_with(header, template.kernel, arch, tmp_path / f"{arch}.cubin")

    assert isinstance(measured, Artifact)
    assert measured.cubin_sha256 == best["cubin_sha256"] == facts.cubin_sha256
    assert best["config"] == {name.removeprefix("EVO_"): facts.defines[name] for name in axes(facts)}
    expected = outputs(measured.cubin.read_bytes(), facts, problem)
    found = outputs((tmp_path / f"{gpu.arch}.cubin").read_bytes(), facts, problem)
    assert expected.isfinite().all()
    assert expected.equal(found)


def fits(elite: dict[str, Any], limits: DeviceLimits) -> bool:
    hopper = limits.compute_capability == (9, 0)
    return elite["smem_bytes"] <= limits.smem_per_block and (hopper or not elite["config"]["WGMMA"])


def axes(facts: HeaderFacts) -> list[str]:
    of_the_problem = ("EVO_HEAD_DIM", "EVO_CAUSAL", "EVO_DTYPE", "EVO_LSE", "EVO_SMEM_BYTES")
    return [name for name in facts.defines if name not in of_the_problem]


def compile_with(header: Path, kernel: Path, arch: str, cubin: Path) -> None:
    """As README says: the header forced in before the template's one translation unit."""
    command = ["nvcc", f"-arch={arch}", "-std=c++20", "-cubin", "-include", str(header), "-o", str(cubin), str(kernel)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def outputs(cubin: bytes, facts: HeaderFacts, problem: AttentionProblem) -> Any:
    """One launch of a cubin with the header's own geometry, on random inputs; the output tensor."""
    import torch

    from evoengine.devices.cuda.driver import Kernel, pack
    from evoengine.template import Launch

    template = load_template(shipped("kernel_templates") / "attention")
    torch.manual_seed(0)
    tensors = {
        tensor.name: torch.randn(tensor.shape, device="cuda").half()
        if tensor.role == "input"
        else torch.full(tensor.shape, float("nan"), device="cuda", dtype=torch.half)
        for tensor in template.module.tensors(problem)
    }
    values = {name.removeprefix("EVO_"): facts.defines[name] for name in axes(facts)}
    parameters = [
        ("pointer", tensors[str(one.value)].data_ptr()) if one.kind == "tensor" else (one.kind, one.value)
        for one in template.module.arguments(values, problem)
    ]
    kernel = Kernel(cubin, facts.entry)
    kernel.allow(facts.smem_bytes)
    launch = Launch(facts.grid_ctas, facts.block_threads, facts.smem_bytes)
    kernel.launch(launch, pack(parameters), torch.cuda.current_stream().cuda_stream)  # type: ignore[arg-type]
    torch.cuda.synchronize()
    kernel.unload()
    return tensors["o"]


def test_a_search_that_was_killed_goes_on_where_it_stopped(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "evoengine", "search", "--budget", "24", "--batch", "8", "--seed", "3", "-v"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        wait_for("#11 ", process)  # in the middle of the second batch
        process.send_signal(signal.SIGKILL)
    before = verdicts(tmp_path)
    result = json.loads(evoengine(tmp_path, "resume", "--json"))
    after = verdicts(tmp_path)

    assert 8 <= len(before) < 24
    assert before == {number: after[number] for number in before}
    assert list(range(24)) == sorted(after)
    assert 24 == result["spent"]
    assert result["elites"]


def wait_for(start: str, process: subprocess.Popen[str]) -> None:
    """Read progress up to a line that starts with `start`."""
    assert process.stderr is not None
    next(line for line in process.stderr if line.startswith(start))


def verdicts(folder: Path) -> dict[int, tuple[str, str]]:
    """Config and time of commit of every trial that has a verdict."""
    archive = Archive.open(str(folder / "studies" / "evoengine.db"))
    records = archive.open_study(None).records()
    archive.close()
    return {one.number: (one.config.digest, one.committed_at) for one in records if one.verdict is not None}


def test_a_study_made_without_a_gpu_is_measured_where_there_is_one(tmp_path: Path) -> None:
    gpu = find_gpu()
    names = [name for name, card in CARDS.items() if gpu is not None and card.name == gpu.name]
    if not names:
        pytest.skip(f"{gpu.name if gpu else 'no GPU'} is not among the named cards")
    options = ["--device", "none", "--target", names[0], "--budget", "10", "--batch", "10", "--json"]
    guessed = json.loads(evoengine(tmp_path, "search", *options))
    measured = json.loads(evoengine(tmp_path, "resume", "--json"))

    assert {"estimated": 10} == guessed["verdicts"]
    assert [] == guessed["measured"]
    assert {"measured": 10} == measured["verdicts"]
    assert measured["elites"]


def test_nvcc_builds_are_right_too(tmp_path: Path) -> None:
    if NVCC is None:
        pytest.skip("no nvcc on PATH")
    result = json.loads(evoengine(tmp_path, "search", "--budget", "8", "--compiler", "nvcc", "--json"))

    assert {"measured": 8} == result["verdicts"]
    assert result["toolchain"].startswith("nvcc")


def test_named_limits_hold_while_timing_on_another_card(tmp_path: Path) -> None:
    result = json.loads(evoengine(tmp_path, "search", "--budget", "12", "--limits", "l4", "--json"))

    assert 12 == result["spent"]
    assert all(row["smem_bytes"] <= 99 * 1024 for row in result["measured"])


def test_ctrl_c_prints_what_there_is_and_can_be_resumed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "evoengine", "search", "--budget", "64", "--batch", "8", "-v"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), **pipes) as process:  # type: ignore[call-overload]
        wait_for("#9 ", process)
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        out, _ = process.communicate(timeout=60)

    assert 130 == process.returncode
    assert "measured in the search" in out
    assert time.monotonic() - started < 30
    archive = Archive.open(str(tmp_path / "studies" / "evoengine.db"))
    records = archive.open_study(None).records()
    archive.close()
    assert {"done", "waiting"} >= {record.state for record in records}
    assert not [one for one in records if isinstance(one.verdict, Rejection) and one.verdict.gate is Gate.TIMEOUT]
