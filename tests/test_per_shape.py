"""`search --per-shape`: one study after the other, where it goes on, and the table at the end."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import statistics
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import fakes
import measured_study
import pytest
from command_line import JOBS

from evoengine.archive.archive import Archive
from evoengine.archive.study import Study
from evoengine.cli import main, per_shape, running
from evoengine.cli.dispatch import dispatch_row, dispatch_table
from evoengine.cli.resolve import Target, reopen
from evoengine.cli.storage import without_secrets
from evoengine.devices import Work
from evoengine.devices.cuda.results import BaselineTiming, Final, Finals, Setup, make_final
from evoengine.errors import TemplateError
from evoengine.hardware import card
from evoengine.problem import AttentionProblem
from evoengine.progress import Budget, End
from evoengine.question import Question
from evoengine.space import Values
from evoengine.verdict import Artifact, Candidate, Estimate, Verdict

SHAPES = ("1000", "4000", "16000")
LABELS = ["N1000", "N4000", "N16000"]
SEARCH = ("search", "--template", "mine", "--per-shape", "--budget", "5", *JOBS)


class Card:
    """A card on which a config is the faster the nearer a CTA is to half the shape; `hook` hears of every verdict."""

    name = "NVIDIA L4"

    def __init__(self, question: Question, hook: Callable[[Question], None]) -> None:
        self._question = question
        self._hook = hook
        self._control_us = self._us(question.default.values)

    def _us(self, values: Values) -> float:
        n = self._question.problem.n  # type: ignore[attr-defined]
        return float(10.0 + abs(values["THREADS"] * values["ITEMS"] - n / 2) / 1000)

    def start(self, values: Values, artifact: Artifact) -> Setup:
        self._hook(self._question)
        sdpa = BaselineTiming("sdpa", (30.0, 30.0), (10.0, 10.0), 10, 1e-3, 1e-4, 0)
        return Setup(fakes._measured(self._control_us, self._control_us), (sdpa,), {}, {"driver": "1"})

    def judge(self, work: Iterable[tuple[Candidate, Artifact]]) -> Iterator[tuple[Candidate, Verdict]]:
        for candidate, _ in work:
            self._hook(self._question)
            yield candidate, fakes._measured(self._us(candidate.config.values), self._control_us)

    def finals(self, work: Work, seed: int) -> Finals:
        def lap(name: str, us: float) -> Final:
            return make_final(name, [us] * 5, [self._control_us] * 5, 10, seed, cold_us=[300.0] * 3)

        finalists = tuple((one, lap(one.config.label, self._us(one.config.values))) for one, _ in work)
        return Finals(lap("default", self._control_us), finalists, (lap("sdpa", 30.0),), {"driver": "1"}, seed)

    def in_hand(self) -> list[list[int]]:
        return []

    def close(self) -> None:
        pass


class Paper(fakes.FakeDevice):
    """No card."""

    def judge(self, work: Iterable[tuple[Candidate, Artifact]]) -> Iterator[tuple[Candidate, Verdict]]:
        for candidate, _ in work:
            yield candidate, Estimate(5.0 + candidate.config.values["ITEMS"])


class Bench:
    """Runs the command in this process, on a fake card or (`measures` False) on none."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd
        self.measures = True
        self.hook: Callable[[Question], None] = lambda question: None
        self.searched: list[str] = []
        self.err = ""

    def device_for(self, question: Question, target: Target, *_: Any, **__: Any) -> tuple[Any, Any]:
        self.searched.append(question.problem.label)
        if not self.measures:
            return Paper(), None
        device = Card(question, self.hook)
        return device, device

    def __call__(self, *options: str, code: int = 0, shapes: Iterable[str] = SHAPES) -> str:
        self.searched.clear()
        assert code == main([*SEARCH, *(word for shape in shapes for word in ("--shape", shape)), *options])
        out, self.err = self._capfd.readouterr()
        return out

    def table(self, *options: str, code: int = 0, shapes: Iterable[str] = SHAPES) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self(*options, "--json", code=code, shapes=shapes))
        return document


@pytest.fixture
def bench(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Bench:
    made = Bench(capfd)
    here = card("l4")
    monkeypatch.setattr(running, "device_for", made.device_for)
    monkeypatch.setattr(per_shape, "find_target", lambda *_: Target(here, here, 0 if made.measures else None))
    return made


def stored(name: str) -> Study:
    return Archive.open("sqlite:///studies/evoengine.db").open_study(name)


class TestTable:
    def test_has_the_config_that_export_takes_of_every_shape(self, bench: Bench) -> None:
        table = bench.table("--study", "set")
        rows = table["shapes"]

        assert LABELS == [row["shape"] for row in rows] == bench.searched
        assert [f"set-{label}" for label in LABELS] == [row["study"] for row in rows]
        assert [{"n": int(shape)} for shape in SHAPES] == [row["problem"] for row in rows]
        assert ["budget spent"] * 3 == [row["state"] for row in rows]
        for row in rows:
            [*elites] = stored(row["study"]).elites()
            best = elites[0]
            assert (best.number, best.median_us, best.verdict) == (row["trial"], row["median_us"], row["verdict"])
            assert pytest.approx(1 / best.control_ratio) == row["speedup_over_default"]
            assert pytest.approx(30.0 / best.median_us) == row["speedup_over_sdpa"]
        speedups = [row["speedup_over_default"] for row in rows]
        assert pytest.approx(statistics.geometric_mean(speedups)) == table["geometric_mean_over_default"]
        assert min(speedups) == table["worst_over_default"] < max(speedups)

    def test_its_commands_make_one_header_and_one_file_of_wisdom(
        self, bench: Bench, capfd: pytest.CaptureFixture[str]
    ) -> None:
        exports = bench.table()["exports"]
        for command in exports:
            assert 0 == main(shlex.split(command)[1:]), capfd.readouterr().err

        assert ["header", "wisdom"] == [shlex.split(one)[shlex.split(one).index("--format") + 1] for one in exports]
        assert all(f"#elif defined(SHAPE_{label})" in Path("mine.h").read_text() for label in LABELS[1:])
        assert 1 + len(LABELS) == len(Path("mine.wisdom").read_text().splitlines())

    @pytest.mark.parametrize("width", ["80", "160"])
    def test_text_names_shapes_times_and_commands(
        self, bench: Bench, width: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("evoengine.cli.tables.PIPE_WIDTH", int(width))
        out = bench("--study", "set", shapes=SHAPES[:2])

        assert all(f"{word} " in out for word in (*LABELS[:2], "us", "vs default", "vs SDPA"))
        assert ("verdict" in out) == (width == "160")
        assert "x in the geometric mean, " in out
        assert "evoengine export set-N1000 set-N4000 --format wisdom -o mine.wisdom" in out
        assert "estimated" not in out.lower()

    def test_a_shape_given_twice_counts_once_and_a_file_holds_more(self, bench: Bench) -> None:
        Path("shapes.txt").write_text("# two\n4000\nn=1000  # again\n")
        rows = bench.table("--shapes", "shapes.txt", shapes=["1000"])["shapes"]

        assert LABELS[:2] == [row["shape"] for row in rows] == bench.searched


class TestExports:
    def test_attention_is_for_pytorch_too(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        storage = str(tmp_path / "studies.db")
        problems = [AttentionProblem(), AttentionProblem(seq_q=1024)]
        with closing(Archive.open(storage)) as archive:
            rows = []
            for problem in problems:
                study = measured_study.write_study(archive, measured_study.spec_of(problem, name=f"of {problem.label}"))
                rows.append(dispatch_row(reopen(study.spec), study, ""))
        table = dispatch_table(measured_study.TEMPLATE, rows, f" --storage {storage}")
        for command in table["exports"]:  # forced, because the study's cubins are none
            words = shlex.split(command)
            assert 0 == main([*words[1:-1], str(tmp_path / words[-1]), "--force"]), capfd.readouterr().err

        made = {path.name for path in tmp_path.iterdir()}
        assert {"attention.h", "attention.wisdom", "attention_kernels"} <= made
        assert (tmp_path / "attention_kernels" / "attention.wisdom").is_file()
        assert [4.04, 4.04] == [pytest.approx(row["median_us"]) for row in rows]
        assert [9.0 / 4.0] * 2 == [pytest.approx(row["speedup_over_sdpa"]) for row in rows]


class TestWarmStart:
    def test_every_study_begins_with_what_those_before_it_measured_the_nearest_first(self, bench: Bench) -> None:
        names = [row["study"] for row in bench.table("--study", "set")["shapes"]]
        told = [[one.name for one in stored(name).spec.sources if one.name in names] for name in names]

        assert [[], [names[0]], [names[1], names[0]]] == told

    def test_a_sampler_that_cannot_use_it_is_told_nothing(self, bench: Bench) -> None:
        names = [row["study"] for row in bench.table("--sampler", "random", shapes=SHAPES[:2])["shapes"]]

        assert [(), ()] == [stored(name).spec.sources for name in names]


class TestGoingOn:
    def test_the_same_command_again_keeps_what_is_finished(self, bench: Bench) -> None:
        first = bench.table()["shapes"]
        again = bench.table()["shapes"]

        assert [] == bench.searched
        assert ["kept: budget spent"] * 3 == [row.pop("state") for row in again]
        assert [{key: row[key] for key in row if key != "state"} for row in first] == again

    def test_a_larger_budget_goes_on_in_the_same_studies(self, bench: Bench) -> None:
        first = bench.table(shapes=SHAPES[:2])["shapes"]
        again = bench.table("--budget", "7", shapes=SHAPES[:2])["shapes"]

        assert LABELS[:2] == bench.searched
        assert [row["study"] for row in first] == [row["study"] for row in again]
        assert [7, 7] == [stored(row["study"]).spec.budget for row in again]

    @pytest.mark.parametrize("option", [("--seed", "1"), ("--max-registers", "64"), ("--study", "mine")])
    def test_another_search_has_studies_of_its_own(self, bench: Bench, option: tuple[str, str]) -> None:
        first, again = bench.table(shapes=["1000"]), bench.table(*option, shapes=["1000"])

        assert LABELS[:1] == bench.searched
        assert first["shapes"][0]["study"] != again["shapes"][0]["study"]

    def test_ctrl_c_stops_the_whole_and_says_how_to_go_on(self, bench: Bench) -> None:
        heard: list[str] = []

        def stop_at_the_third_of_the_second(question: Question) -> None:
            heard.append(question.problem.label)
            if heard.count("N4000") == 3:
                os.kill(os.getpid(), signal.SIGINT)

        bench.hook = stop_at_the_third_of_the_second
        stopped = bench.table("--study", "set", code=130)["shapes"]
        said = bench.err.splitlines()[-1]

        assert ["budget spent", "stopped by the user", "not begun"] == [row["state"] for row in stopped]
        assert ["set-N1000", "set-N4000", None] == [row["study"] for row in stopped]
        words = said.removeprefix("go on with the same command: ")
        assert [*SEARCH, "--shape", "1000", "--shape", "4000", "--shape", "16000", "--study", "set", "--json"] == (
            shlex.split(words)[1:]
        )
        before = {one.number: one for one in stored("set-N4000").records() if one.verdict is not None}

        bench.hook = lambda question: None
        rows = bench.table("--study", "set")["shapes"]
        assert LABELS[1:] == bench.searched
        assert ["kept: budget spent", "budget spent", "budget spent"] == [row["state"] for row in rows]
        after = {one.number: one for one in stored("set-N4000").records()}
        assert 2 <= len(before)
        assert before == {number: after[number] for number in before}

    @pytest.mark.parametrize("times", [1, 2])
    def test_ctrl_c_names_the_command_once_however_often(self, bench: Bench, times: int) -> None:
        heard: list[str] = []

        def stop_at_the_third(question: Question) -> None:
            heard.append(question.problem.label)
            if len(heard) == 3:
                for _ in range(times):
                    os.kill(os.getpid(), signal.SIGINT)

        bench.hook = stop_at_the_third
        bench(code=130)

        assert 1 == bench.err.count("go on with")
        assert ("stopped at once; every verdict is stored" in bench.err) == (times == 2)
        said = bench.err.partition("go on with")[2].partition("evoengine search ")[2]
        assert [*SEARCH[1:], *(word for shape in SHAPES for word in ("--shape", shape))] == shlex.split(said)

    def test_a_run_that_died_in_its_final_run_is_not_finished(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def die(*_: Any) -> None:
            raise KeyboardInterrupt

        bench.table("--study", "set", shapes=["4000"])
        with monkeypatch.context() as patch:
            patch.setattr(Card, "finals", die)
            bench("--study", "set", "--budget", "6", shapes=["4000"], code=130)
        [row] = bench.table("--study", "set", "--budget", "6", shapes=["4000"])["shapes"]

        assert LABELS[1:2] == bench.searched
        assert (End.SPENT_BEFORE, 6) == (row["state"], stored("set-N4000").spec.budget)

    def test_what_was_measured_and_not_confirmed_is_not_finished(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench.table(shapes=["4000"])
        monkeypatch.setattr(Study, "elites", lambda study: [])
        bench.table(shapes=["4000"])

        assert LABELS[1:2] == bench.searched

    def test_a_stop_between_two_studies_says_it_too(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        def stop(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(per_shape, "create", stop)
        assert "" == bench(code=130)
        assert "go on with the same command: evoengine search" in bench.err

    @pytest.mark.parametrize(
        ("storage", "said"),
        [
            ("a@b.db", "--storage a@b.db"),
            ("postgresql://ada@host/db", "--storage postgresql://ada@host/db"),
            ("postgresql://ada:secret@host/db", "--storage URL"),
        ],
    )
    def test_the_command_names_the_storage_unless_it_holds_a_password(self, storage: str, said: str) -> None:
        line = shlex.join(["evoengine", "search", "--storage", without_secrets(storage), "--per-shape"])
        asked = argparse.Namespace(storage=storage, command_line=line)

        assert f"evoengine search {said} --per-shape" == per_shape._same_command(asked)

    def test_estimates_are_called_so_and_wait_for_the_card(self, bench: Bench) -> None:
        bench.measures = False
        [guessed] = bench.table(shapes=["1000"])["shapes"]
        out = bench(shapes=["1000"])
        assert [] == bench.searched
        assert "ESTIMATED, not measured" in out
        assert "--format wisdom" not in out

        bench.measures = True
        [measured] = bench.table(shapes=["1000"])["shapes"]
        assert LABELS[:1] == bench.searched
        assert guessed["study"] == measured["study"]
        assert (None, None) == (guessed["median_us"], measured["estimated_us"])
        assert guessed["estimated_us"] < 22
        assert measured["median_us"] > 10


class TestMistakes:
    def test_a_weight_means_nothing_to_studies_of_their_own(self, bench: Bench) -> None:
        bench(code=2, shapes=["1000", "4000 weight=2"])
        [line] = bench.err.splitlines()

        assert "'4000 weight=2': a weight is for one study over several shapes, leave it out" in line
        assert [] == Archive.open("sqlite:///studies/evoengine.db").studies()

    def test_a_bad_shape_is_found_before_anything_is_spent(self, bench: Bench) -> None:
        bench(code=2, shapes=["1000", "many"])

        assert "'many'" in bench.err
        assert [] == Archive.open("sqlite:///studies/evoengine.db").studies()

    def test_a_broken_default_names_its_shape(self, bench: Bench) -> None:
        def broken(question: Question) -> None:
            if question.problem.label == "N4000":
                raise TemplateError("the default config is rejected: wrong")

        bench.hook = broken
        bench(code=1)

        assert "N4000: the default config is rejected: wrong; the studies before it are kept" in bench.err
        assert LABELS[:2] == bench.searched

    def test_dry_run_describes_every_space(self, bench: Bench) -> None:
        described = json.loads(bench("--dry-run", "--json", "--device", "none"))

        assert [{"n": int(shape)} for shape in SHAPES] == [one["problem"] for one in described]
        assert [] == bench.searched


@pytest.mark.parametrize(
    ("status", "spent", "budget", "granted"),
    [
        (End.SPENT, 5, Budget(5), True),
        (End.SPENT, 5, Budget(6), False),
        (End.SPENT_BEFORE, 7, Budget(6), True),
        (End.STOPPED, 6, Budget(6), False),
        ("new", 6, Budget(6), False),
        (End.ALL_TRIED, 3, Budget(6), True),
        ("60 s are over", 3, Budget(6, 60.0), True),
        ("60 s are over", 3, Budget(6, 90.0), False),
        ("60 s are over", 3, Budget(6), False),
        ("converged after 3 of 6: it", 3, Budget(6, None, True), True),
        ("converged after 3 of 6: it", 3, Budget(6), False),
    ],
)
def test_what_a_finished_study_has_had(status: str, spent: int, budget: Budget, granted: bool) -> None:
    assert granted == budget.granted(status, spent)
