"""Profiles without a GPU: Nsight Compute's tables are read, its refusals explained, bottlenecks named in one line."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import fake_ncu
import pytest
from command_line import empty_database, make_template

from evoengine.archive.archive import Archive
from evoengine.archive.lease import Owner
from evoengine.archive.records import Elite, StudySpec
from evoengine.archive.study import Study
from evoengine.bottleneck import STALLS, Figures, diagnose
from evoengine.cli import main
from evoengine.cli import profile as command
from evoengine.cli.resolve import Target
from evoengine.cli.trusted import trust
from evoengine.devices.cuda.bare import Job
from evoengine.devices.cuda.lock import GpuLock
from evoengine.devices.cuda.ncu import METRICS, WARM_UP, figures, profile, read_metrics
from evoengine.errors import EvoengineError, UserError
from evoengine.hardware import card
from evoengine.problem import problem_digest, problem_fields
from evoengine.sampler import Proposal
from evoengine.space import load_space
from evoengine.template import load_template
from evoengine.verdict import Artifact, Measurement, ResourceUsage

AXPB = Path(__file__).resolve().parent / "templates" / "axpb"
ASKED = [name for names in METRICS.values() for name in names]
IDLE = Figures(10.0, 20.0, 5.0, 30.0, 15.0, 10.0, 0.5, 12.5, 2.0, 0.0, {"long_scoreboard": 3.0, "selected": 1.0})


class TestTable:
    def test_metrics_are_read_from_among_the_tools_own_lines(self) -> None:
        metrics = read_metrics(fake_ncu.table(ASKED))

        assert 41.27 == metrics["sm__throughput.avg.pct_of_peak_sustained_elapsed"]
        assert 1024.0 == metrics["l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum"], "thousands are set off"
        assert set(ASKED) - set(metrics) == {"smsp__average_warps_issue_stalled_gmma_per_issue_active.ratio"}, "n/a"

    def test_figures(self) -> None:
        found = figures(read_metrics(fake_ncu.table(ASKED)))

        assert (41.27, 52.81, 38.5, 29.13) == (found.sm_pct, found.memory_pct, found.tensor_pct, found.issue_pct)
        assert (61.02, 17.44, 0.31) == (found.l1_pct, found.l2_pct, found.dram_pct)
        assert (12.48, 0.97, 0.005) == (found.occupancy_pct, found.waves, found.bank_conflicts)
        assert STALLS.keys() - {"gmma"} == found.stalls.keys()
        name, share = found.stall_shares()[0]
        assert "long_scoreboard" == name
        assert share == pytest.approx(2.55 / (2.55 + 1.0 + 16 * 0.1))

    def test_another_name_of_a_figure_does_too(self) -> None:
        first, second = METRICS["tensor_pct"]

        assert 7.0 == figures({second: 7.0}).tensor_pct
        assert 8.0 == figures({first: 8.0, second: 7.0}).tensor_pct
        assert None is figures({}).tensor_pct
        assert None is figures({}).bank_conflicts

    @pytest.mark.parametrize("text", ["", "==ERROR== nothing\n", '"ID","Kernel Name"\n"",""\n'])
    def test_no_table_is_no_metrics(self, text: str) -> None:
        assert {} == read_metrics(text)


class TestDiagnosis:
    @pytest.mark.parametrize(
        ("changes", "line"),
        [
            ({}, "bound by latency: 75% of a warp's time is waiting for data from L2 or device memory"),
            (
                {"stalls": {"barrier": 1.0, "wait": 0.9, "selected": 2.0}},
                "bound by latency: no wait stands out, the largest is for other warps at a barrier with 26% of a "
                "warp's time",
            ),
            ({"stalls": {"selected": 1.0}}, "bound by latency (nothing above 20% of its peak)"),
            (
                {"sm_pct": 85.0, "tensor_pct": 84.0},
                "bound by compute (85% of its peak, the tensor pipe at 84%)",
            ),
            ({"sm_pct": 85.0, "issue_pct": 90.0}, "bound by compute (85% of its peak, issue slots at 90%)"),
            (
                {"memory_pct": 70.0, "l1_pct": 70.0},
                "mostly bound by memory (70% of its peak, L1 and shared memory at 70%)",
            ),
            ({"memory_pct": 92.0, "dram_pct": 92.0}, "bound by memory (92% of its peak, device memory at 92%)"),
            (
                {"waves": 0.5, "bank_conflicts": 0.25},
                "bound by latency: 75% of a warp's time is waiting for data from L2 or device memory; the grid fills "
                "50% of the card; 25% of shared-memory wavefronts are bank conflicts",
            ),
            (
                {"sm_pct": 65.0, "tensor_pct": None, "issue_pct": None},
                "mostly bound by compute (65% of its peak)",
            ),
        ],
    )
    def test_one_line(self, changes: dict[str, Any], line: str) -> None:
        assert line == diagnose(dataclasses.replace(IDLE, **changes))

    def test_nothing_known_is_still_a_line(self) -> None:
        nothing = Figures(None, None, None, None, None, None, None, None, None, None, {})

        assert "bound by latency (nothing above 0% of its peak)" == diagnose(nothing)


class TestRun:
    @pytest.fixture
    def ncu(self, tmp_path: Path) -> Path:
        return fake_ncu.install(tmp_path)

    def job(self, mode: str) -> Job:
        return Job(str(AXPB), "kernel.cubin", {"MODE": fake_ncu.MODES.index(mode)}, [{}], 0, 1, WARM_UP + 1)

    def asked(self, ncu: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (ncu.parent / "asked").read_text().splitlines()]

    def test_counters_come_back_and_clocks_are_left_alone(self, ncu: Path) -> None:
        found, metrics = profile(ncu, self.job("counts"))
        (asked,) = self.asked(ncu)
        options = dict(zip(asked["options"][::2], asked["options"][1::2], strict=False))

        assert figures(metrics) == found
        assert 38.5 == found.tensor_pct
        assert ("none", "none") == (options["--clock-control"], options["--cache-control"])
        assert (str(WARM_UP), "1", WARM_UP + 1) == (
            options["--launch-skip"],
            options["--launch-count"],
            asked["launches"],
        )
        assert not any("duration" in name for name in options["--metrics"].split(","))

    def test_a_metric_that_the_chip_lacks_is_left_out(self, ncu: Path) -> None:
        found, metrics = profile(ncu, self.job("lacks two metrics"))

        assert 37.25 == found.tensor_pct, "by its other name"
        assert not any(name.startswith(fake_ncu.LACKED) for name in metrics)
        assert 3 == len(self.asked(ncu)), "the tool names one at a time"

    def test_no_permission_says_what_to_do(self, ncu: Path) -> None:
        with pytest.raises(UserError, match=r"ERR_NVGPUCTRPERM.*NVreg_RestrictProfilingToAdminUsers=0"):
            profile(ncu, self.job("no permission"))

    @pytest.mark.parametrize(
        ("mode", "words"),
        [("finds no kernel", "No kernels were profiled"), ("counts nothing", "Failed to find metric")],
    )
    def test_no_counters_is_one_line(self, ncu: Path, mode: str, words: str) -> None:
        with pytest.raises(EvoengineError, match=words) as raised:
            profile(ncu, self.job(mode))

        assert "\n" not in str(raised.value)


class TestCommand:
    @pytest.fixture
    def study(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        """A measured study of two elites in a folder of its own, and its card here."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CUDA_HOME", raising=False)
        limits = card("l4")
        monkeypatch.setattr(command, "find_target", lambda *_: Target(limits, limits, 0))
        monkeypatch.setattr(command, "find_uuid", lambda ordinal: f"GPU-test-{tmp_path.name}-{os.getpid()}-{ordinal}")
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where locks lie
        folder = trust(make_template(tmp_path / "mine"))
        (tmp_path / "studies").mkdir()
        archive = Archive.open(str(empty_database(tmp_path / "studies" / "evoengine.db")))
        study = archive.create_study(spec(folder))
        study.acquire(Owner.current())
        elites = [confirmed(study, (choice, 1, 0), us) for choice, us in ((2, 5.0), (3, 6.0))]
        study.replace_elites(elites)
        study.release()
        archive.close()
        return study.name

    def test_the_profile_is_stored_and_shown(
        self, study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fake_ncu.install(tmp_path)
        code = main(["profile", study, "--top", "1", "--json"])
        document = json.loads(capsys.readouterr().out)
        shown_code, shown = main(["show", study]), capsys.readouterr().out
        main(["show", study, "--json"])
        stored = json.loads(capsys.readouterr().out)["elites"]

        assert (0, 0) == (code, shown_code)
        (row,) = document["elites"]
        assert row["profile"]["diagnosis"].startswith("bound by latency: ")
        assert 38.5 == row["profile"]["figures"]["tensor_pct"]
        assert [row["profile"], None] == [one["profile"] for one in stored]
        assert "profiled, % of the peak" in shown
        assert row["profile"]["diagnosis"][:30] in " ".join(shown.split())
        for form in ("html", "md"):
            assert 0 == main(["report", study, "-o", str(tmp_path / f"report.{form}")])
            page = (tmp_path / f"report.{form}").read_text().replace("&#x27;", "'")
            assert "Profiled by Nsight Compute" in page
            assert page.count(row["profile"]["diagnosis"]) >= (2 if form == "html" else 1), "beside the document"
        (asked,) = [json.loads(line) for line in (tmp_path / "asked").read_text().splitlines()]
        assert [{"n": 1000}] == asked["problems"]
        assert {"THREADS": 64, "ITEMS": 2, "IGNORED": 0} == asked["values"]

    def test_a_card_that_a_search_measures_on_is_left_alone(
        self, study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fake_ncu.install(tmp_path)
        lock = GpuLock(command.find_uuid(0) or "")
        code = main(["profile", study])
        lock.release()

        assert 2 == code
        assert "is in use by another evoengine" in capsys.readouterr().err
        assert not (tmp_path / "asked").exists()
        assert 0 == main(["profile", study, "--top", "1"]), "and it is given back"

    def test_without_the_tool_one_line(self, study: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert 2 == main(["profile", study])
        assert capsys.readouterr().err.startswith(
            "evoengine: profile needs ncu, which is neither in $CUDA_HOME/bin nor"
        )

    def test_another_card_is_refused(
        self, study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fake_ncu.install(tmp_path)
        monkeypatch.setattr(command, "find_target", lambda *_: Target(card("l4"), card("l4"), None))
        codes = [main(["profile", study])]
        monkeypatch.setattr(command, "find_target", lambda *_: Target(card("h200"), card("h200"), 0))
        codes.append(main(["profile", study]))

        assert [2, 2] == codes
        none, other = capsys.readouterr().err.splitlines()
        assert "was measured on NVIDIA L4, here is no GPU" in none
        assert "here is NVIDIA H200" in other

    def test_a_study_without_elites_has_nothing_to_profile(
        self, study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fake_ncu.install(tmp_path)
        archive = Archive.open("studies/evoengine.db")
        archive.open_study(study).replace_elites([])
        archive.close()

        assert 2 == main(["profile", study])
        assert "holds no confirmed config yet" in capsys.readouterr().err


def spec(folder: Path) -> StudySpec:
    template, space = load_template(folder), load_space(folder / "space.py")
    problem, limits = template.module.PROBLEM(), card("l4")
    return StudySpec(
        name="measured", template=template.name, template_digest=template.digest, template_folder=str(folder),
        space=space.name, space_digest=space.digest, space_path=str(folder / "space.py"), axes=space.axes,
        default=space.default, problem=problem_fields(problem), problem_label=problem.label,
        problem_digest=problem_digest(problem), device=limits.name, limits=limits.as_json(), arch="sm_89",
        toolchain="NVRTC 13.0", sampler="random", seed=1, budget=2, seconds=None,
        ceilings={"max_registers": None, "max_smem_bytes": None, "max_spill_bytes": None}, command="", measures=True,
        created_at="2026-01-02T03:04:05+00:00",
    )  # fmt: skip


def confirmed(study: Study, point: tuple[int, ...], us: float) -> Elite:
    (candidate,) = study.claim([Proposal(point, "random")])
    usage = ResourceUsage(32, 0, 0, 0, 256, 0)
    artifact = Artifact("d" * 16, Path("nowhere"), f"{point[0]}" * 64, usage, 0.1, "NVRTC 13.0", "sm_89")
    study.commit(candidate, Measurement((us,), (8.0,), 8.0, 10, "warm", "limit"), artifact)
    return Elite(
        candidate.number, us, 0.01, us / 8.0, {}, "FASTER", b"\x7fELF", artifact.cubin_sha256, "s", {}, {"seed": 1},
        "2026-01-02T03:04:05+00:00",
    )  # fmt: skip
