"""`verify`, stale elites, `show --factor`: what was confirmed against what is here, without a GPU and over a fake."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
import test_cli
from command_line import JOBS, QUESTION, lay_out, start
from test_cli import Run, one_line

from evoengine.archive.archive import Archive
from evoengine.archive.records import Elite
from evoengine.cli import main
from evoengine.cli import verify as command
from evoengine.cli.resolve import Target
from evoengine.cli.trusted import trust
from evoengine.devices.cuda.results import Final, Finals, make_final
from evoengine.hardware import card
from evoengine.oracle import Factors
from evoengine.rejudge import rejudge
from evoengine.verdict import Artifact, Candidate, Check, Gate, Rejection
from evoengine.verification import Recorded, against_recorded, differences

run = test_cli.run
NAME = "first"
CHECK = Check(
    "timed", "N1000", 7, 1e-7, 1e-7, 1e-8, 1e-8, 1e-8, 0, 0, 0, False, 250, 0, 0.1, max_ratio=1.2, fro_ratio=0.9,
    row_ratio=1.5,
)  # fmt: skip
RECORDED = Recorded(
    template="0" * 16, compiler="NVRTC 13.0.88", arch="sm_89", cubin_sha256="ab" * 32, card="NVIDIA L4", driver="580.65"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, database: Path, cache_folder: Path) -> Path:
    """A folder in which a search without a GPU has run."""
    folder = lay_out(tmp_path_factory.mktemp("finished"), database)
    process = start(folder, "search", *QUESTION, *JOBS, "--study", NAME, "--budget", "3", "-q", stdout=subprocess.PIPE)
    assert process.communicate(timeout=120)[0]
    return folder


@pytest.fixture
def searched(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in, with a template of its own."""
    monkeypatch.chdir(shutil.copytree(finished, tmp_path / "copy"))
    change(f"UPDATE evo_study SET spec = replace(spec, '{finished}', '{tmp_path}/copy')")
    trust(tmp_path / "copy")
    return tmp_path / "copy"


def change(statement: str) -> None:
    engine = sqlalchemy.create_engine("sqlite:///studies/evoengine.db")
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text(statement))
    engine.dispose()


def make_elite(cache_folder: Path, **changes: Any) -> int:
    """The study's best estimate as if a final run had confirmed it at 0.8 of the default's time; its trial."""
    archive = Archive.open("studies/evoengine.db")
    study = archive.open_study(NAME)
    (record,) = study.shortlist(1)
    assert record.build is not None
    digest = record.build.digest
    elite = Elite(
        number=record.number,
        median_us=4.0,
        noise=0.001,
        control_ratio=0.8,
        baseline_ratios={},
        verdict="FASTER",
        cubin=(cache_folder / "builds" / digest[:2] / digest / "kernel.cubin").read_bytes(),
        cubin_sha256=record.build.cubin_sha256,
        source_digest=study.spec.template_digest,
        environment={"driver": "580.65"},
        evidence={"control_ratio_low": 0.79, "control_ratio_high": 0.81, "checks": [dataclasses.asdict(CHECK)]},
    )
    study.replace_elites([dataclasses.replace(elite, **changes)])
    archive.close()
    return record.number


class TestWithoutGpu:
    def test_a_study_is_rebuilt_and_proven_and_says_what_is_left(self, run: Run, searched: Path) -> None:
        ran = run("verify", NAME, "--json")
        found = ran.document

        assert (0, True, []) == (ran.code, found["passed"], found["failures"])
        assert ([], None) == (found["differences"], found["timing"])
        assert ["interpreted"] == [check["input_set"] for check in found["checks"]]
        assert len(found["checks"][0]["input_sha256"]) == 64
        assert 2 == len(found["not_checked"])
        assert f"study {NAME}" in found["what"]
        text = run("verify", NAME).out
        assert "nothing that could be compared has changed since" in text
        assert text.endswith("verified, as far as it could be checked here\n")

    def test_a_header_too(self, run: Run, searched: Path) -> None:
        assert 0 == run("export", NAME, "-o", "best.h").code
        ran = run("verify", "best.h", "--template", "mine", "--json")

        assert (0, "best.h", []) == (ran.code, ran.document["what"], ran.document["differences"])
        one_line(run("verify", "best.h", "--trial", "0"), 2, "--trial 0", "leave it out")
        one_line(run("verify", "worst.h"), 2, "'worst.h' is no file")
        assert 0 == run("verify", NAME, "--template", "mine").code
        one_line(run("verify", NAME, "--trial", "99"), 2, f"study {NAME} has no trial 99: its last is 3")

    def test_a_wrong_kernel_fails(self, run: Run, searched: Path) -> None:
        kernel = searched / "mine" / "kernel.cu"
        kernel.write_text(kernel.read_text().replace("alpha * staged", "alpha + staged"))
        ran = run("verify", NAME, "--json")

        assert 1 == ran.code
        assert ["template", "cubin_sha256"] == [one["what"] for one in ran.document["differences"]]
        (failed,) = ran.document["failures"]
        assert "refused at the gate correctness: " in failed
        assert "FAILED: refused" in run("verify", NAME).out

    def test_another_cubin_of_the_same_sources_fails_and_one_of_another_compiler_does_not(
        self, run: Run, searched: Path
    ) -> None:
        change(f"UPDATE evo_build SET cubin_sha256 = '{'ab' * 32}'")
        ran = run("verify", NAME, "--json")
        change("UPDATE evo_build SET compiler = 'NVRTC 12.0.1'")
        other = run("verify", NAME, "--json")

        assert 1 == ran.code
        assert ["cubin_sha256"] == [one["what"] for one in ran.document["differences"]]
        assert "makes another cubin of the same sources" in ran.document["failures"][0]
        assert (0, []) == (other.code, other.document["failures"])
        assert ["compiler", "cubin_sha256"] == [one["what"] for one in other.document["differences"]]

    def test_what_no_longer_builds_fails(self, run: Run, searched: Path) -> None:
        kernel = searched / "mine" / "kernel.cu"
        kernel.write_text(kernel.read_text().replace("staged[threadIdx.x] = i", "staged[threadIdx.x] = ;"))
        ran = run("verify", NAME, "--json")

        assert 1 == ran.code
        assert "does not build any more" in ran.document["failures"][0]
        assert [] == ran.document["checks"]


class TestStale:
    """`export` and `resume` refuse what is no longer what was confirmed, in one line, unless forced."""

    def test_a_fresh_elite_is_exported_and_resumed(self, run: Run, searched: Path, cache_folder: Path) -> None:
        number = make_elite(cache_folder)

        assert f"trial {number}" in run("export", NAME, "-o", "best.h").out
        assert 0 == run("resume", NAME, *JOBS, "-q").code

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"source_digest": "f" * 16}, ("is stale", "other sources (digest ffff")),
            ({"cubin_sha256": "ab" * 32, "cubin": b"old"}, ("is stale", "cubin in the database is damaged")),
        ],
    )
    def test_a_stale_elite(
        self, run: Run, searched: Path, cache_folder: Path, changes: dict[str, Any], words: tuple[str, ...]
    ) -> None:
        number = make_elite(cache_folder, **changes)

        one_line(run("export", NAME, "-o", "best.h"), 2, f"trial {number} of study {NAME}", *words, "--force")
        assert not (searched / "best.h").exists()
        one_line(run("resume", NAME, *JOBS, "-q"), 2, f"trial {number} of study {NAME}", *words, "--force")
        assert 0 == run("export", NAME, "-o", "best.h", "--force").code
        assert 0 == run("resume", NAME, *JOBS, "-q", "--force").code

    def test_a_build_that_comes_out_otherwise(self, run: Run, searched: Path) -> None:
        change(f"UPDATE evo_build SET cubin_sha256 = '{'ab' * 32}'")

        one_line(run("export", NAME, "-o", "best.h"), 2, "is stale", "makes another cubin", "--force")
        assert 0 == run("export", NAME, "-o", "best.h", "--force").code

    def test_a_forced_resume_goes_on_with_a_changed_template_but_not_with_other_axes(
        self, run: Run, searched: Path
    ) -> None:
        template, space = searched / "mine" / "template.py", searched / "mine" / "space.py"
        template.write_text(template.read_text() + "\n# a remark\n")
        one_line(run("resume", NAME, *JOBS, "-q"), 2, "template of study first has changed", "--force")
        assert 0 == run("resume", NAME, *JOBS, "-q", "--force").code
        space.write_text(space.read_text().replace("range(1, 17)", "range(1, 9)"))
        one_line(run("resume", NAME, *JOBS, "-q", "--force"), 2, "the axes of study first have changed")


class TestOnACard:
    """Over a fake card: what `verify` makes of a final run."""

    @pytest.fixture
    def timed(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        """What the final run answers: `ratio`, or a `rejection`."""
        answer: dict[str, Any] = {"ratio": 0.8, "driver": "580.65", "card": "l4"}

        def measure(
            question: Any,
            target: Target,
            control: tuple[Any, Artifact],
            work: list[tuple[Candidate, Artifact]],
            force: bool,
            seed: int,
            competitors: tuple[str, ...],
        ) -> Finals:
            assert (False, command.SEED, ()) == (force, seed, competitors)

            def final(name: str, us: float) -> Final:
                return make_final(name, [us, us * 1.001, us * 0.999], [10.0] * 3, 100, 1, (CHECK,))

            finalists = tuple(
                (candidate, answer.get("rejection") or final("2", 10.0 * answer["ratio"])) for candidate, _ in work
            )
            return Finals(final("default", 10.0), finalists, (), {"driver": answer["driver"]}, seed)

        monkeypatch.setattr(command, "measure", measure)
        monkeypatch.setattr(command, "find_target", lambda *_: Target(card(answer["card"]), card(answer["card"]), 0))
        return answer

    @pytest.mark.parametrize(
        ("ratio", "verdict", "code"), [(0.8, "SAME", 0), (0.815, "SAME", 0), (0.76, "FASTER", 0), (0.84, "SLOWER", 1)]
    )
    def test_the_time_is_compared_with_the_recorded_ratio(
        self, run: Run, searched: Path, cache_folder: Path, timed: dict[str, Any], ratio: float, verdict: str, code: int
    ) -> None:
        make_elite(cache_folder)
        timed["ratio"] = ratio
        ran = run("verify", NAME, "--json")
        timing = ran.document["timing"]

        assert (code, verdict, 0.8) == (ran.code, timing["verdict"], timing["recorded_ratio"])
        assert pytest.approx(ratio, rel=1e-3) == timing["ratio"]
        assert ([], []) == (ran.document["differences"], ran.document["not_checked"])
        assert bool(code) == any("slower" in why for why in ran.document["failures"])
        assert f"recorded 0.800: {verdict}" in run("verify", NAME).out

    def test_another_driver_and_another_card_are_said(
        self, run: Run, searched: Path, cache_folder: Path, timed: dict[str, Any]
    ) -> None:
        make_elite(cache_folder)
        timed |= {"driver": "590.1", "card": "h200", "ratio": 2.0}
        ran = run("verify", NAME, "--json")

        assert {"card", "arch", "driver"} == {one["what"] for one in ran.document["differences"]}
        assert 0 == ran.code, "slower on another card is no failure"
        assert "recorded on NVIDIA L4" in ran.document["not_checked"][0]

    def test_a_config_that_the_full_gate_refuses_fails(
        self, run: Run, searched: Path, cache_folder: Path, timed: dict[str, Any]
    ) -> None:
        make_elite(cache_folder)
        failed = dataclasses.replace(CHECK, max_ratio=float("inf"), nonfinite=3, reason="3 values are NaN")
        timed["rejection"] = Rejection(Gate.CORRECTNESS, "peaky N33: 3 values are NaN", {}, (failed,))
        ran = run("verify", NAME, "--json")

        assert 1 == ran.code
        assert ["refused at the gate correctness: peaky N33: 3 values are NaN"] == ran.document["failures"]
        assert "inf" == ran.document["checks"][0]["max_ratio"]


def test_only_what_both_sides_know_can_differ() -> None:
    now = {"template": "0" * 16, "compiler": "NVRTC 13.1.1", "driver": "590.1", "card": ""}

    assert [] == differences(RECORDED, {"card": "", "driver": "580.65"})
    assert ["compiler", "driver"] == [one["what"] for one in differences(RECORDED, now)]
    assert [] == differences(dataclasses.replace(RECORDED, driver=""), {"driver": "590.1"})


def test_intervals_must_lie_apart_by_more_than_processes_do() -> None:
    def verdict(now_low: float, now_high: float, **then: float) -> str | None:
        now = Final("1", (1.0,), 10, (now_low + now_high) / 2, now_low, now_high)
        return against_recorded(now, dataclasses.replace(RECORDED, **then))  # type: ignore[arg-type]

    assert verdict(0.9, 0.91) is None
    assert "SAME" == verdict(0.805, 0.82, ratio=0.8)
    assert "SLOWER" == verdict(0.809, 0.82, ratio=0.8)
    assert "SAME" == verdict(0.809, 0.82, ratio=0.8, low=0.79, high=0.805)
    assert "FASTER" == verdict(0.7, 0.78, ratio=0.8, low=0.79, high=0.805)


def test_show_judges_again_without_a_gpu(run: Run, searched: Path, cache_folder: Path) -> None:
    number = make_elite(cache_folder)
    same = run("show", NAME, "--factor", "2", "--json").document["rejudged"]
    strict = run("show", NAME, "--factor", "1", "--json").document["rejudged"]
    shown = run("show", NAME, "--factor", "1").out

    assert "rejudged" not in run("show", NAME, "--json").document
    assert ([], [], 0) == (same["refused"], same["open_again"], same["without_ratios"])
    assert same["judged"] == strict["judged"] > 0
    assert {"whole": 1.0, "row": 2.0} == strict["factors"]
    row = next(row for row in strict["refused"] if row["trial"] == number)
    assert "max error is over 1x the baseline's: 1.2x" == row["reason"]
    assert "judged again at 1x the baseline's error" in shown
    assert " would now be refused, 0 refused ones would pass, 0 cannot be judged again" in shown
    assert "refused" in shown


def test_a_refused_config_may_be_open_again_and_old_checks_stay_as_they_are(searched: Path) -> None:
    archive = Archive.open("studies/evoengine.db")
    (record,) = archive.open_study(NAME).shortlist(1)
    archive.close()
    failing = dataclasses.replace(CHECK, max_ratio=2.5, reason="max error is over 2x the baseline's: 2.5x")
    wrong = dataclasses.replace(record, verdict=Rejection(Gate.CORRECTNESS, "timed: max error", {}, (failing,)))
    after = dataclasses.replace(record, verdict=Rejection(Gate.CORRECTNESS, "after timing: differs", {}, (CHECK,)))
    old = dataclasses.replace(
        record, verdict=Rejection(Gate.CORRECTNESS, "x", {}, (dataclasses.replace(failing, max_ratio=None),))
    )
    found = rejudge([wrong, after, old], [], Factors.of(3.0))

    assert (1, 1, []) == (found["judged"], found["without_ratios"], found["refused"])
    assert [failing.reason] == [row["reason"] for row in found["open_again"]]
    assert [] == rejudge([wrong], [], Factors.of(2.4))["open_again"]


@pytest.mark.parametrize("factor", ["0", "-1", "nan", "two"])
def test_a_factor_is_a_positive_number(factor: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["show", "--factor", factor])
    assert f"'{factor}' must be a positive number" in capsys.readouterr().err
