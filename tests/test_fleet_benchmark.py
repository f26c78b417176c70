"""benchmarks/fleet.py without a card: which steps it still has to do, and what it makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fleet import add, missing, opened
from benchmarks.trust.document import write_document

SETTING = {"gpu": "NVIDIA H200", "driver": "1"}


def test_numbers_of_cards_take_turns_and_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    path = tmp_path / "fleet.json"
    document = opened(path, SETTING)
    every = list(missing(document, [1, 2], 2))
    for kind, cards, number in every[:3]:
        add(document, kind, {"cards": cards, "round": number, "candidates_per_second": 10.0})
    write_document(path, document)

    assert [("judging", 1, 0), ("judging", 2, 0), ("search", 1, 0), ("search", 2, 0), ("judging", 1, 1)] == every[:5]
    assert 8 == len(every)
    assert every[3:] == list(missing(opened(path, SETTING), [1, 2], 2))


def test_another_driver_drops_what_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "fleet.json"
    document = opened(path, SETTING)
    add(document, "judging", {"cards": 1, "round": 0, "candidates_per_second": 10.0})
    write_document(path, document)

    assert document == opened(path, SETTING)
    assert [] == opened(path, {**SETTING, "driver": "2"})["judging"]


def test_ratios_are_of_medians_over_one_card(tmp_path: Path) -> None:
    document = opened(tmp_path / "fleet.json", SETTING)
    for number, (one, two) in enumerate([(10.0, 19.0), (11.0, 22.0), (12.0, 30.0)]):
        add(document, "judging", {"cards": 2, "round": number, "candidates_per_second": two})
        add(document, "judging", {"cards": 1, "round": number, "candidates_per_second": one})

    assert {"judging": {"1": 1.0, "2": pytest.approx(2.0)}} == document["ratios"]
