"""Kernel Tuner's search for an attention config without a card: on a fake CuPy, and what is made of its results."""

from __future__ import annotations

import dataclasses
import itertools

import fake_cupy
import numpy as np
import pytest

from benchmarks.against_tuners import STRATEGIES
from benchmarks.tuners import kernel_tuner_search
from benchmarks.tuners.space import SPACE
from evoengine.gates import Ceilings
from evoengine.hardware import card
from evoengine.problem import AttentionProblem, parse_shape
from evoengine.question import Question
from evoengine.template import load_template, shipped

KEPT = ("WARPS_M", "BLOCK_N", "WARPS_KV", "STAGES", "PRODUCER_WARPS")
NO_KERNEL_TUNER = "pip install -c constraints.txt -e '.[interop]'"


@pytest.fixture
def question() -> Question:
    """A few axes of the space, so that a test of it takes a second: 8 heads of 64 queries and keys."""
    axes = [
        axis if axis.name in KEPT else dataclasses.replace(axis, choices=(SPACE.default[axis.name],)) for axis in SPACE
    ]
    space = dataclasses.replace(SPACE, axes=tuple(axes), starts=())
    template = load_template(shipped("kernel_templates") / "attention")
    problem = parse_shape(AttentionProblem, "1,8,64,64")
    return Question(template, space, problem, card("h200"), Ceilings(max_smem_bytes=48 * 1024))


def test_failed_configs_and_second_visits_are_counted(question: Question) -> None:
    points = itertools.islice(question.feasible.points, 3)
    one, two, three = (
        {f"EVO_{name}": value for name, value in question.space.config_at(point).values.items()} for point in points
    )
    results = [
        {**one, "time": np.float64(0.006)},
        {**two, "__error__": "RuntimeFailedConfig"},
        {**three, "time": np.float64(0.005)},
        {**one, "time": np.float64(0.006)},
    ]
    assert {
        "config": {name.removeprefix("EVO_"): value for name, value in three.items()},
        "told_us": pytest.approx(5.0),
        "evaluated": 4,
        "distinct": 3,
        "failed": 1,
    } == kernel_tuner_search.outcome(question, results)
    with pytest.raises(SystemExit, match="timed none of 1 configs"):
        kernel_tuner_search.outcome(question, results[1:2])


@pytest.mark.filterwarnings("ignore:None of the tunable parameters specify thread block dimensions")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_kernel_tuner_launches_what_the_template_says(
    question: Question, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("kernel_tuner", reason=NO_KERNEL_TUNER)
    launched = fake_cupy.install(monkeypatch, question)
    told = kernel_tuner_search.search(question.template, question, strategy, 60, 1)

    assert (60, 0) == (told["evaluated"], told["failed"])
    assert told["distinct"] == len(launched)
    assert told["told_us"] == pytest.approx(min(launched.values()))
    assert told["told_us"] == pytest.approx(launched[tuple(told["config"].values())])
    assert told == {
        **kernel_tuner_search.search(question.template, question, strategy, 60, 1),
        "search_seconds": told["search_seconds"],
        "space_seconds": told["space_seconds"],
    }


def test_kernel_tuners_space_is_the_feasible_set(question: Question) -> None:
    searchspace = pytest.importorskip("kernel_tuner.searchspace", reason=NO_KERNEL_TUNER)
    space = searchspace.Searchspace(
        kernel_tuner_search.parameters(question), [kernel_tuner_search.allowed(question)], 1024
    )
    expected = {tuple(question.space.config_at(point).values.values()) for point in question.feasible.points}
    assert expected == set(space.list)
