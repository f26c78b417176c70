"""The script that counts survived faults, with a card that says what it is told to say."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from benchmarks.trust import card_faults, faults
from benchmarks.trust.fault import Survived
from benchmarks.trust.processes import Mark
from evoengine.errors import UserError
from evoengine.hardware import card

H200 = card("h200")


def row(fault: str, gate: str = "runtime") -> Survived:
    return Survived(fault, "runtime", gate, "it fails", 1.0, 5.0, 1.0)


class Breaks(Exception):
    """The run is cut off."""


def told(monkeypatch: pytest.MonkeyPatch, *rows: Survived | Breaks) -> list[str]:
    """Lets the card's part have these faults; the list fills with what was met."""
    met: list[str] = []

    def survive(part: str, limits: Any, mark: Mark, folder: Path, done: Collection[str]) -> Iterator[Survived]:
        for one in rows:
            if isinstance(one, Breaks):
                raise one
            if one.fault not in done:
                met.append(one.fault)
                yield one

    monkeypatch.setattr(faults, "survive", survive)
    return met


def section(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())["faults"]
    return found


def test_a_run_of_the_cards_faults_that_breaks_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trust.json"
    told(monkeypatch, row("traps"), row("hangs", "timeout"), Breaks())
    with pytest.raises(Breaks):
        faults.run_part("card", H200, Mark(), path)

    assert (1, 2) == (section(path)["survived"], section(path)["of"])
    met = told(monkeypatch, row("traps"), row("hangs"), row("driver gone"))
    faults.run_part("card", H200, Mark(), path)
    assert ["hangs", "driver gone"] == met, "what was not survived is met again"
    assert ["traps", "hangs", "driver gone"] == [one["fault"] for one in section(path)["card"]["faults"]]
    assert (3, 3) == (section(path)["survived"], section(path)["of"])


def test_faults_survived_by_other_code_or_on_another_card_are_met_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trust.json"
    met = told(monkeypatch, row("traps"))
    faults.run_part("card", H200, Mark(), path)
    faults.run_part("card", card("l4"), Mark(), path)
    monkeypatch.setattr(faults, "judge_digest", lambda: "changed")
    faults.run_part("card", card("l4"), Mark(), path)

    assert ["traps"] * 3 == met


def test_the_other_part_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trust.json"
    told(monkeypatch, row("traps"))
    faults.run_part("card", H200, Mark(), path)
    faults.run_part("build", None, Mark(), path)

    assert {"card", "build", "survived", "of"} <= set(section(path))
    assert 2 == section(path)["of"]
    with pytest.raises(UserError, match="give --part build"):
        faults.run_part("card", None, Mark(), path)


class ToldSession:
    """A device that survives everything."""

    opened = 0
    explains = True

    def __init__(self, limits: Any, mark: Mark) -> None:
        type(self).opened += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def explain_no_more(self) -> None:
        self.explains = False

    def judge(self, bug: str) -> None: ...

    def survived(self, fault: str, expected: str, judge: Callable[[], Any], deadline_seconds: float = 1.0) -> Survived:
        return Survived(fault, expected, expected, "explained" if self.explains else "", 0.1, deadline_seconds, 1.0)


def test_memcheck_explains_once_and_a_session_is_opened_only_for_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card_faults, "Session", ToldSession)
    monkeypatch.setattr(card_faults, "out_of_memory", lambda limits, mark: row(card_faults.OUT_OF_MEMORY))
    monkeypatch.setattr(card_faults, "engine_killed", lambda: row(card_faults.ENGINE_KILLED))
    every = list(card_faults.card_faults(H200, Mark()))
    names = [one.fault for one in every]

    assert 11 == len(set(names)) == len(names)
    assert [names[0]] == [one.fault for one in every if one.reason == "explained"]
    assert 1 == ToldSession.opened
    assert names[8:] == [one.fault for one in card_faults.card_faults(H200, Mark(), names[:8])]
    assert 2 == ToldSession.opened
    assert names[9:] == [one.fault for one in card_faults.card_faults(H200, Mark(), names[:9])]
    assert 2 == ToldSession.opened
