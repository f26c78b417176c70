"""`compare` on a real card: a right Triton opponent, and every kind of WHAT in one run with every competitor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evoengine.problem import AttentionProblem, parse_shape
from evoengine.template import load_template, shipped

pytestmark = pytest.mark.gpu

pytest.importorskip("triton", reason="triton comes with CUDA builds of torch")


def evoengine(folder: Path, *arguments: str, code: int = 0) -> str:
    """Run one command in `folder` and return its standard output."""
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "evoengine", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=540)
    assert done.returncode == code, f"{' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.filterwarnings("default")  # what torch warns of on this machine is not ours
@pytest.mark.parametrize(
    "shape",
    [
        "1,8,512,64",
        "1,8,512,64,causal",
        "2,4,300,64,kv_heads=2",
        "2,4,97,128,seq_k=203,causal,dtype=bf16",
        "2,4,203,128,seq_k=331,causal,diagonal=128,kv_heads=1",
        "1,2,130,64,causal,diagonal=-3",
        "1,2,64,64,seq_k=5,dtype=bf16",
    ],
)
def test_triton_flash_computes_attention(shape: str) -> None:
    import torch

    from evoengine.devices.cuda.baselines.triton_flash import Tile, launcher

    module = load_template(shipped("kernel_templates") / "attention").module
    problem = parse_shape(AttentionProblem, shape)
    arrays = module.inputs(problem, 5)
    truth = torch.from_numpy(module.reference(problem, arrays)["o"])
    dtype = torch.float16 if problem.dtype == "fp16" else torch.bfloat16
    inputs = [torch.from_numpy(arrays[name]).to("cuda", dtype) for name in ("q", "k", "v")]

    for tile in (Tile(64, 64, 4, 2), Tile(32, 128, 2, 1), Tile(128, 32, 8, 3), Tile(128, 128, 8, 2)):
        stale = torch.full_like(inputs[0], float("nan"))
        output = launcher(problem, inputs, stale, tile)(False).double().cpu()
        assert output.isfinite().all(), tile
        error = float((output - truth).norm() / truth.norm())
        assert error < (6e-4 if problem.dtype == "fp16" else 5e-3), tile
        unseen = (truth == 0).all(dim=-1)
        assert not output[unseen].any(), "a row that sees no key is zero"


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """A small search, its study and its exported header compared at the mission shape: (search, comparison)."""
    folder = tmp_path_factory.mktemp("compared")
    searched = json.loads(evoengine(folder, "search", "--budget", "24", "--json"))
    best = str(searched["elites"][0]["trial"])
    evoengine(folder, "export", "-o", "best.h", "--trial", best)
    evoengine(folder, "compare", searched["study"], "best.h", "-o", "compare.json")
    return searched, json.loads((folder / "compare.json").read_text())


def test_a_study_and_its_header_are_the_elite_again(compared: tuple[dict[str, Any], dict[str, Any]]) -> None:
    searched, comparison = compared
    elite = searched["elites"][0]

    assert [searched["study"], "best.h"] == [row["ours"]["what"] for row in comparison["rows"]]
    for row in comparison["rows"]:
        assert elite["config"] == row["ours"]["config"]
        assert elite["cubin_sha256"] == row["ours"]["cubin_sha256"]
        assert row["ours"]["template_digest"] == row["ours"]["recorded_template_digest"]
        assert 250 == row["ours"]["repeats"]


def test_every_competitor_runs_right_or_says_why(compared: tuple[dict[str, Any], dict[str, Any]]) -> None:
    _, comparison = compared

    for row in comparison["rows"]:
        names = {one["name"]: one for one in row["competitors"]}
        expected = {"sdpa", "sdpa_flash", "sdpa_efficient", "sdpa_cudnn", "sdpa_math"}
        assert expected | {"flex", "triton", "flash_attn_4", "flashinfer"} == names.keys()
        assert {"sdpa", "sdpa_flash", "sdpa_math", "triton"} <= {n for n, one in names.items() if "median_us" in one}
        assert "unavailable" not in names["flex"], names["flex"]
        assert names["triton"]["about"].startswith("BLOCK_M")
        for one in names.values():
            if "unavailable" in one:
                assert one["unavailable"]
                continue
            assert one["right"], one["name"]
            assert one["error"] < 1e-3, one["name"]
            assert 0 == one["nonfinite"]
            low, high = one["ratio_to_ours_95"]
            assert low <= one["ratio_to_ours"] <= high
            ratio = one["median_us"] / row["ours"]["median_us"]
            assert ratio == pytest.approx(one["ratio_to_ours"], rel=0.05)
        assert row["ours"]["error"] < 1e-3
        assert 0 < row["launch_floor_us"] < row["ours"]["median_us"]
        assert 0 < row["ours"]["roofline_share"] < 1
        assert names["triton"]["median_us"] < names["sdpa_math"]["median_us"]


def test_two_runs_agree(compared: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Header and study are one config: in two processes its ratio to PyTorch's default is the same within 5 %."""
    _, comparison = compared
    first, second = (
        next(one["ratio_to_ours"] for one in row["competitors"] if one["name"] == "sdpa") for row in comparison["rows"]
    )

    assert first == pytest.approx(second, rel=0.05)
