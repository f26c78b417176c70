"""A whole search on simulated cards: all of them judge, and what is simulated takes the time it should."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmarks import simulated_fleet
from benchmarks.simulated_fleet import SimulatedCores
from evoengine.build import BuildRequest


def test_a_search_on_two_simulated_cards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_orphans: None) -> None:
    monkeypatch.setattr(simulated_fleet, "COMPILE_SECONDS", 0.05)
    monkeypatch.chdir(tmp_path)
    row = simulated_fleet.search(2, 12)

    assert (2, 32, 12) == (row["cards"], row["cores"], row["budget"])
    assert 0.0 < row["candidates_per_second"]
    assert row["seconds"]["final run"] > 5.0


def test_compiles_wait_for_a_core(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(simulated_fleet, "COMPILE_SECONDS", 0.1)
    monkeypatch.setattr(simulated_fleet, "COMPILE_SPREAD", 0.0)
    requests = [BuildRequest({"AT": at}, 0) for at in range(6)]
    began = time.monotonic()
    building = SimulatedCores(2, tmp_path).stream(requests)
    results = dict(building)

    assert time.monotonic() - began >= 0.3, "three a core, one behind the other"
    assert sorted(results) == list(range(6))
    assert 6 == len({one.cubin_sha256 for one in results.values()})
