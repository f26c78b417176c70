"""benchmarks/against_tuners without a card: which parts it still has to do, and what it makes of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import against_tuners
from benchmarks.first_search import SearchFailed
from benchmarks.tuners.space import SPACE
from evoengine.hardware import card

Row = dict[str, Any]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, Row]]:
    """main() on a pretended card, whose driver may be given; the parts in `broken` fail, `modules` are needed."""
    config = dict(SPACE.default)

    def run(
        *options: str, driver: str = "1", broken: tuple[str, ...] = (), modules: tuple[str, ...] = ()
    ) -> tuple[int, Row]:
        begun: list[str] = []

        def ours(part: str, seed: int, budget: int) -> Row:
            begun.append(part)
            if part in broken:
                raise SearchFailed("no")
            return {"config": config, "seconds": 20.0}

        def theirs(part: str, seed: int, budget: int, seconds: float) -> Row:
            begun.append(part)
            if part in broken:
                raise subprocess.CalledProcessError(1, "kernel_tuner_search")
            return {"config": config, "seconds": 120.0, "space_seconds": 20.0}

        output = tmp_path / "new" / "tuners.json"
        monkeypatch.setattr(against_tuners, "MODULES", modules)
        monkeypatch.setattr(against_tuners, "find_gpu", lambda: card("h200"))
        monkeypatch.setattr(against_tuners, "this_card", lambda limits: {"gpu": limits.name, "driver": driver})
        monkeypatch.setattr(against_tuners, "searched_by_us", ours)
        monkeypatch.setattr(against_tuners, "searched_by_kernel_tuner", theirs)
        monkeypatch.setattr(against_tuners, "retimed", lambda _, limits, rows: [5.0 + at for at in range(len(rows))])
        monkeypatch.setattr(sys, "argv", ["against_tuners", "--output", str(output), *options])
        code = against_tuners.main()
        return code, (json.loads(output.read_text()) if output.exists() else {}) | {"begun": begun}

    return run


def test_parts_of_several_runs_are_one_document(run: Callable[..., tuple[int, Row]]) -> None:
    code, document = run("--part", "whole")
    assert (0, ["whole"]) == (code, document["begun"])

    code, document = run()

    assert 0 == code
    assert ["evoengine", "adaptive_tabu_greywolf", "genetic_algorithm"] == document["begun"]
    assert [5.0, 6.0, 7.0, 8.0] == [row["retimed_us"] for row in document["rows"]]
    assert [
        {
            "tool": f"Kernel Tuner, {strategy}",
            "seed": 0,
            "wall": 6.0,
            "wall_without_its_space": 5.0,
            "winner_us": us / 6.0,
        }
        for strategy, us in (("adaptive_tabu_greywolf", 7.0), ("genetic_algorithm", 8.0))
    ] == document["over_ours"]
    assert [] == run()[1]["begun"]


def test_a_part_that_fails_leaves_the_others_and_is_done_again(run: Callable[..., tuple[int, Row]]) -> None:
    code, document = run(broken=("whole", "genetic_algorithm"))
    assert 1 == code
    assert ["evoengine", "Kernel Tuner, adaptive_tabu_greywolf"] == [row["tool"] for row in document["rows"]]

    code, document = run()
    assert (0, ["whole", "genetic_algorithm"]) == (code, document["begun"])


def test_another_driver_drops_what_was_found(run: Callable[..., tuple[int, Row]]) -> None:
    run("--part", "whole")
    _, document = run("--part", "evoengine", driver="2")
    assert ["evoengine"] == [row["tool"] for row in document["rows"]]


def test_no_part_is_begun_that_would_not_end_in_time(run: Callable[..., tuple[int, Row]]) -> None:
    code, document = run("--seconds", "150")
    assert (1, ["evoengine", "whole"]) == (code, document["begun"])


def test_without_kernel_tuner_our_own_parts_run(run: Callable[..., tuple[int, Row]]) -> None:
    with pytest.raises(SystemExit, match=r"needs no_such_module: .* evoengine, whole"):
        run(modules=("json", "no_such_module"))
    code, document = run("--part", "evoengine", modules=("no_such_module",))
    assert (0, ["evoengine"]) == (code, document["begun"])
