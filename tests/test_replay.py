"""Replayed searches: exact random search, fair judgement, equal seeds give equal bytes."""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded_files import Row, cachefile, t4, write

from evoengine.cli import main
from evoengine.convergence import PATIENCE
from evoengine.errors import UserError
from evoengine.recorded.load import load
from evoengine.recorded.replay import Trace, noise, replay
from evoengine.recorded.score import expected_best, judge, mean_and_error, random_search
from evoengine.recorded.space import RecordedSpace
from evoengine.recorded.summary import summarise
from evoengine.sampler import SAMPLERS

ROOT = Path(__file__).resolve().parent.parent


def landscape() -> list[Row]:
    """132 configs of three ordered and two unordered parameters: one optimum in a rugged valley, a tenth fails."""
    rows: list[Row] = []
    for tile, stages, warps, layout in itertools.product(
        (16, 32, 64, 128), (1, 2, 3), (1, 2, 4, 8), ("row", "col", "xor")
    ):
        if tile * stages <= 256:
            slow = (
                abs(math.log2(tile / 64)) + 0.7 * abs(stages - 2) + abs(math.log2(warps / 4)) + 1.3 * (layout != "xor")
            )
            time: float | str = 1.0 + slow + 0.3 * ((tile * warps + 2) % 3)
            if tile == 16 and warps == 8:
                time = "CompilationFailedConfig"
            rows.append(({"tile": tile, "stages": stages, "warps": warps, "layout": layout}, time))
    return rows


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("recorded") / "toy.T4.json.gz", t4(landscape()))


@pytest.fixture(scope="module")
def space(recorded: Path) -> RecordedSpace:
    return load(recorded)


@pytest.fixture
def small(tmp_path: Path) -> RecordedSpace:
    """Seven configs, two of which fail; the optimum is 1000 us, another is within 5 % of it."""
    times = [3.0, "RuntimeFailedConfig", 1.0, 2.0, 1.04, "CompilationFailedConfig", 9.0]
    return load(write(tmp_path / "small.json", cachefile([({"x": x}, time) for x, time in enumerate(times)])))


def test_the_random_expectation_is_the_mean_over_all_draws() -> None:
    costs = np.array([1.0, 1.5, 1.5, 2.0, 4.0, 7.0, 7.0, 30.0])
    brute = [statistics.fmean(min(draw) for draw in itertools.combinations(costs, k)) for k in range(1, 9)]

    assert brute == pytest.approx(expected_best(costs, 8).tolist(), rel=1e-13)


def test_the_random_expectation_is_the_published_sum() -> None:
    costs = np.sort(np.random.default_rng(0).lognormal(size=60))
    n = len(costs)
    published = [
        math.fsum(t * math.comb(n - i, k - 1) / math.comb(n, k) for i, t in enumerate(costs.tolist(), 1))
        for k in range(1, n + 1)
    ]

    assert published == pytest.approx(expected_best(costs, n).tolist(), rel=1e-12)


def test_the_random_expectation_of_a_large_space_is_exact() -> None:
    """Of costs 1..n the best of k draws is (n + 1) / (k + 1) on average; no binomial of this size fits a double."""
    n = 300_000
    curve = expected_best(np.arange(1.0, n + 1), 200)

    assert [(n + 1) / (k + 1) for k in range(1, 201)] == pytest.approx(curve.tolist(), rel=1e-11)


def test_random_search_scores_nothing_on_average(small: RecordedSpace) -> None:
    """Over every order of evaluation: the mean score is 0 and the mean curves are the exact ones, failures included."""
    budget = 5
    random = random_search(small, budget)
    judged = [judge(small, order, budget, random) for order in itertools.permutations(range(len(small)), budget)]
    worst = 9000.0
    curves = [[worst if best is None else best for best in one.best] for one in judged]

    assert 0 == pytest.approx(statistics.fmean(one.score for one in judged if one.score is not None), abs=1e-12)
    assert np.mean(curves, axis=0) == pytest.approx(random.best, rel=1e-12)
    assert np.mean(1000.0 / np.array(curves), axis=0) == pytest.approx(random.share, rel=1e-12)
    for close, draws in random.draws.items():
        reached = [one.evaluations[close] or math.inf for one in judged]

        assert random.within[close] == pytest.approx(np.mean(np.isfinite(reached)), rel=1e-12)
        assert np.mean(np.array(reached) <= draws) >= 0.5 > np.mean(np.array(reached) <= draws - 1)


def test_a_search_is_judged_evaluation_by_evaluation(small: RecordedSpace) -> None:
    random = random_search(small, 7)
    one = judge(small, [1, 3, 5, 0, 4, 2], 7, random)
    room = random.best[:6] - 1000.0
    gains = (random.best[:6] - np.array([9000.0, 2000.0, 2000.0, 2000.0, 1040.0, 1000.0])) / room

    assert (None, 2000.0, 2000.0, 2000.0, 1040.0, 1000.0) == one.best
    assert {0.05: 5, 0.01: 6} == one.evaluations
    assert {} == one.share
    assert float(np.mean(gains)) == pytest.approx(one.score, rel=1e-12)


def test_a_perfect_search_scores_one_and_a_barren_one_less_than_random(small: RecordedSpace) -> None:
    random = random_search(small, 7)
    perfect, barren = judge(small, [2, 3], 7, random), judge(small, [1, 5], 7, random)

    assert 1.0 == perfect.score
    assert barren.score is not None
    assert barren.score < 0
    assert (None, None) == barren.best
    assert {0.05: None, 0.01: None} == barren.evaluations


def test_shares_are_read_at_the_marks_within_the_budget(space: RecordedSpace) -> None:
    random = random_search(space, 120)
    order = list(np.argsort(-space.judged))
    one = judge(space, order[:120], 120, random)

    assert {50: space.optimum / space.judged[order[49]], 100: space.optimum / space.judged[order[99]]} == one.share


def test_nothing_is_scored_where_every_config_is_as_good(tmp_path: Path) -> None:
    flat = load(write(tmp_path / "flat.json", t4([({"x": x}, 2.0) for x in range(4)])))
    (trace,) = [replay(flat, sampler="random", seed=0, budget=4)]
    summary = summarise(flat, [trace], 4)

    assert summary["runs"][0]["score_over_random"] is None
    assert summary["over_runs"]["score_over_random"] is None
    assert 1 == summary["runs"][0]["evaluations_to_1_percent"]


def test_means_have_standard_errors() -> None:
    assert (2.0, None) == mean_and_error([2.0])
    assert (2.0, pytest.approx(1 / math.sqrt(3))) == mean_and_error([1.0, 2.0, 3.0])


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("batch", [1, 7])
def test_a_replay_spends_its_budget_on_distinct_configs(space: RecordedSpace, sampler: str, batch: int) -> None:
    trace = replay(space, sampler=sampler, seed=3, budget=45, batch=batch)

    assert 45 == len(trace.rows) == len(set(trace.rows))
    assert [None if math.isnan(space.costs[row]) else space.costs[row] for row in trace.rows] == list(trace.told)
    assert trace == replay(space, sampler=sampler, seed=3, budget=45, batch=batch)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_another_seed_is_another_search(space: RecordedSpace, sampler: str) -> None:
    assert (
        replay(space, sampler=sampler, seed=0, budget=45).rows != replay(space, sampler=sampler, seed=1, budget=45).rows
    )


def test_the_default_sampler_learns_from_what_it_is_told(space: RecordedSpace) -> None:
    """Better than random on average, which a sampler that is told nothing or the wrong values is not."""
    traces = [replay(space, sampler="evolution", seed=seed, budget=60, batch=4) for seed in range(4)]

    assert summarise(space, traces, 60)["over_runs"]["score_over_random"]["mean"] > 0.1


def test_a_search_ends_when_the_space_is_exhausted(small: RecordedSpace) -> None:
    trace = replay(small, sampler="random", seed=0, budget=60, batch=4)
    summary = summarise(small, [trace], 60)

    assert set(range(7)) == set(trace.rows)
    assert 7 == summary["runs"][0]["evaluations"] == len(summary["random"]["best_so_far"])
    assert {"50": 100.0} == summary["runs"][0]["percent_of_optimum"]
    assert 2 == summary["runs"][0]["failed"]


def test_noise_belongs_to_seed_and_config(space: RecordedSpace) -> None:
    """Whatever the sampler and the order, a config is told with the same error; another seed draws another."""
    told = {}
    for sampler in ("random", "evolution"):
        trace = replay(space, sampler=sampler, seed=5, budget=60, noise_percent=2.0)
        told[sampler] = dict(zip(trace.rows, trace.told, strict=True))
    both = told["random"].keys() & told["evolution"].keys()
    other = replay(space, sampler="random", seed=6, budget=60, noise_percent=2.0)

    assert len(both) > 10
    assert {row: told["random"][row] for row in both} == {row: told["evolution"][row] for row in both}
    assert [None if math.isnan(space.costs[r]) else space.costs[r] for r in other.rows] != list(other.told)
    assert noise(8, 5, 2.0).tolist() != noise(8, 6, 2.0).tolist()


def test_noise_has_the_size_that_was_asked_for() -> None:
    logs = np.log(noise(20_000, 0, 2.0))

    assert 0.02 == pytest.approx(np.std(logs), rel=0.03)
    assert abs(np.mean(logs)) < 0.001
    assert [1.0] * 5 == noise(5, 0, 0.0).tolist()


def test_noise_does_not_change_how_a_search_is_judged(small: RecordedSpace) -> None:
    """The sampler measured 1040 us as the fastest; the best it evaluated is the true optimum all the same."""
    trace = Trace(0, (4, 2, 1), (950.0, 990.0, None), {})
    (run,) = summarise(small, [trace], 3)["runs"]

    assert [1040.0, 1000.0, 1000.0] == run["best_so_far"]
    assert [1040.0, 1040.0, 1040.0] == run["picked"]
    assert {"x": "2"} == run["best_config"]


def command(recorded: Path, *options: str) -> list[str]:
    return ["replay", str(recorded), "--budget", "60", *options]


def test_json_holds_what_a_study_of_samplers_needs(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == main(command(recorded, "--json", "--runs", "3", "--seed", "4", "--sampler", "nsga2", "--noise", "1.5"))

    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    runs, over = told["runs"], told["over_runs"]

    assert [4, 5, 6] == [run["seed"] for run in runs]
    assert ("nsga2", 1, 1.5, 60) == (told["sampler"], told["batch"], told["noise_percent"], told["budget"])
    for run in runs:
        reached = [at for at, best in enumerate(run["best_so_far"], 1) if best is not None and best <= 1.05 * 1000]

        assert 60 == len(run["best_so_far"]) == run["evaluations"]
        assert (reached[0] if reached else None) == run["evaluations_to_5_percent"]
        assert {"50": pytest.approx(100_000 / run["best_so_far"][49])} == run["percent_of_optimum"]
    mean = over["percent_of_optimum"]["50"]
    shares = [run["percent_of_optimum"]["50"] for run in runs]
    assert statistics.fmean(shares) == pytest.approx(mean["mean"])
    assert statistics.stdev(shares) / math.sqrt(3) == pytest.approx(mean["standard_error"])
    assert statistics.fmean(run["score_over_random"] for run in runs) == pytest.approx(
        over["score_over_random"]["mean"]
    )
    assert 60 == len(told["random"]["best_so_far"])
    assert {"50"} == told["random"]["percent_of_optimum"].keys()
    assert 1000.0 == told["space"]["optimum"]
    assert {"tile": "64", "stages": "2", "warps": "4", "layout": "xor"} == told["space"]["optimum_config"]


@pytest.mark.parametrize("sampler", ["evolution", "tpe"])
def test_a_seed_gives_the_same_bytes_in_every_process(recorded: Path, sampler: str) -> None:
    options = command(recorded, "--json", "--runs", "2", "--sampler", sampler, "--batch", "3", "--noise", "2")
    outputs = {
        subprocess.run(
            [sys.executable, "-m", "evoengine", *options],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
            timeout=120,
        ).stdout
        for hash_seed in ("1", "2")
    }

    assert 1 == len(outputs)
    assert outputs.pop().startswith(b"{")


def test_the_table_names_what_was_found(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == main(command(recorded, "--runs", "2", "--sampler", "random"))

    shown = capsys.readouterr().out

    for what in (
        "toy (T4)",
        "optimum 1000 us: tile 64, stages 2, warps 4, layout xor",
        "9 of them fail (9 compile)",
        "% of optimum at 50",
        "score over random",
        "median evaluations to 1 %",
    ):
        assert what in shown


def test_a_converged_replay_says_where_it_stopped_and_how_far_it_got(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["replay", str(recorded), "--runs", "2", "--budget", "120", "--until-converged", "--noise", "2"]
    assert 0 == main([*options, "--json"])
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert 0 == main(options)
    shown = capsys.readouterr().out
    runs, random = told["runs"], told["random"]["best_so_far"]

    assert 2 == told["over_runs"]["converged"]
    for run in runs:
        count = run["evaluations"]

        assert PATIENCE < count < 120
        assert count == len(run["best_so_far"]) == run["converged"]["proposals"]
        assert run["converged"]["expected_gain"] < 0.02 == run["converged"]["noise"]["share"]
        assert run["picked"][-1] / 1000 - 1 == pytest.approx(run["gap_percent"] / 100)
        assert random[count - 1] / 1000 - 1 == pytest.approx(run["random_gap_percent"] / 100)
    median = statistics.median(run["evaluations"] for run in runs)
    assert f"2 of 2 runs converged, after {median:g} of 120 evaluations" in shown


def test_without_the_rule_a_replay_goes_to_the_end(space: RecordedSpace) -> None:
    whole = replay(space, sampler="evolution", seed=0, budget=120)
    part = replay(space, sampler="evolution", seed=0, budget=120, until_converged=True)

    assert whole.converged is None
    assert whole.rows[: len(part.rows)] == part.rows != whole.rows


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--sampler", "evolutoin"], "did you mean evolution"),
        (["--sampler", "tpe", "--until-converged"], "'tpe' does not: choose --sampler evolution"),
        (["--noise", "-1"], "must be a number from 0 to 100"),
        (["--noise", "nan"], "must be a number from 0 to 100"),
        (["--batch", "0"], "must be a whole number from 1 on"),
    ],
)
def test_bad_options_are_one_clear_line(
    recorded: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(command(recorded, *options))
    except SystemExit as stop:  # argparse leaves by itself
        code = int(stop.code or 0)

    assert 2 == code
    assert says in capsys.readouterr().err


def test_a_file_that_is_no_space_ends_with_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "other.json", {"base": {}, "rows": []})

    assert 2 == main(["replay", str(path)])
    assert capsys.readouterr().err.startswith(f"evoengine: {path} is no recorded space")


def test_a_space_too_large_to_search_is_a_user_error(tmp_path: Path) -> None:
    rows = [({f"x{axis}": bit for axis in range(64)}, 1.0 + bit) for bit in (0, 1)]
    wide = load(write(tmp_path / "wide.json", t4(rows)))

    with pytest.raises(UserError, match="drop some choices"):
        replay(wide, sampler="random", seed=0, budget=2)
