"""`search --per-shape` on a real card: measured tables, warm starts, exports that PyTorch calls."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

import evoengine
from evoengine.archive.archive import Archive
from evoengine.cli import main

pytestmark = pytest.mark.gpu

SEQS = (512, 1024)
SEARCH = ["search", "--per-shape", "--budget", "8", "--json", *(w for s in SEQS for w in ("--shape", f"1,8,{s},64"))]


def test_a_table_of_measured_configs_that_pytorch_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def searched() -> dict[str, Any]:
        assert 0 == main(SEARCH), capfd.readouterr().err
        document: dict[str, Any] = json.loads(capfd.readouterr().out)
        return document

    table = searched()
    rows = table["shapes"]
    assert [f"B1_H8_S{seq}_D64_fp16" for seq in SEQS] == [row["shape"] for row in rows]
    assert all(row["median_us"] > 0 and row["verdict"] in ("FASTER", "SAME") for row in rows)
    assert all(row["speedup_over_sdpa"] > 0 for row in rows)
    assert table["worst_over_default"] == min(row["speedup_over_default"] for row in rows)
    sources = Archive.open("sqlite:///studies/evoengine.db").open_study(rows[1]["study"]).spec.sources
    assert rows[0]["study"] in [source.name for source in sources]

    again = searched()["shapes"]
    assert ["kept: budget spent"] * len(SEQS) == [row.pop("state") for row in again]
    assert [{name: row[name] for name in row if name != "state"} for row in rows] == again

    for command in table["exports"]:
        assert 0 == main(shlex.split(command)[1:]), capfd.readouterr().err
    attention = evoengine.load("attention_kernels")
    for seq in SEQS:
        q, k, v = torch.randn(3, 1, 8, seq, 64, device="cuda", dtype=torch.float16)
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        assert torch.allclose(expected, attention(q, k, v), atol=2e-3, rtol=1e-2)
