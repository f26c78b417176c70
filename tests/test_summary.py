"""The answer of a study: which elite wins, and when the default stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from evoengine.archive.records import Elite
from evoengine.cli import main
from evoengine.summary import winner


def elite(number: int, median_us: float, verdict: str) -> Elite:
    return Elite(number, median_us, 0.01, 0.9, {}, verdict, b"", "", "", {})


@pytest.mark.parametrize(
    ("elites", "answer"),
    [
        ([], "none confirmed"),
        ([elite(4, 5.0, "FASTER"), elite(2, 6.0, "FASTER")], "trial 4"),
        # the lower median may be the less certain one
        ([elite(4, 5.0, "SAME"), elite(2, 5.1, "FASTER")], "trial 2"),
        ([elite(4, 5.0, "SAME"), elite(2, 9.0, "SLOWER")], "no significant winner: keep the default"),
    ],
)
def test_the_fastest_that_is_surely_faster_wins(elites: list[Elite], answer: str) -> None:
    assert answer == winner(elites)


@pytest.mark.parametrize("command", [["studies"], ["show"], ["export", "-o", "x.h"], ["resume"]])
def test_a_look_at_no_database_makes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    assert 2 == main(command)
    assert "no study database at studies/evoengine.db: start one with `evoengine search`" in capsys.readouterr().err
    assert [] == list(tmp_path.iterdir())
