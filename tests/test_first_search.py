"""The search that benchmarks start: as if the machine had never searched before."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import JOBS, QUESTION

from benchmarks.first_search import SearchFailed, first_search


def test_it_finds_nothing_and_leaves_nothing(folder: Path, cache_folder: Path) -> None:
    options = ["--template", str(folder / "mine"), *QUESTION[2:], *JOBS, "--budget", "2"]
    before = sorted((*folder.rglob("*"), *cache_folder.rglob("*")))
    done = first_search(options)

    assert f"evoengine search {' '.join(options)} --json --quiet" == done.command
    assert 2 == done.summary["spent"] == len(done.records)
    assert sorted(done.committed) == done.committed
    assert 0 < (done.committed[0] - done.began).total_seconds() < done.wall_seconds
    assert before == sorted((*folder.rglob("*"), *cache_folder.rglob("*")))


def test_a_failed_search_says_why() -> None:
    with pytest.raises(SearchFailed, match=r"evoengine search --shape nonsense .* ended with code 2: .*nonsense"):
        first_search(["--shape", "nonsense"])
