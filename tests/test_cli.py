"""The command line without a GPU: verbs, JSON, exit codes, and one clear line for every mistake."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from command_line import JOBS, QUESTION, SPACE, lay_out, make_template, start

from evoengine.archive.study import Study
from evoengine.cli import main
from evoengine.cli.go_on import resume_command
from evoengine.cli.parser import make_parser
from evoengine.cli.running import search_study

NAME = "first"


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output, which must be one JSON document and nothing else."""
        return json.loads(self.out)


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run(*arguments: str) -> Ran:
        try:
            code = main(arguments)
        except SystemExit as left:  # argparse
            code = int(str(left.code))
        return Ran(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, database: Path, cache_folder: Path
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder in which a search of six candidates has run, and what it printed."""
    folder = lay_out(tmp_path_factory.mktemp("finished"), database)
    options = ("--study", NAME, "--budget", "6", "--json", "--verbose")
    process = start(folder, "search", *QUESTION, *JOBS, *options, stdout=subprocess.PIPE)
    out, err = process.communicate(timeout=120)
    return folder, subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture
def searched(finished: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder to work in; the template stays where the study knows it."""
    shutil.copytree(finished[0] / "studies", tmp_path / "studies")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def one_line(ran: Ran, code: int, *words: str) -> None:
    """The command failed with this code and one line on standard error that holds these words."""
    assert code == ran.code
    assert "" == ran.out
    line = ran.err.removesuffix("\n")
    assert "\n" not in line, f"more than one line:\n{line}"
    assert line.startswith("evoengine: ")
    for word in words:
        assert word in line


class TestSearch:
    def test_prints_one_json_document_and_its_progress_elsewhere(self, finished: tuple[Path, Any]) -> None:
        _, done = finished
        document = json.loads(done.stdout)

        assert 0 == done.returncode, done.stderr
        assert "nothing is measured" in done.stderr
        assert len(document["shortlist"]) <= 6 == document["spent"] == document["budget"]
        assert {"estimated", "compile", "twin"} == set(document["verdicts"])
        assert done.stderr.count("\n#") == sum(document["verdicts"].values())
        assert ([], [], []) == (document["elites"], document["measured"], document["baselines"])
        assert "none confirmed" == document["winner"]
        assert "budget spent" == document["stopped"]

    def test_json_has_what_a_reader_needs(self, finished: tuple[Path, Any]) -> None:
        document = json.loads(finished[1].stdout)
        told = dict(study=NAME, template="mine", shape="N1000", device="NVIDIA L4", arch="sm_89", sampler="evolution")

        assert told == {key: document[key] for key in told}
        assert {"n": 1000} == document["problem"]
        assert document["command"].startswith(f"evoengine search {' '.join(QUESTION)}")
        for row in document["shortlist"]:
            assert SHORTLISTED == set(row)
            assert row["estimated_us"] > 0
            assert row["error"] < 1e-6
            assert row["label"] == "t_{THREADS}.i_{ITEMS}.x_{IGNORED}".format(**row["config"])
        estimates = [row["estimated_us"] for row in document["shortlist"]]
        assert sorted(estimates) == estimates
        [refused] = document["rejections"]
        assert ("compile", document["verdicts"]["compile"]) == (refused["gate"], refused["count"])
        assert "threads must be a multiple of 32" in refused["example"]

    def test_table_says_that_nothing_was_timed_and_quiet_prints_nothing_else(self, run: Run, folder: Path) -> None:
        ran = run("search", *QUESTION, *JOBS, "--budget", "3", "--quiet", "--space", "mine/space.py")

        assert (0, "") == (ran.code, ran.err)
        assert "shortlist: ESTIMATED, not measured" in ran.out
        assert "3 of 3 candidates: 2 estimated, 1 compile, 1 twin" in ran.out
        assert "rule whole_warps: threads must be a multiple of 32" in ran.out
        assert run("studies", "--json").document[0]["study"].startswith("mine-N1000-l4-")

    def test_the_same_question_again_gets_a_name_of_its_own(self, run: Run, folder: Path) -> None:
        errors = [run("search", *QUESTION, *JOBS, "--budget", "1").err for _ in range(2)]
        second, first = [row["study"] for row in run("studies", "--json").document]
        go_on = f"evoengine resume {first} --batch 4"
        told = f"study {first} asks the same, go on with it with: {go_on}; this one is {second}\n"

        assert f"{first}-2" == second
        assert [False, True] == [told in err for err in errors]

    def test_one_that_ends_before_its_budget_says_how_to_go_on(self, run: Run, folder: Path) -> None:
        cut = run("search", *QUESTION, *JOBS, "--budget", "9", "--seconds", "0.001", "--quiet")
        whole = run("resume", *JOBS, "--budget", "2", "--quiet")

        assert (0, f"go on with: evoengine resume {last_name(run)} --batch 4\n") == (cut.code, cut.err)
        assert (0, "") == (whole.code, whole.err)

    def test_nothing_that_passes_is_exit_code_1_with_the_commonest_reason(self, run: Run, folder: Path) -> None:
        ran = run("search", *QUESTION, *JOBS, "--budget", "3", "--quiet", "--max-registers", "8")
        last = ran.err.removesuffix("\n")

        assert 1 == ran.code
        assert "\n" not in last
        assert "no config passed every gate" in last
        assert "2 times, is at the gate resources: 12 registers a thread, allowed are 8: relax that limit" in last


SHORTLISTED = {
    "trial", "label", "config", "operator", "generation", "parents", "registers", "spill_bytes", "smem_bytes",
    "cubin_sha256", "ctas_per_sm", "bound_by", "estimated_us", "error",
}  # fmt: skip


class TestResume:
    def test_a_spent_budget_leaves_nothing_to_do(self, run: Run, searched: Path) -> None:
        before = run("show", "--json").document
        ran = run("resume", *JOBS)

        assert 0 == ran.code
        assert "nothing to do: the budget was spent before, raise it with --budget" in ran.out
        assert before == run("show", "--json").document

    def test_a_raised_budget_is_spent_and_remembered(self, run: Run, searched: Path) -> None:
        before = run("show", NAME, "--json", "--top", "99").document
        after = run("resume", NAME, *JOBS, "--budget", "8", "--json", "--top", "99").document
        shown = run("show", "--json").document

        assert (6, 8, 8) == (before["spent"], after["spent"], after["budget"])
        assert (8, 8) == (shown["spent"], shown["budget"])
        kept = {row["trial"]: row for row in after["shortlist"]}
        assert before["shortlist"] == [kept[row["trial"]] for row in before["shortlist"]]
        assert 2 == len(kept) - len(before["shortlist"]) + (
            after["verdicts"]["compile"] - before["verdicts"]["compile"]
        )

    def test_a_changed_template_is_another_question(
        self, run: Run, finished: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        moved = shutil.copytree(finished[0], tmp_path / "moved")
        kernel = finished[0] / "mine" / "kernel.cu"
        monkeypatch.chdir(moved)
        before = kernel.read_text()
        kernel.write_text(before + "\n// another\n")
        try:
            one_line(run("resume"), 2, "template of study first has changed", "start a new search")
            assert 0 == run("show").code
        finally:
            kernel.write_text(before)

    def test_a_study_of_a_sampler_without_a_model_cannot_converge(self, run: Run, folder: Path) -> None:
        how = ("search", *QUESTION, *JOBS, "--sampler", "random", "--budget", "1", "--quiet")
        one_line(run(*how, "--until-converged"), 2, "'random' does not", "leave --until-converged out")
        assert [] == run("studies", "--json").document
        run(*how)
        one_line(run("resume", "--until-converged"), 2, "'random' does not", "leave --until-converged out")

    def test_a_gpu_that_is_not_here_is_missed(self, run: Run, searched: Path) -> None:
        one_line(run("resume", "--device", "cuda"), 2, "'cuda': no such GPU", "evoengine doctor")


class TestReading:
    def test_show_repeats_what_the_search_said(self, run: Run, searched: Path, finished: tuple[Path, Any]) -> None:
        said = json.loads(finished[1].stdout)
        said.pop("stopped")
        assert 0.0 < sum(said.pop("seconds").values()), "of the run, which the study does not keep"

        assert said == run("show", "--json").document
        assert said["shortlist"][:1] == run("show", NAME, "--top", "1", "--json").document["shortlist"]
        assert said["shortlist"][0]["label"] in run("show").out

    def test_studies_lists_them(self, run: Run, searched: Path, finished: tuple[Path, Any]) -> None:
        said = json.loads(finished[1].stdout)
        [row] = run("studies", "--json").document

        assert (NAME, "budget spent", "") == (row["study"], row["status"], row["searched_by"])
        assert (None, said["shortlist"][0]["estimated_us"]) == (row["best_us"], row["best_estimated_us"])
        refused = said["verdicts"]["compile"]
        assert (sum(said["verdicts"].values()), refused, 0) == (row["candidates"], row["rejected"], row["elites"])
        assert NAME in run("studies").out

    def test_no_study_yet(self, run: Run, folder: Path) -> None:
        assert [] == run("studies", "--json").document
        one_line(run("show"), 2, "holds no study yet", "evoengine search")
        one_line(run("resume"), 2, "holds no study yet", "evoengine search")

    def test_doctor_speaks_json(self, run: Run, folder: Path) -> None:
        ran = run("doctor", "--json")
        states = {finding["state"] for finding in ran.document}

        assert {"name", "state", "detail", "remedy"} == set(ran.document[0])
        assert {"ok", "warn", "missing"} >= states
        assert int("missing" in states) == ran.code


class TestSpace:
    def test_dry_run_is_space_and_writes_nothing(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        space = run("space", "--device", "none", "--json").document
        dry = run("search", "--device", "none", "--dry-run", "--json").document

        assert space == dry
        assert space["product"] == space["feasible"] + sum(space["infeasible_by_rule"].values())
        assert 0 < space["feasible"] < space["product"]
        assert [] == list(tmp_path.iterdir())

    def test_text_has_axes_sizes_and_reasons(self, run: Run) -> None:
        ran = run("space", "--device", "none")
        told = run("space", "--device", "none", "--json").document

        assert 0 == ran.code
        assert all(axis["name"] in ran.out for axis in told["axes"])
        assert f"{told['feasible']:,} of {told['product']:,} configs are feasible" in ran.out
        assert all(rule in ran.out for rule, count in told["infeasible_by_rule"].items() if count)

    def test_limits_of_another_card_shrink_the_space(self, run: Run) -> None:
        h200 = run("space", "--device", "none", "--target", "h200", "--json").document
        l4 = run("space", "--device", "none", "--target", "h200", "--limits", "l4", "--json").document

        assert ("NVIDIA H200", "NVIDIA L4") == (h200["limits"]["name"], l4["limits"]["name"])
        assert h200["feasible"] > l4["feasible"]


class TestMistakes:
    """Every line names the value and the remedy; the exit code is 2, and nothing is written."""

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (("--shape", "1,8,512,64,sequence=4"), ("'sequence'", "batch", "head_dim")),
            (("--shape", "1,8,512,80"), ("head_dim=80", "32, 64, 96, 128, 256")),
            (("--shape", "1,8,many,64"), ("'many'",)),
            (("--shape", "1,8,512,64,dtype=fp8"), ("'fp8'", "fp16 and bf16")),
            (("--template", "atention"), ("'atention'", "attention")),
            (("--template", "."), ("has no kernel.cu",)),
            (("--space", "nowhere.py"), ("nowhere.py does not exist", "give the path")),
            (("--target", "h10"), ("'h10'", "did you mean h100?")),
            (("--limits", "h20"), ("'h20'", "did you mean h200?")),
            (("--sampler", "evolutoin"), ("'evolutoin'", "did you mean evolution?")),
            (("--max-smem", "1"), ("allowed are 1 B", "relax the limits")),
            (("--device", "gpu"), ("'gpu'", "auto, cuda, cuda:N or none")),
            (("--device", "cuda"), ("'cuda'", "evoengine doctor")),
            (("--device", "cuda:7"), ("'cuda:7'", "evoengine doctor")),
        ],
        ids=lambda one: " ".join(one) if one[0].startswith("--") else "",
    )
    def test_in_the_question(
        self,
        run: Run,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        options: tuple[str, ...],
        words: tuple[str, ...],
    ) -> None:
        monkeypatch.chdir(tmp_path)

        one_line(run("search", "--device", "none", "--budget", "1", *options), 2, *words)
        assert [] == list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("options", "word"),
        [(("--budget", "0"), "'0' must be a whole number"), (("--seconds", "nan"), "'nan' must be a positive number")],
    )
    def test_in_a_number(self, run: Run, options: tuple[str, str], word: str) -> None:
        ran = run("search", *options)

        assert (2, "") == (ran.code, ran.out)
        assert word in ran.err.splitlines()[-1]

    @pytest.mark.parametrize("several", [(), ("--per-shape",)])
    def test_no_cache(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, several: tuple[str, ...]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("EVOENGINE_HOME", "/proc/nowhere")

        one_line(run("search", "--device", "none", *several), 2, "cannot use the cache folder /proc/nowhere")
        assert [] == list(tmp_path.iterdir())

    def test_no_compiler(self, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CUDA_HOME", raising=False)
        monkeypatch.setenv("PATH", str(folder))

        one_line(run("search", *QUESTION, "--compiler", "nvcc"), 2, "nvcc is not in PATH", "CUDA_HOME", "nvrtc")
        assert [] == run("studies", "--json").document

    def test_unknown_study(self, run: Run, searched: Path) -> None:
        for verb in ("show", "resume"):
            one_line(run(verb, "frist"), 2, "'frist'", f"did you mean {NAME}?")

    def test_taken_name(self, run: Run, searched: Path, finished: tuple[Path, Any], tmp_path: Path) -> None:
        mine = str(finished[0] / "mine")
        (tmp_path / "copy.db").write_bytes(Path("studies/evoengine.db").read_bytes())
        search = ("search", *QUESTION, "--template", mine, "--study", NAME)

        one_line(
            run(*search), 2, f"study {NAME} exists: give another --study, or resume it with: evoengine resume {NAME}"
        )
        there = str(tmp_path / "copy.db")
        one_line(run(*search, "--storage", there), 2, f"evoengine resume {NAME} --storage {there}")


class TestDatabase:
    """A database that cannot be used is one line and exit code 2, whatever the verb."""

    def check(self, run: Run, storage: str, *words: str) -> None:
        for verb in (("studies",), ("show",), ("resume",), ("search", *QUESTION)):
            one_line(run(*verb, "--storage", storage), 2, *words)

    def test_a_folder(self, run: Run, folder: Path) -> None:
        self.check(run, str(folder), str(folder), "is a folder: give a file")

    def test_a_folder_that_cannot_be_made(self, run: Run, folder: Path) -> None:
        self.check(run, "/proc/studies/evoengine.db", "/proc/studies/evoengine.db", "--storage")

    def test_a_folder_that_is_a_file(self, run: Run, folder: Path) -> None:
        self.check(run, "mine/kernel.cu/evoengine.db", "kernel.cu/evoengine.db", "--storage")

    def test_a_file_that_is_no_database(self, run: Run, folder: Path) -> None:
        self.check(run, "mine/kernel.cu", "kernel.cu", "not a database", "--storage")

    def test_a_corrupt_database(self, run: Run, folder: Path) -> None:
        broken = folder / "studies" / "evoengine.db"
        pages = broken.read_bytes()
        broken.write_bytes(pages[:8192] + b"\xa5" * (len(pages) - 8192))

        self.check(run, str(broken), str(broken), "malformed", "--storage")

    def test_a_newer_schema(self, run: Run, folder: Path) -> None:
        engine = sqlalchemy.create_engine("sqlite:///studies/evoengine.db")
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("UPDATE evo_schema SET version = 9"))
        engine.dispose()

        self.check(run, "studies/evoengine.db", "schema 9", "upgrade evoengine")

    def test_an_unknown_kind_and_a_server_that_is_away(self, run: Run, folder: Path) -> None:
        one_line(run("studies", "--storage", "oracle9://x/y"), 2, "oracle9", "sqlite:///FILE")

    def test_one_that_is_locked_in_the_search(self, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def locked(*given: Any, **more: Any) -> Any:
            with closing(sqlite3.connect("lk.db", isolation_level=None)) as other:
                other.execute("BEGIN EXCLUSIVE")
                return search_study(*given, **more)

        monkeypatch.setattr("evoengine.cli.search.search_study", locked)
        monkeypatch.setattr("evoengine.archive.database.PATIENCE_SECONDS", 0.2)
        monkeypatch.setattr("evoengine.archive.database.BUSY_SECONDS", 0.05)
        options = ("--study", "L", "--storage", "lk.db", "--batch", "4", "--until-converged")

        one_line(
            run("search", *QUESTION, *options),
            2,
            "database lk.db does not answer (database is locked): check that it is there and free; then go on with: "
            "evoengine resume L --until-converged --batch 4 --storage lk.db",
        )


@pytest.mark.parametrize(
    ("options", "repeated"),
    [
        ("", ""),
        ("--budget 9 --seconds 5 --jobs 2 --top 3 --quiet --devices 0,1", ""),
        ("--until-converged --batch 4", " --until-converged --batch 4"),
        ("--sanitize --cache 'a b' --storage 'a?b.db'", " --sanitize --cache 'a b' --storage 'a?b.db'"),
        ("--storage postgresql://me:s3cret@db/x", " --storage URL"),
    ],
)
@pytest.mark.parametrize("verb", ["search", "resume"])
def test_the_command_to_go_on_with_searches_in_the_same_way(verb: str, options: str, repeated: str) -> None:
    arguments = make_parser().parse_args([verb, *shlex.split(options)])

    assert f"evoengine resume 'my study'{repeated}" == resume_command(arguments, "my study")


def last_name(run: Run) -> str:
    return str(run("studies", "--json").document[0]["study"])


class TestOwnTemplate:
    """What is wrong with a user's template is said in one line; no config of it is judged."""

    def search(self, run: Run, *options: str) -> Ran:
        return run("search", *QUESTION, *JOBS, "--budget", "2", "--quiet", *options)

    @pytest.mark.parametrize(
        ("name", "old", "new", "code", "words"),
        [
            ("kernel.cu", "staged[threadIdx.x] = i", "staged[threadIdx.x] = ;", 1, ("does not build", "expected")),
            ("kernel.cu", "evo_scale(", "scale(", 1, ("kernel.cu must define", "evo_scale", "it defines scale")),
            ("kernel.cu", "alpha * staged", "alpha + staged", 1, ("default config t_64.i_2.x_0 is rejected",)),
            ("kernel.cu", "if (i < n) y[i]", "y[i]", 1, ("default config t_64.i_2.x_0 is rejected",)),
            ("template.py", ', "EVO_ITEMS": values["ITEMS"]', "", 1, ("macro EVO_ITEMS", "defines()")),
            ("template.py", "def launch", "def lunch", 2, ("template.py lacks launch",)),
            ("template.py", "import numpy as np", "import nunpy as np", 2, ("does not run: ModuleNotFoundError",)),
            ("template.py", 'values["ITEMS"])), 1', 'values["ROWS"])), 1', 2, ("KeyError: 'ROWS' (template.py:",)),
            ("template.py", "[ScaleProblem(n=100)]", "[]", 1, ("small_problems gives none", "nothing would be proven")),
            ("template.py", "n=problem.n + 1)]", "n=1) * 2]", 2, ("TypeError", "space.py")),
            (
                *("template.py", '"EVO_ITEMS": values["ITEMS"]', '"EVO_ITEMS": values["ITEMS"] + (problem.n == 1001)'),
                *(2, ("check_problems gives N1001, for which defines() says EVO_ITEMS=3 and not 2: that is another",)),
            ),
            (
                *("template.py", '"EVO_ITEMS": values["ITEMS"]', '"EVO_ITEMS": values["ITEMS"] + (problem.n == 100)'),
                *(2, ("small_problems gives N100, for which defines() says EVO_ITEMS=3 and not 2: that is another",)),
            ),
            ("space.py", "THREADS", "WARPS", 2, ("launch fails with KeyError: 'THREADS' (template.py:",)),
            ("space.py", '"ITEMS": 2', '"ITEMS": 99', 2, ("ITEMS=99", "choices")),
            ("space.py", "SPACE =", "SPASE =", 2, ("defines no SPACE",)),
            ("space.py", "(\n        Axis", "(\n        Axes", 2, ("does not run: NameError",)),
        ],
        ids=lambda one: one if isinstance(one, str) and "\n" not in one and len(one) > 9 else "",
    )
    def test_a_mistake_in_it(
        self, run: Run, folder: Path, name: str, old: str, new: str, code: int, words: tuple[str, ...]
    ) -> None:
        path = folder / "mine" / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

        one_line(self.search(run), code, *words)
        keys = ("rejected", "measured", "best_estimated_us")
        judged = [tuple(row[key] for key in keys) for row in run("studies", "--json").document]
        assert judged in ([], [(0, 0, None)])

    @pytest.mark.parametrize(("name", "word"), [("kernel.cu", "has no kernel.cu"), ("space.py", "--space FILE")])
    def test_a_missing_file(self, run: Run, folder: Path, name: str, word: str) -> None:
        (folder / "mine" / name).unlink()

        one_line(self.search(run), 2, word)
        assert [] == run("studies", "--json").document

    def test_a_space_anywhere(self, run: Run, folder: Path) -> None:
        narrow = SPACE.replace("tuple(range(1, 17))", "(2,)").replace("48, 64, 128, 256", "64")
        (folder / "narrow.py").write_text(narrow.replace('"THREADS": 48', '"THREADS": 32'))
        ran = run("search", *QUESTION, *JOBS, "--budget", "9", "--space", "narrow.py", "--json", "--quiet")

        assert (0, "") == (ran.code, ran.err)
        assert "every feasible config has been tried" == ran.document["stopped"]
        assert {"estimated": 3, "twin": 3} == ran.document["verdicts"]
        assert 3 == ran.document["spent"]


class TestReport:
    def test_holds_what_show_prints(self, run: Run, searched: Path) -> None:
        pytest.importorskip("plotly", reason="not installed: pip install -c constraints.txt -e '.[report]'")
        shown = run("show", "--json").document
        ran = run("report", "-o", "out/report.html")
        page = (searched / "out" / "report.html").read_text()
        held = re.search(r'<script type="application/json" id="summary">(.*?)</script>', page)

        assert 0 == ran.code, ran.err
        assert held is not None
        assert shown == json.loads(held[1])
        assert f'<td class="right">{shown["shortlist"][0]["estimated_us"]:.2f}</td>' in page
        assert ran.out.startswith("out/report.html: Nothing was measured. Trial ")

    @pytest.mark.parametrize(
        ("options", "format", "begin"),
        [
            (("-o", "a.md"), "md", f"## {NAME}\n".encode()),
            (("-o", "a.png"), "png", b"\x89PNG"),
            (("-o", "a.txt", "--format", "md"), "md", f"## {NAME}\n".encode()),
        ],
    )
    def test_goes_by_the_suffix_or_by_what_is_asked_for(
        self, run: Run, searched: Path, options: tuple[str, ...], format: str, begin: bytes
    ) -> None:
        if format == "png":
            pytest.importorskip("matplotlib", reason="not installed: pip install -c constraints.txt -e '.[report]'")
        document = run("report", NAME, *options, "--json").document
        content = (searched / options[1]).read_bytes()

        assert content.startswith(begin)
        assert {"report": options[1], "format": format, "bytes": len(content), "study": NAME} == document

    def test_overwrites_only_by_force(self, run: Run, searched: Path) -> None:
        (searched / "a.md").write_text("mine")

        one_line(run("report", "-o", "a.md"), 2, "a.md exists", "--force")
        assert "mine" == (searched / "a.md").read_text()
        assert 0 == run("report", "-o", "a.md", "--force").code
        assert "mine" != (searched / "a.md").read_text()

    def test_a_suffix_that_names_no_format(self, run: Run, searched: Path) -> None:
        one_line(run("report", "-o", "a.pdf"), 2, "a.pdf", "--format html, md or png")

    def test_reads_the_trials_once(self, run: Run, searched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Half a second for a thousand of them."""
        asked: list[str] = []
        plain = Study.records
        monkeypatch.setattr(Study, "records", lambda study: asked.append(study.name) or plain(study))  # type: ignore[func-returns-value]

        assert 0 == run("report", "-o", "a.md").code
        assert 1 == len(asked)

    @pytest.mark.parametrize(("suffix", "package"), [("html", "plotly"), ("png", "matplotlib")])
    def test_without_the_extra_says_what_to_install(
        self, run: Run, searched: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, package: str
    ) -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)

        one_line(run("report", "-o", f"a.{suffix}"), 2, f"needs {package}", "pip install", "[report]", "--format md")
        assert [] == list(searched.glob("a.*"))

    def test_an_unknown_study(self, run: Run, searched: Path) -> None:
        one_line(run("report", "frist", "-o", "a.md"), 2, "did you mean first?")


def test_help_names_every_verb_and_option(run: Run) -> None:
    ran = run("--help")
    verbs = ("search", "resume", "space", "studies", "show", "export", "compare", "verify", "doctor")

    assert 0 == ran.code
    assert all(verb in ran.out for verb in verbs)
    for verb in verbs:
        assert "--json" in run(verb, "--help").out


def test_a_template_is_what_a_user_would_write(tmp_path: Path) -> None:
    """The tests above speak for users' templates only while theirs is a plain folder outside the package."""
    made = make_template(tmp_path / "mine")

    assert {"kernel.cu", "config.cuh", "template.py", "space.py"} == {path.name for path in made.iterdir()}
