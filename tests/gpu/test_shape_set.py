"""One study over two shapes on a real card, by the command line: search, resume, verify, export, and load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_end_to_end import evoengine

from evoengine.archive.archive import Archive
from evoengine.problem import weighted_mean
from evoengine.verdict import Measurement

pytestmark = pytest.mark.gpu

SHAPES = ("1,8,512,64 weight=3", "1,8,1024,128,causal")
LABELS = ["B1_H8_S512_D64_fp16", "B1_H8_S1024_D128_fp16_causal"]
WEIGHTS = [3.0, 1.0]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("searched")
    shapes = [word for shape in SHAPES for word in ("--shape", shape)]
    return folder, json.loads(evoengine(folder, "search", "--budget", "4", *shapes, "--json"))


def test_elites_are_means_of_what_was_raced_at_each_shape(searched: tuple[Path, dict[str, Any]]) -> None:
    _, result = searched

    assert 4 == result["spent"]
    assert LABELS == [one["shape"] for one in result["shapes"]]
    assert 0 < len(result["elites"])
    for elite in result["elites"]:
        own = elite["shapes"]
        assert LABELS == [one["shape"] for one in own]
        assert elite["median_us"] == pytest.approx(weighted_mean([one["median_us"] for one in own], WEIGHTS))
        assert elite["ratio_to_default"] == pytest.approx(
            weighted_mean([one["ratio_to_default"] for one in own], WEIGHTS)
        )
        assert elite["worst_ratio_to_default"] == max(one["ratio_to_default"] for one in own)
        assert elite["error"] < 1e-3
        assert all(one["ratio_to_sdpa"] > 0 for one in own)
        assert all(one["verdict"] in ("FASTER", "SAME", "SLOWER") for one in own)


def test_an_idle_worker_disturbs_no_window(searched: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = searched
    records = Archive.open(str(folder / "studies" / "evoengine.db")).open_study().records()
    timed = [one.verdict for one in records if isinstance(one.verdict, Measurement)]
    noise = [row["noise"] for verdict in timed for row in verdict.evidence["shapes"]]

    assert 2 * len(timed) == len(noise) > 0
    assert max(noise) < 0.1


def test_our_own_workers_are_no_other_users_of_the_card(searched: tuple[Path, dict[str, Any]]) -> None:
    _, result = searched

    assert (result["environment"].get("other_load_percent") or 0) <= 5


def test_it_goes_on_and_is_verified(searched: tuple[Path, dict[str, Any]]) -> None:
    folder, first = searched
    again = json.loads(evoengine(folder, "resume", "--budget", "6", "--json"))
    best = str(again["elites"][0]["trial"])
    found = json.loads(evoengine(folder, "verify", first["study"], "--trial", best, "--json"))

    assert (first["study"], 6) == (again["study"], again["spent"])
    assert [] == found["failures"]
    assert found["timing"]["ratio"] == pytest.approx(again["elites"][0]["ratio_to_default"], rel=0.05)


def test_each_shape_loads_its_own_kernel(
    searched: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    import evoengine as package

    folder, result = searched
    chosen = (result["study"], "--trial", str(result["elites"][0]["trial"]))
    evoengine(folder, "export", "-o", "set.h", *chosen)
    evoengine(folder, "export", "--format", "torch", "-o", "set_kernels", *chosen)
    header = (folder / "set.h").read_text()
    attention = package.load(folder / "set_kernels")

    assert all(f"defined(SHAPE_{label})" in header for label in LABELS)
    for keys, size, causal in ((512, 64, False), (1024, 128, True)):
        q, k, v = (torch.randn(1, 8, keys, size, device="cuda", dtype=torch.float16) for _ in range(3))
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        torch.testing.assert_close(attention(q, k, v, is_causal=causal), expected, atol=2e-3, rtol=1e-2)
