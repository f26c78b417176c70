"""What a new search begins with is listed by another process, and is what this one would have listed."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evoengine.build import toolchain
from evoengine.cli import early, judges, new_study
from evoengine.cli.ahead import Ahead
from evoengine.cli.early import Early
from evoengine.cli.parser import make_parser
from evoengine.cli.resolve import Target, find_question
from evoengine.devices.cuda.spares import Spares
from evoengine.errors import UserError
from evoengine.forecast import forecast
from evoengine.hardware import card
from evoengine.question import Question

TARGET = Target(card("l4"), card("l4"), None)


def asked(*options: str) -> argparse.Namespace:
    return make_parser().parse_args(["search", *options])


@pytest.fixture
def ahead(no_orphans: None) -> Iterator[Ahead]:
    with closing(Ahead()) as begun:
        yield begun


@pytest.mark.parametrize("options", [(), ("--max-registers", "128", "--seed", "3", "--shape", "2,4,256,32,causal")])
def test_the_feasible_set_and_its_estimate_are_what_this_process_would_list(
    ahead: Ahead, options: tuple[str, ...]
) -> None:
    arguments = asked(*options)
    question, _ = find_question(arguments, TARGET, *(arguments.shape or ()))
    ahead.tell(arguments, TARGET)
    listed = ahead.listed(question)

    assert listed is not None
    assert question.feasible.rejected == listed.feasible.rejected
    assert question.feasible.points[::1000] == listed.feasible.points[::1000]
    assert len(question.feasible.points) == len(listed.feasible.points)
    assert forecast(question, TARGET.device).source(arguments.seed) == listed.estimate


def test_who_is_told_of_no_estimate_has_none(ahead: Ahead) -> None:
    arguments = asked("--sampler", "random")
    ahead.tell(arguments, TARGET)
    listed = ahead.listed(find_question(arguments, TARGET)[0])

    assert listed is not None
    assert listed.estimate is None


def test_a_mistake_of_the_users_is_found_here_and_not_there(ahead: Ahead) -> None:
    ahead.tell(asked("--shape", "no shape"), TARGET)

    assert ahead.listed(find_question(asked(), TARGET)[0]) is None


def test_what_has_changed_meanwhile_is_listed_anew(ahead: Ahead) -> None:
    question, _ = find_question(asked(), TARGET)
    ahead.tell(asked(), TARGET)

    space = dataclasses.replace(question.space, source_digest="0")

    assert ahead.listed(dataclasses.replace(question, space=space)) is None


def test_who_is_told_nothing_ends(ahead: Ahead) -> None:
    ahead.close()

    assert ahead._child.returncode is not None


def test_a_search_lists_nothing_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_orphans: None) -> None:
    """Found out at its first candidate, which the sampler chooses from the set."""

    def never(*_: Any) -> Any:
        raise AssertionError("listed here")

    def created(arguments: argparse.Namespace, archive: Any, asked: Any, name: str | None) -> Any:
        _, proposer = create(arguments, archive, asked, name)
        assert ["default"] == [one.operator for one in proposer.propose(1)]
        raise UserError("far enough")

    create = new_study.create
    monkeypatch.setattr(Question.feasible, "func", never)
    monkeypatch.setattr("evoengine.cli.search.create", created)
    arguments = asked("--device", "none", "--storage", str(tmp_path / "study.db"))
    arguments.command_line = "evoengine search"

    with pytest.raises(UserError, match="far enough"):
        early.run(arguments)


@pytest.mark.parametrize("options", [("--dry-run",), ("--per-shape", "--shape", "1,8,512,64")])
def test_nothing_is_begun_for_what_is_not_one_question(
    monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    begun: list[Ahead | None] = []
    monkeypatch.setattr("evoengine.cli.search.run", lambda arguments, early, watch: begun.append(early.ahead) or 0)
    early.run(asked("--device", "none", *options))

    assert [None] == begun


def test_a_target_that_cannot_be_had_is_told_of_in_its_turn(no_orphans: None) -> None:
    with closing(Early("none")) as begun:
        begun.list_ahead(asked("--device", "none", "--target", "no card"))

        assert (None, None) == (begun.target, begun.ahead)


def test_nvrtc_is_asked_once_and_early(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    ask = toolchain._ask_nvrtc
    monkeypatch.setattr(toolchain, "_ask_nvrtc", lambda: asked.append(0) or ask())
    toolchain._nvrtc.cache_clear()
    toolchain.begin()
    toolchain.begin()
    assert [0] == asked
    found = toolchain.find_toolchain("nvrtc")
    toolchain.begin()

    assert ("nvrtc", [0]) == (found.compiler, asked)


@pytest.mark.parametrize(("jobs", "spares"), [(2, 0), (7, 1), (16, 2), (128, 2)])
def test_workers_to_believe_the_first_fast_times_are_begun_where_cores_are_left(
    monkeypatch: pytest.MonkeyPatch, jobs: int, spares: int
) -> None:
    begun: list[str] = []

    class Recorded(Spares):
        def begin(self) -> None:
            begun.append("one more")

    question, _ = find_question(asked(), TARGET)
    study = SimpleNamespace(records=list, spec=SimpleNamespace(seed=0))
    target = dataclasses.replace(TARGET, ordinal=0)
    monkeypatch.setattr(judges, "Spares", Recorded)
    for worker, expected in ((SimpleNamespace(close=lambda: None), spares), (None, 0)):
        taking = SimpleNamespace(take=lambda ordinal, worker=worker: worker)
        options: Any = {"force": False, "note": print, "early": taking}
        device, _ = judges.device_for(question, target, study, jobs, **options)  # type: ignore[arg-type]
        device.close()

        assert expected == len(begun)
        begun.clear()
