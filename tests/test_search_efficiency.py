"""The benchmark of searches: nothing runs twice, ours is what ships, peers keep to the rules, figures add up."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded_files import cachefile, t4, write
from test_replay import landscape

from benchmarks import search_efficiency
from benchmarks.efficiency import kernel_tuner_peer, optuna_peer, plot, report, runs
from benchmarks.efficiency.figures import curve, figures, of_space, over_spaces
from benchmarks.efficiency.methods import METHODS, missing, version
from benchmarks.efficiency.runs import Key, Run
from evoengine.errors import UserError
from evoengine.recorded.load import load
from evoengine.recorded.replay import replay
from evoengine.recorded.score import random_search
from evoengine.recorded.space import RecordedSpace
from evoengine.sampler.evolution import EvolutionSampler


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("spaces") / "toy.T4.json.gz", t4(landscape()))


@pytest.fixture(scope="module")
def space(toy: Path) -> RecordedSpace:
    return load(toy)


def small(folder: Path, times: Sequence[float | str]) -> RecordedSpace:
    return load(write(folder / "small.json", cachefile([({"x": x}, time) for x, time in enumerate(times)])))


def key(seed: int, **changes: Any) -> Key:
    return Key("toy", "0123", "random", "1", seed, 200)._replace(**changes)


def test_runs_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    expected = {key(seed): Run((3, 1, seed), 0.5) for seed in range(3)}
    for one, run in expected.items():
        runs.append(path, one, run)

    assert {} == runs.read(tmp_path / "none.jsonl")
    assert expected == runs.read(path)


def test_a_file_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    for seed in range(2):
        runs.append(path, key(seed), Run((1, 2), 0.5))
    path.write_bytes(path.read_bytes()[:-9])

    assert {key(0)} == set(runs.read(path))
    runs.append(path, key(1), Run((4, 5), 0.5))
    assert {key(0): Run((1, 2), 0.5), key(1): Run((4, 5), 0.5)} == runs.read(path)


@pytest.mark.parametrize("line", ["{}", "[]", "nonsense", '{"space": "toy"}'])
def test_a_line_that_is_no_run_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "runs.jsonl"
    runs.append(path, key(0), Run((1,), 0.5))
    path.write_text(path.read_text() + line + "\n")

    with pytest.raises(UserError, match=r"line 2 is no run"):
        runs.read(path)


def test_what_changed_is_run_again(space: RecordedSpace) -> None:
    at = Path("toy.json")
    everything = search_efficiency.tasks({at: space}, ["evolution", "random"], 3, 50, {})
    done = {one: Run((0,), 0.1) for _, one in everything}
    other = dict(done)
    outdated = everything[4][1]
    other[outdated._replace(version="optuna 4.0.0, 0123456789ab")] = other.pop(outdated)

    assert [("evolution", 0), ("evolution", 1), ("evolution", 2), ("random", 0), ("random", 1), ("random", 2)] == [
        (one.method, one.seed) for _, one in everything
    ]
    assert [] == search_efficiency.tasks({at: space}, ["evolution", "random"], 3, 50, done)
    assert [(at, outdated)] == search_efficiency.tasks({at: space}, ["evolution", "random"], 3, 50, other)
    assert 6 == len(search_efficiency.tasks({at: space}, ["evolution", "random"], 3, 60, done))


def test_a_space_is_known_by_its_numbers(tmp_path: Path, space: RecordedSpace) -> None:
    first, second = small(tmp_path, [1.0, 2.0, 3.0]), small(tmp_path, [1.0, 2.0, 3.1])

    assert runs.digest(first) != runs.digest(second)
    assert runs.digest(space) == runs.digest(space)


@pytest.mark.parametrize(("name", "batch"), [("evolution", 1), ("evolution, batches of 16", 16)])
def test_ours_is_the_shipped_sampler(
    space: RecordedSpace, monkeypatch: pytest.MonkeyPatch, name: str, batch: int
) -> None:
    asked = 0
    propose = EvolutionSampler.sample_relative

    def counted(self: EvolutionSampler, *arguments: Any) -> dict[str, Any]:
        nonlocal asked
        asked += 1
        return propose(self, *arguments)

    monkeypatch.setattr(EvolutionSampler, "sample_relative", counted)
    rows = METHODS[name].search(space, 3, 40)

    assert 40 == asked
    assert replay(space, sampler="evolution", seed=3, budget=40, batch=batch).rows == rows


def test_the_estimate_is_known_where_a_recording_can_be_estimated(space: RecordedSpace) -> None:
    """What it is worth is measured elsewhere: here, that it is in the search, and asked of no other space."""
    own = load(Path(__file__).resolve().parent.parent / "studies" / "h200" / "spaces" / "mission_l4.jsonl.gz")
    name = "evolution, with the estimate"
    rows = METHODS[name].search(own, 1, 12)
    both = search_efficiency.tasks({Path("a"): space, Path("b"): own}, [name], 2, 12, {})

    assert rows != METHODS["evolution"].search(own, 1, 12)
    assert [("mission_l4", 0), ("mission_l4", 1)] == [(key.space, key.seed) for _, key in both]


def test_a_change_of_the_sampler_is_another_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {path.name for path in METHODS["evolution"].files}
    before = version("random")
    source = write(tmp_path / "sampler.py", "SIZE = 8")
    version.cache_clear()
    monkeypatch.setitem(
        METHODS, "random", METHODS["random"].__class__("", METHODS["random"].search, "numpy", (source,))
    )
    first = version("random")
    source.write_text("SIZE = 9")
    version.cache_clear()
    second = version("random")
    version.cache_clear()

    assert {"evolution.py", "proposer.py", "surrogate.py", "replay.py"} <= files
    assert first.startswith(f"numpy {np.__version__}, ")
    assert 3 == len({before, first, second})


@pytest.mark.parametrize("name", ["tpe", "nsga2", "cmaes"])  # gp takes half a minute
def test_an_optuna_peer_pays_for_distinct_feasible_configs(space: RecordedSpace, name: str) -> None:
    search = METHODS[f"Optuna {name}"].search
    rows = search(space, 1, 30)

    assert 30 == len(set(rows)) == len(rows)
    assert set(rows) <= set(range(len(space)))
    assert rows == search(space, 1, 30)
    assert rows != search(space, 2, 30)


def test_an_optuna_peer_ends_with_the_space(tmp_path: Path) -> None:
    everything = small(tmp_path, [3.0, "RuntimeFailedConfig", 1.0, 2.0, 1.04, "CompilationFailedConfig", 9.0])

    assert set(range(7)) == set(optuna_peer.search(everything, optuna_peer.PEERS["tpe"], 0, 200))


def test_kernel_tuner_reads_the_very_space(space: RecordedSpace, tmp_path: Path) -> None:
    again = load(write(tmp_path / "toy.json", kernel_tuner_peer.cachefile(space)))

    assert [axis.choices for axis in space.axes] == [axis.choices for axis in again.axes]
    assert space.points == again.points
    assert space.costs.tolist() == pytest.approx(again.costs.tolist(), nan_ok=True)
    assert sum(space.failures.values()) == sum(again.failures.values()) > 0


@pytest.mark.parametrize("name", kernel_tuner_peer.STRATEGIES)
def test_a_strategy_pays_for_distinct_feasible_configs(space: RecordedSpace, name: str) -> None:
    pytest.importorskip("kernel_tuner", reason="pip install -r benchmarks/requirements-search.txt")
    rows = kernel_tuner_peer.search(space, name, 1, 50)

    assert 0 < len(set(rows)) == len(rows) <= 50
    assert rows == kernel_tuner_peer.search(space, name, 1, 50)
    assert rows != kernel_tuner_peer.search(space, name, 2, 50)


@pytest.fixture
def four(tmp_path: Path) -> RecordedSpace:
    """1000, 2000, 4000 and 8000 us; random search expects 3750, 1833, 1250, 1000."""
    return small(tmp_path, [4.0, 1.0, 8.0, 2.0])


def test_figures_of_one_run(four: RecordedSpace) -> None:
    one = figures(four, [2, 3, 1], 4, random_search(four, 4))

    assert [12.5, 50.0, 100.0, 100.0] == pytest.approx(one.percent.tolist())
    assert {0.05: 3, 0.01: 3} == one.reached
    # random expects to be at the optimum after four draws: that evaluation is not scored
    expected = ((3750 - 8000) / 2750 + (11000 / 6 - 2000) / (5000 / 6) + (1250 - 1000) / 250) / 3
    assert [3750.0, 11000 / 6, 1250.0, 1000.0] == pytest.approx(random_search(four, 4).best.tolist())
    assert expected == pytest.approx(one.score)


def test_a_run_that_stops_keeps_its_best_and_is_scored_to_the_end(four: RecordedSpace) -> None:
    random = random_search(four, 4)

    assert [50.0, 50.0, 50.0, 50.0] == pytest.approx(figures(four, [3], 4, random).percent.tolist())
    assert figures(four, [3, 2, 0], 4, random).score == pytest.approx(figures(four, [3], 4, random).score)


def test_figures_over_seeds_and_spaces(four: RecordedSpace) -> None:
    """Two seeds on two spaces (the same one twice), worked out by hand; marks are at 50 evaluations."""
    random = random_search(four, 50)
    best, slow, never = (figures(four, rows, 50, random) for rows in ([1], [2, 2, 1], [3]))
    both = {0: [best, slow], 1: [best, never]}
    found = over_spaces(both)

    # seed 0: 100 and 100 %; seed 1: 100 and 50 %: means 100 and 75, standard error |100 - 75| / 2
    assert {"50": {"mean": 87.5, "standard_error": 12.5}} == found["percent_of_optimum"]
    assert {"mean": 75.0, "standard_error": 25.0} == found["percent_within_1_percent"]
    seeds = [(best.score + slow.score) / 2, (best.score + never.score) / 2]
    assert sum(seeds) / 2 == pytest.approx(found["score_over_random"]["mean"], abs=1e-4)
    assert abs(seeds[0] - seeds[1]) / 2 == pytest.approx(found["score_over_random"]["standard_error"], abs=1e-4)
    mean, error = curve(both)
    assert [(100 + 12.5 + 100 + 50) / 4, 87.5] == pytest.approx([mean[0], mean[2]])
    assert [abs(56.25 - 75) / 2, 12.5] == pytest.approx([error[0], error[2]])


def test_figures_over_seeds_of_one_space(four: RecordedSpace) -> None:
    random = random_search(four, 50)
    one = of_space([figures(four, rows, 50, random) for rows in ([1], [2, 2, 1], [3])])

    # 100, 100, 50 %: mean 83.333, standard deviation 28.868
    assert 3 == one["runs"]
    assert (
        pytest.approx({"mean": 250 / 3, "standard_error": 28.8675 / math.sqrt(3)}, abs=1e-4)
        == (one["percent_of_optimum"]["50"])
    )
    assert 3 == one["median_evaluations_to_1_percent"]
    assert of_space([figures(four, [3], 50, random)])["median_evaluations_to_1_percent"] is None


def test_only_whole_seeds_count_over_spaces(space: RecordedSpace, four: RecordedSpace) -> None:
    def done(on: RecordedSpace, seeds: Sequence[int], of: str) -> dict[Key, Run]:
        return {Key(on.name, runs.digest(on), "random", of, seed, 50): Run((0, 1, 2), 0.1) for seed in seeds}

    now = version("random")
    kept = done(space, [0, 1, 2], now) | done(four, [1, 2, 5], now) | done(four, [0], "an older one")
    members = [report.judged(on, kept, 50) for on in (space, four)]

    assert {1, 2} == set(report.complete(members, "random"))
    assert {} == report.complete(members, "evolution")
    assert {"public spaces": members} == report.groups(members)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """No plot and no second process: what is drawn is noted, runs are made here."""
    pictures: list[Path] = []
    monkeypatch.setattr(search_efficiency, "missing", lambda methods: [])
    monkeypatch.setattr(plot, "draw", lambda spaces, budget, path: pictures.append(path))

    def here(left: Sequence[search_efficiency.Task], jobs: int) -> Iterator[tuple[Key, Run]]:
        return ((task[1], search_efficiency.run(task)) for task in left)

    monkeypatch.setattr(search_efficiency, "run_all", here)
    return pictures


def test_the_benchmark_goes_on_where_it_was(
    toy: Path, tmp_path: Path, drawn: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    kept, output = tmp_path / "runs.jsonl", tmp_path / "result.json"
    command = [str(toy.parent), "--runs", str(kept), "--output", str(output), "--budget", "60", "--seeds"]
    methods = ["--method", "evolution", "--method", "random"]
    search_efficiency.main([*command, "1", *methods])
    first = kept.read_text()
    assert "2/2" in capsys.readouterr().err
    search_efficiency.main([*command, "2", *methods])
    second = kept.read_text()
    shown = capsys.readouterr()
    document = json.loads(output.read_text())
    search_efficiency.main([*command, "3", "--report"])

    assert second.startswith(first)
    assert [2, 4] == [len(text.splitlines()) for text in (first, second)]
    assert "2/2" in shown.err
    assert "3/" not in shown.err
    assert second == kept.read_text()
    assert document == json.loads(output.read_text())
    assert [tmp_path / "result.png"] * 3 == drawn
    ours = document["groups"]["public spaces"]["methods"]["evolution"]
    assert 2 == ours["seeds"]
    assert 60 == len(ours["curve"])
    assert f"| evolution | 2 | {ours['percent_of_optimum']['50']['mean']:.1f} ± " in shown.out
    assert document["spaces"]["toy"]["random, exact"]["percent_of_optimum"].keys() == {"50"}


def test_a_run_that_breaks_costs_no_other(
    toy: Path, tmp_path: Path, drawn: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(left: Sequence[search_efficiency.Task], jobs: int) -> Iterator[tuple[Key, Run | BaseException]]:
        yield left[0][1], ZeroDivisionError("odd")
        yield left[1][1], search_efficiency.run(left[1])

    monkeypatch.setattr(search_efficiency, "run_all", half)
    command = [str(toy), "--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "a.json"), "--method", "random"]
    with pytest.raises(UserError, match=r"1 runs broke .* random, seed 0, toy: ZeroDivisionError\('odd'\)"):
        search_efficiency.main([*command, "--seeds", "2", "--budget", "60"])

    assert {1} == {one.seed for one in runs.read(tmp_path / "runs")}
    assert [tmp_path / "a.png"] == drawn


def test_runs_are_made_in_other_processes(toy: Path, space: RecordedSpace) -> None:
    known, unknown = (Key(space.name, runs.digest(space), method, "1", 2, 20) for method in ("random", "no method"))
    found = dict(search_efficiency.run_all([(toy, known), (toy, unknown)], 1))

    assert isinstance(found[known], Run)
    assert replay(space, sampler="random", seed=2, budget=20).rows == found[known].rows
    assert isinstance(found[unknown], KeyError)


def test_what_is_missing_is_said_in_one_line(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    assert ["kernel_tuner", "matplotlib"] == missing(["evolution", "Kernel Tuner pso"])
    with pytest.raises(UserError, match=r"^no module kernel_tuner, matplotlib.*requirements-search.txt.*--method$"):
        search_efficiency.main(
            [str(toy), "--runs", str(tmp_path / "a"), "--output", str(tmp_path / "b"), "--method", "Kernel Tuner pso"]
        )


def test_a_folder_without_spaces_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no \.gz"):
        search_efficiency.files([tmp_path])
