"""A proposer in a process of its own answers what one in this process answers, and ends with its search."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from test_cuda_protocol import wait_for

from evoengine.cli.apart import ProposerProcess
from evoengine.errors import EvoengineError, UserError
from evoengine.feasible import Combinations
from evoengine.hardware import card
from evoengine.problem import AttentionProblem, Problem
from evoengine.sampler import Proposal, Proposing, Seen
from evoengine.sampler.proposer import Proposer
from evoengine.sampler.source import Source
from evoengine.space import Axis, FeasibleSet, Rule, SearchSpace, Values

AXES = (
    Axis("TILE", (16, 32, 48, 64, 96, 128), "t"),
    Axis("STAGES", (1, 2, 3, 4), "st"),
    Axis("LAYOUT", (0, 1, 2), "l", ordered=False, names=("none", "padded", "xor")),
)
DEFAULT = {"TILE": 64, "STAGES": 2, "LAYOUT": 0}


def fits(values: Values, problem: Problem, limits: Any) -> str | None:
    return "too much" if values["TILE"] * values["STAGES"] > 256 else None


def nothing(values: Values, problem: Problem, limits: Any) -> str | None:
    return "never"


def space(check: Callable[..., str | None]) -> tuple[SearchSpace, FeasibleSet]:
    rule = Rule("fits", ("TILE", "STAGES"), check)
    made = SearchSpace("toy", AXES, (rule,), DEFAULT, ({"TILE": 128, "STAGES": 1, "LAYOUT": 2},))
    return made, made.feasible(AttentionProblem(), card("l4"))


def elsewhere(found: FeasibleSet) -> Source:
    points = tuple(found.points[::5])
    return Source("other", "NVIDIA L4", "toy", points, tuple(map(latency, points)))


def latency(point: tuple[int, ...]) -> float:
    return 10.0 + abs(point[0] - 4) + 2 * abs(point[1] - 1) + 3 * (point[2] != 2)


def rounds(proposing: Proposing) -> Iterator[list[Proposal]]:
    """Four at a time, while two of those before still run, as a search goes."""
    trials: list[Seen] = []
    while True:
        known = [one if one.number < len(trials) - 2 else running(one) for one in trials]
        proposing.ask(known, 4)
        answer = proposing.answer(wait=True)
        assert answer is not None
        yield answer
        for one in answer:
            value = None if one.point[1] == 3 else latency(one.point)  # some are rejected
            came_from = (one.operator, one.generation, one.parents, one.system_attrs, one.expected_gain)
            trials.append(Seen(len(trials), one.point, value, "done", *came_from))


def running(one: Seen) -> Seen:
    rest = (one.operator, one.generation, one.parents, one.system_attrs, one.expected_gain)
    return Seen(one.number, one.point, None, "running", *rest)


@pytest.fixture
def begun(no_orphans: None) -> Iterator[Callable[..., ProposerProcess]]:
    every: list[ProposerProcess] = []

    def make(check: Callable[..., str | None] = fits, **options: Any) -> ProposerProcess:
        every.append(ProposerProcess(*space(check), **({"sampler": "evolution", "seed": 5} | options)))
        return every[-1]

    yield make
    for one in every:
        one.close()


@pytest.mark.parametrize("informed", [False, True])
def test_it_answers_what_a_proposer_here_answers(begun: Callable[..., ProposerProcess], informed: bool) -> None:
    made, feasible = space(fits)
    assert isinstance(feasible.points, Combinations)
    sources = [elsewhere(feasible)] if informed else []
    here = Proposer(made, feasible, sampler="evolution", seed=5, sources=sources)
    there = begun(sources=sources)
    there.prepare()
    for count, (ours, theirs) in enumerate(zip(rounds(here), rounds(there), strict=True), start=1):
        assert ours == theirs
        if count == 6:
            break

    assert math.isfinite(ours[0].expected_gain or math.nan), "the model was asked"


def test_what_cost_nothing_is_counted_here_too(begun: Callable[..., ProposerProcess]) -> None:
    here, there = Proposer(*space(fits), sampler="tpe", seed=5), begun(sampler="tpe")
    for count, (ours, theirs) in enumerate(zip(rounds(here), rounds(there), strict=True), start=1):
        assert (ours, here.free) == (theirs, there.free)
        if count == 8:
            break

    assert here.free


def test_an_answer_need_not_be_waited_for(begun: Callable[..., ProposerProcess]) -> None:
    there = begun()
    there.ask([], 3)
    assert there.answer(wait=False) is None, "its process has just begun"
    answers: list[list[Proposal] | None] = []

    def is_there() -> bool:
        answers.append(there.answer(wait=False))
        return answers[-1] is not None

    wait_for(is_there, "an answer")
    assert answers[-1] is not None
    assert 3 == len(answers[-1])


def test_a_mistake_of_the_users_is_his_to_know(begun: Callable[..., ProposerProcess]) -> None:
    there = begun(nothing)
    there.ask([], 1)

    with pytest.raises(UserError, match="no config of toy is feasible"):
        there.answer(wait=True)


def test_a_process_that_ends_is_told_of_by_its_code(begun: Callable[..., ProposerProcess]) -> None:
    there = begun()
    there.ask([], 1)
    there.answer(wait=True)
    assert there._process is not None
    os.kill(there._process._child.pid, signal.SIGKILL)
    there._process._child.wait()

    def again() -> None:
        there.ask([], 1)
        there.answer(wait=True)

    with pytest.raises(EvoengineError, match="the process that proposes configs ended with code -9"):
        again()


def test_nothing_is_begun_before_something_is_asked(begun: Callable[..., ProposerProcess]) -> None:
    with closing(begun()) as there:
        assert there._process is None
