"""A bundle on a real card: it builds for the card it was tuned on, and its own test finds the kernel right."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path

import pytest
from measured_study import make_chosen

from evoengine.cli.output import write_folder
from evoengine.devices.cuda import find_gpu
from evoengine.export.bundle import bundle_files
from evoengine.problem import AttentionProblem

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not all(map(shutil.which, ("cmake", "nvcc"))), reason="cmake and nvcc are not both on PATH"),
]


@pytest.mark.parametrize(
    ("problem", "axes"),
    [
        (AttentionProblem(seq_q=16, seq_k=4096), dict(WARPS_M=1, BLOCK_N=64, SPLIT_KV=16)),
        (
            AttentionProblem(heads=8, kv_heads=2, seq_q=1000, dtype="bf16", causal=True, lse=True),
            dict(WARPS_M=4, BLOCK_N=256, WARPS_KV=2, STAGES=1, HEAVY_FIRST=1),
        ),
    ],
    ids=["split keys", "grouped causal bf16 with lse, above 48 KB"],
)
def test_its_own_test_passes(tmp_path: Path, problem: AttentionProblem, axes: dict[str, int]) -> None:
    gpu = find_gpu()
    assert gpu is not None, "marked gpu"
    made = make_chosen(problem, **axes)
    chosen = dataclasses.replace(made, facts=dataclasses.replace(made.facts, device=gpu.name, arch=gpu.arch))
    folder = tmp_path / "my bundle"
    write_folder(folder, "bundle", bundle_files(chosen), force=False)
    for command in (("cmake", "-B", "build"), ("cmake", "--build", "build", "-j", "4")):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, check=False)
        assert 0 == done.returncode, done.stdout + done.stderr
    tested = subprocess.run(
        ["ctest", "--test-dir", "build", "-V"], cwd=folder, capture_output=True, text=True, timeout=200, check=False
    )

    assert 0 == tested.returncode, tested.stdout
    assert "Skipped" not in tested.stdout
    assert tested.stdout.count("largest error") == (5 if problem.causal else 3)
