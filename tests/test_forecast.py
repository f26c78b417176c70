"""The estimate as what a search knows before it begins."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from evoengine.cli import main
from evoengine.devices.estimate import estimate_us
from evoengine.forecast import Forecast
from evoengine.gates import Ceilings
from evoengine.hardware import card
from evoengine.problem import AttentionProblem, Member, ProblemSet, weighted_mean
from evoengine.question import Question
from evoengine.recorded.recording import write_recording
from evoengine.sampler.proposer import Proposer
from evoengine.sampler.source import KEPT
from evoengine.space import FeasibleSet, Point, load_space
from evoengine.template import load_template, shipped
from evoengine.verdict import Measurement

TEMPLATE = load_template(shipped("kernel_templates") / "attention")
MODULE = TEMPLATE.module
SPACE = load_space(shipped("search_spaces") / "attention.py")
L4 = card("l4")


QUESTION = Question(TEMPLATE, SPACE, AttentionProblem(), L4, Ceilings())


@cache
def some(count: int) -> list[Point]:
    """Random configs that pass the static gate."""
    rng = random.Random(4)
    found: set[Point] = set()
    while len(found) < count:
        point = tuple(rng.randrange(len(axis.choices)) for axis in SPACE)
        if QUESTION.static_gate(SPACE.config_at(point).values) is None:
            found.add(point)
    return sorted(found)


def forecast(points: list[Point], card_name: str = "l4") -> Forecast:
    return Forecast(MODULE, AttentionProblem(), card(card_name), SPACE, points)


def estimate(point: Point) -> float:
    values = SPACE.config_at(point).values
    return estimate_us(MODULE.launch(values, AttentionProblem()), MODULE.work(values, AttentionProblem()), None, L4)


def test_is_the_estimate_of_every_config_before_it_is_built() -> None:
    source = forecast(some(60)).source(seed=0)

    assert source is not None
    assert ("estimate", "NVIDIA L4", "B1_H8_S512_D64_fp16") == (source.name, source.device, source.problem)
    assert some(60) == list(source.points)
    assert [estimate(point) for point in some(60)] == list(source.values)


def test_of_a_set_it_is_the_mean_over_the_shapes() -> None:
    other = AttentionProblem(seq_q=1024)
    problems = ProblemSet((Member(AttentionProblem(), 3.0), Member(other, 1.0)))
    points = some(20)
    source = Forecast(MODULE, problems, L4, SPACE, points).source(seed=0)
    alone = Forecast(MODULE, other, L4, SPACE, points).source(seed=0)

    assert source is not None
    assert alone is not None
    for point, mean, us in zip(points, source.values, alone.values, strict=True):
        assert us is not None
        assert mean == pytest.approx(weighted_mean([estimate(point), us], (3, 1)))


def test_of_a_large_space_a_sample_is_estimated_and_its_best_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evoengine.forecast.SAMPLE", 500)
    points = some(600)
    first, again, other = (forecast(points).source(seed) for seed in (1, 1, 2))

    assert first is not None
    assert other is not None
    assert first == again
    assert first.digest != other.digest
    assert KEPT == first.known
    ranked = sorted(estimate(point) for point in points)
    assert min(value for value in first.values if value is not None) <= ranked[10]
    assert max(value for value in first.values if value is not None) >= ranked[-60]


def test_a_config_that_fits_no_sm_has_none() -> None:
    starved = replace(L4, smem_per_sm=20_000)
    source = Forecast(MODULE, AttentionProblem(), starved, SPACE, some(200)).source(seed=0)

    assert source is not None
    assert 0 < source.known < 200
    assert Forecast(MODULE, AttentionProblem(), replace(L4, smem_per_sm=0), SPACE, some(20)).source(seed=0) is None


def test_a_search_begins_with_the_best_estimates() -> None:
    points = some(300)
    source = forecast(points).source(seed=0)
    assert source is not None
    proposer = Proposer(SPACE, FeasibleSet(points, {}, SPACE.product), sampler="evolution", seed=0, sources=[source])
    proposals = proposer.propose(1 + len(SPACE.starts) + 4)

    others = {one.point for one in proposals if one.operator != "estimate"}  # a start may be among the best
    best = [point for point in sorted(points, key=estimate)[:4] if point not in others]

    assert len(best) >= 3
    assert best == [one.point for one in proposals if one.operator == "estimate"]


class TestReplay:
    def recording(self, path: Path, points: list[Point], **others: str) -> Path:
        """Times that the estimate ranks rightly."""
        verdicts = [
            (SPACE.config_at(point).values, Measurement((2 * estimate(point),), (1.0,), 1.0, 9, "warm", "converged"))
            for point in points
        ]
        write_recording(
            path,
            SPACE,
            [(values, verdict, None) for values, verdict in verdicts],
            **{"name": "small", "template": "attention", "device": "NVIDIA L4", **others},
            problem={"batch": 1, "heads": 8},
            command="",
            environment={},
        )
        return path

    def replayed(self, capsys: pytest.CaptureFixture[str], path: Path, *options: str) -> Any:
        assert 0 == main(["replay", str(path), "--budget", "12", "--json", *options])
        return json.loads(capsys.readouterr().out)

    def test_of_our_own_recording_knows_the_estimate(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = self.recording(tmp_path / "small.jsonl", some(150))
        informed, blind = (self.replayed(capsys, path, *options) for options in ((), ("--no-estimate",)))

        assert [True, False] == [one["estimate"] for one in (informed, blind)]
        # The default, then the best by the estimate.
        assert [2, None] == [one["runs"][0]["evaluations_to_1_percent"] for one in (informed, blind)]

    @pytest.mark.parametrize("others", [{"template": "gone"}, {"template": ""}, {"device": "NVIDIA Z9"}])
    def test_where_there_is_none_it_searches_without(
        self, others: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = self.recording(tmp_path / "small.jsonl", some(20), **others)

        assert not self.replayed(capsys, path)["estimate"]

    def test_other_samplers_do_without(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = self.recording(tmp_path / "small.jsonl", some(20))

        assert not self.replayed(capsys, path, "--sampler", "random")["estimate"]
