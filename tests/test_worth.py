"""What a search was worth: what is counted, what random search would have found, which knobs mattered, the words."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
from optuna.distributions import IntDistribution
from rich.console import Console

from evoengine.archive.records import Record
from evoengine.cli import result
from evoengine.cli import worth as words
from evoengine.recorded.score import expected_best
from evoengine.sampler.encoding import Distributions
from evoengine.sampler.hindsight import importance
from evoengine.sampler.proposer import Proposer
from evoengine.space import Axis, FeasibleSet, Point, SearchSpace
from evoengine.verdict import Estimate, Gate, Measurement, Rejection, Verdict
from evoengine.worth import LEAST_RANDOM, LEAST_TRIALS, worth

AXES = (
    Axis("TILE", (16, 32, 64, 128, 256), "t"),
    Axis("STAGES", (1, 2, 3, 4), "s"),
    Axis("WARPS", (1, 2, 4, 8), "w"),
    Axis("DEAD", (0, 1, 2), "d"),
    Axis("FIXED", (7,), "f"),
)
SPACE = SearchSpace("toy", AXES, (), dict(TILE=64, STAGES=2, WARPS=4, DEAD=0, FIXED=7))
POINTS = list(itertools.product(*(range(len(axis.choices)) for axis in AXES)))
FEASIBLE = FeasibleSet(POINTS, {}, SPACE.product)


def time_us(point: Point) -> float:
    return 10.0 + 6 * abs(point[0] - 3) + abs(point[1] - 1) + 0.1 * point[2]


def measured(us: float) -> Measurement:
    return Measurement((us,) * 3, (1.0,) * 3, 1.0, 10, "warm", "converged")


def record(
    number: int,
    point: Point,
    verdict: Verdict,
    operator: str,
    twin_of: int | None = None,
    expected_gain: float | None = None,
) -> Record:
    config = SPACE.config_at(point)
    estimate = verdict if isinstance(verdict, Estimate) else None
    return Record(
        number,
        point,
        config,
        operator,
        generation=0,
        parents=(),
        system_attrs={},
        expected_gain=expected_gain,
        state="waiting" if estimate else "done",
        verdict=verdict,
        estimate=estimate,
        twin_of=twin_of,
    )


def study(
    points: Sequence[Point], verdict: Callable[[Point], Verdict] | None = None, operator: str = "model"
) -> list[Record]:
    judge = verdict or (lambda point: measured(time_us(point)))
    return [record(number, point, judge(point), operator) for number, point in enumerate(points)]


def shuffled(count: int, seed: int = 0) -> list[Point]:
    return [POINTS[at] for at in np.random.default_rng(seed).permutation(len(POINTS))[:count]]


def judged(records: Sequence[Record], elites: int = 0, searched: Any = lambda: (SPACE, FEASIBLE)) -> dict[str, Any]:
    found = worth(records, elites, AXES, searched, 0)
    assert found is not None
    return found


class TestCounts:
    def test_only_what_was_paid_for_counts_in_the_order_of_proposal(self) -> None:
        verdicts: list[tuple[Verdict, int | None]] = [
            (measured(20.0), None),
            (Rejection(Gate.STATIC, "a rule"), None),
            (Rejection(Gate.COMPILE, "an error"), None),
            (measured(20.0), 0),
            (measured(10.4), None),
            (measured(10.0), None),
            (measured(15.0), None),
        ]
        found = judged([record(n, POINTS[n], verdict, "model", twin) for n, (verdict, twin) in enumerate(verdicts)], 2)

        assert (10.0, 5, 5) == (found["best_us"], found["best_trial"], found["evaluations"])
        assert (3, 4) == (found["evaluations_to_5_percent"], found["evaluations_to_1_percent"])
        assert (2, 2.5, True) == (found["elites"], found["evaluations_per_elite"], found["measured"])

    def test_estimates_are_called_so_and_measurements_are_not_mixed_with_them(self) -> None:
        estimates = study(POINTS[:3], lambda point: Estimate(time_us(point)))
        mixed = [*estimates, record(3, POINTS[3], measured(99.0), "model")]

        assert not judged(estimates)["measured"]
        assert (True, 99.0) == (judged(mixed)["measured"], judged(mixed)["best_us"])

    def test_nothing_to_say_without_a_time(self) -> None:
        refused = study(POINTS[:3], lambda point: Rejection(Gate.COMPILE, "no"))

        assert worth(refused, 0, AXES, lambda: (SPACE, FEASIBLE), 0) is None
        assert worth([], 0, AXES, lambda: (SPACE, FEASIBLE), 0) is None


class TestRandomSearch:
    def test_is_bootstrapped_from_the_studys_own_draws(self) -> None:
        points = shuffled(9)
        others = [record(9 + at, point, measured(500.0), "spread") for at, point in enumerate(shuffled(12)[9:])]
        found = judged([*study(points, operator="random"), *others])["random"]
        times = sorted(time_us(point) for point in points)
        rng = np.random.default_rng(1)
        simulated = rng.choice(times, (40_000, 9)).min(axis=1).mean()

        assert ("draws", 9, 9) == (found["basis"], found["draws"], found["evaluations"])
        assert simulated == pytest.approx(found["best_us"], rel=0.01)
        assert [None, times[3]] == found["best_us_95"]  # 9/18 8/17 7/16 is 10.3 %, and 6/15 of that 4.1 %

    def test_draws_that_fail_count_as_the_slowest(self) -> None:
        def verdict(point: Point) -> Verdict:
            return measured(10.0 + point[0]) if point[1] == 0 else Rejection(Gate.COMPILE, "no")

        points = [(0, 0, 0, 0, 0), (4, 0, 0, 0, 0), *((0, 1, at % 4, at // 4, 0) for at in range(6))]
        found = judged(study(points, verdict, "random"))["random"]
        chance_of_ten = 1 - (7 / 8) ** 8

        assert 10.0 * chance_of_ten + 14.0 * (1 - chance_of_ten) == pytest.approx(found["best_us"])

    def test_another_random_search_keeps_under_the_bound_as_often_as_it_says(self) -> None:
        kept = 0
        for seed in range(200):
            order = shuffled(24, seed)
            _, bound = judged(study(order[:12], operator="random"))["random"]["best_us_95"]
            kept += min(map(time_us, order[12:])) <= bound

        assert 0.9 < kept / 200

    def test_is_asked_of_the_model_of_a_search_that_has_converged(self) -> None:
        source = Proposer(SPACE, FEASIBLE, sampler="evolution", seed=1)
        records: list[Record] = []
        for number in range(100):
            [one] = source.propose(1)
            value = measured(time_us(one.point))
            records.append(record(number, one.point, value, one.operator, expected_gain=one.expected_gain))
            source.observe([records[-1].seen(measures=True)])
        found = judged(records)
        exact = float(expected_best(np.sort([time_us(point) for point in POINTS]), 100)[-1])
        low, high = found["random"]["best_us_95"]

        assert found["converged"]["proposals"] == 100
        assert ("model", 0, 100) == tuple(found["random"][key] for key in ("basis", "draws", "evaluations"))
        assert exact == pytest.approx(found["random"]["best_us"], rel=0.02)
        assert low < exact < high
        assert "the space has changed since" in judged(records, searched=None)["random"]["reason"]

    def test_is_the_mean_over_the_models_draws_at_the_price_of_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The expectation of each draw takes a tenth of a report's time, of 16 it would be the most of it."""
        rng, asked = np.random.default_rng(1), []
        drawn = [rng.lognormal(size=200) for _ in range(16)]
        each = np.mean([expected_best(np.sort(times), 200) for times in drawn], axis=0)

        def counted(ranked: Any, budget: int) -> Any:
            asked.append(budget)
            return expected_best(ranked, budget)

        monkeypatch.setattr("evoengine.worth.imagined_times", lambda *_, **__: drawn)
        monkeypatch.setattr("evoengine.worth.expected_best", counted)
        calm = [
            record(at, point, measured(time_us(point)), "model", expected_gain=0.0) for at, point in enumerate(POINTS)
        ]
        found = judged(sorted(calm, key=lambda one: time_us(one.point)))["random"]

        assert ("model", 200, [len(POINTS)]) == (found["basis"], found["evaluations"], asked)
        assert [each[k - 1] for k, _ in found["curve"]] == pytest.approx([us for _, us in found["curve"]])

    def test_is_not_invented(self) -> None:
        unsure = judged(study(POINTS[:40]))["random"]
        drawn = judged(study(POINTS[: LEAST_RANDOM - 1], operator="random"))["random"]
        guessed = judged(study(POINTS, lambda point: Estimate(time_us(point))))["random"]
        said = [found[key] for found in (unsure, drawn, guessed) for key in ("basis", "best_us", "best_us_95")]

        assert [None] * 9 == said
        assert guessed["reason"].endswith("and a model of estimates says nothing of a card")
        assert unsure["reason"].endswith("its model is not to be asked before the search has converged")
        assert drawn["reason"].startswith("7 of its configs were drawn at random, at least 8 are needed")


class TestKnobs:
    def test_are_weighed_with_the_heaviest_first_and_a_dead_one_last(self) -> None:
        found = judged(study(shuffled(120)))["knobs"]
        weights = [one["weight"] for one in found["importance"]]

        assert {"TILE", "STAGES", "WARPS", "DEAD"} == {one["knob"] for one in found["importance"]}
        assert "TILE" == found["importance"][0]["knob"]
        assert sorted(weights, reverse=True) == weights
        assert 1.0 == pytest.approx(sum(weights))
        assert weights[0] > 0.5
        assert next(one["weight"] for one in found["importance"] if one["knob"] == "DEAD") < 0.1
        assert (120, 0.1) == (found["trials"], found["top_share"])

    def test_rejected_configs_say_nothing_of_them(self) -> None:
        points = shuffled(LEAST_TRIALS + 5)
        found = judged(
            study(points, lambda p: Rejection(Gate.COMPILE, "no") if p in points[:5] else measured(time_us(p)))
        )

        assert (LEAST_TRIALS, 0.25) == (found["knobs"]["trials"], found["knobs"]["top_share"])

    def test_are_not_weighed_where_no_config_is_faster_than_another(self) -> None:
        found = judged(study(shuffled(40), lambda point: measured(10.0)))["knobs"]

        assert ([], "every config has the same time") == (found["importance"], found["reason"])

    def test_are_not_weighed_over_a_handful(self) -> None:
        found = judged(study(POINTS[: LEAST_TRIALS - 1]))["knobs"]

        assert [] == found["importance"]
        assert "19 configs have a time, at least 20 are needed" == found["reason"]


@pytest.mark.parametrize("width", [80, 160])
def test_the_words_fit_a_terminal_and_hold_the_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    monkeypatch.setattr(words, "console", lambda: Console(width=width, highlight=False, markup=False))
    words.show_worth(judged(study(shuffled(60), operator="random"), elites=8))
    out = capsys.readouterr().out
    text = " ".join(out.split())

    assert max(len(line) for line in out.splitlines()) <= width
    assert (
        "what the search was worth best 10.100 us in the search's own timing (trial 53), within 5 % after 7 and" in text
    )
    assert "8 confirmed, one for every 7.5 evaluations" in text
    assert "us), bootstrap of the 60 configs drawn at random" in text
    assert "trials with a time; PED-ANOVA)" in text


def test_the_words_do_not_pass_an_estimate_off_as_a_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    words.show_worth(judged(study(POINTS[:5], lambda point: Estimate(time_us(point)))))
    out = capsys.readouterr().out

    assert "what the search was worth: ESTIMATED, not measured" in out
    assert "not known: 0 of its configs were drawn at random" in out
    assert "not known: 5 configs have a time" in out


def test_the_weights_are_had_without_a_copy_of_every_axis_for_every_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = [one.seen(measures=True) for one in study(shuffled(60))]
    copied: list[object] = []
    monkeypatch.setattr(IntDistribution, "__deepcopy__", lambda one, memo: copied.append(one) or one, raising=False)
    found = importance(AXES, trials)
    shared = len(copied)
    monkeypatch.delattr(Distributions, "__deepcopy__")

    assert importance(AXES, trials) == found
    assert 60 * 4 == len(copied) - shared, "what it would be otherwise; FIXED is no parameter"
    assert 0 == shared


def test_hindsight_of_before_the_final_run_holds_as_long_as_no_verdict_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A final run takes seconds in which nothing else is to be done; it may refuse what it has measured."""
    reckoned: list[int] = []

    def counted(records: Sequence[Record], *rest: Any) -> Any:
        reckoned.append(len(records))
        return worth(records, *rest)

    monkeypatch.setattr(result, "worth", counted)
    records = study(POINTS[:5])
    spec = SimpleNamespace(space_digest="s", template_digest="t", axes=AXES, seed=0)
    question = SimpleNamespace(space=SimpleNamespace(digest="s"), template=SimpleNamespace(digest="t"))
    hindsight = result.Hindsight(question, SimpleNamespace(spec=spec, records=lambda: list(records)))  # type: ignore[arg-type]
    hindsight.begin()

    assert {**judged(records, 2, None), "random": ANY} == {**(hindsight.of(list(records), 2) or {}), "random": ANY}
    assert [5] == reckoned
    refused = [replace(records[0], verdict=Rejection(Gate.CORRECTNESS, "in the final run")), *records[1:]]
    assert {**judged(refused, 1, None), "random": ANY} == {**(hindsight.of(refused, 1) or {}), "random": ANY}
    assert [5, 5] == reckoned
