"""`compare` without a GPU: what is compared on which shapes, and what its rows and tables say of a given run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from evoengine import comparison
from evoengine.cli import compare as command
from evoengine.cli import main
from evoengine.cli.entries import Entry, entries
from evoengine.cli.parser import make_parser
from evoengine.cli.resolve import Target
from evoengine.devices.cuda.results import Deviation, Final, Finals, make_final
from evoengine.errors import UserError
from evoengine.export.header import HeaderFacts, render_header
from evoengine.hardware import card, gate_limits
from evoengine.problem import AttentionProblem, problem_fields
from evoengine.question import Question
from evoengine.space import load_space
from evoengine.template import load_template, shipped
from evoengine.verdict import Artifact, Candidate, Check, Gate, Rejection

H200 = Target(card("h200"), card("h200"), 0)
SPACE = load_space(shipped("search_spaces") / "attention.py")
TEMPLATE = load_template(shipped("kernel_templates") / "attention")
CHECK = Check("timed", "B1", 7, 1e-4, 2e-4, 3e-4, 4e-4, 1e-3, 0, 0, 0, False, 250, 0, 0.1)


def asked(*arguments: str, target: Target = H200) -> list[Entry]:
    return entries(make_parser().parse_args(["compare", *arguments]), target)


def header(folder: Path, problem: AttentionProblem, **changes: int) -> Path:
    """What `export` would write for the default config with some axes changed."""
    values = {**SPACE.default, **changes}
    launch = TEMPLATE.module.launch(values, problem)
    facts = HeaderFacts(
        template="attention",
        template_digest="0123456789abcdef",
        space="attention",
        space_digest="0",
        entry=TEMPLATE.module.ENTRY,
        config=SPACE.config(values).label,
        shape=problem.label,
        problem=problem_fields(problem),
        study="s",
        trial=1,
        device="NVIDIA H200",
        arch="sm_90",
        driver="580",
        compiler="nvrtc",
        cubin_sha256="0" * 64,
        registers=100,
        spill_bytes=0,
        method="m",
        median_us=5.0,
        noise=0.01,
        speedup_over_sdpa=None,
        speedup_over_default=None,
        evoengine_version="0",
        date="2026-11-21",
        command="c",
        defines=TEMPLATE.module.defines(values, problem),
        grid_ctas=launch.grid,
        block_threads=launch.block,
        smem_bytes=launch.smem_bytes,
    )
    path = folder / "exported.h"
    path.write_text(render_header(facts))
    return path


def test_nothing_given_is_the_default_config_at_the_mission_shape() -> None:
    (one,) = asked()

    assert "B1_H8_S512_D64_fp16" == one.question.problem.label
    assert SPACE.default == one.config.values


def test_a_list_changes_axes_of_the_default() -> None:
    (one,) = asked("STAGES=3, UNROLL=1")

    assert {**SPACE.default, "STAGES": 3, "UNROLL": 1} == one.config.values


def test_a_label_is_read_back() -> None:
    values = {**SPACE.default, "WARPS_KV": 2, "LATE_LOADS": 1}
    (one,) = asked(SPACE.config(values).label)

    assert values == one.config.values


def test_every_what_meets_every_shape(tmp_path: Path) -> None:
    shapes = tmp_path / "shapes.txt"
    shapes.write_text("# long ones\n1,8,1024,64\n\n2,16,4096,64,causal  # causal\n")
    found = asked("STAGES=2", "STAGES=3", "--shape", "1,8,512,64,dtype=bf16", "--shapes", str(shapes))

    labels = ["B1_H8_S512_D64_bf16", "B1_H8_S1024_D64_fp16", "B2_H16_S4096_D64_fp16_causal"]
    assert 2 * labels == [one.question.problem.label for one in found]
    assert [2] * 3 + [3] * 3 == [one.config.values["STAGES"] for one in found]


def test_a_header_brings_its_own_shape_and_digest(tmp_path: Path) -> None:
    path = header(tmp_path, AttentionProblem(seq_q=300, causal=True), STAGES=3)
    (own,) = asked(str(path))
    (other,) = asked(str(path), "--shape", "1,8,1024,64")

    assert "B1_H8_S300_D64_fp16_causal" == own.question.problem.label
    assert "B1_H8_S1024_D64_fp16" == other.question.problem.label
    assert 3 == own.config.values["STAGES"] == other.config.values["STAGES"]
    assert "0123456789abcdef" == own.recorded_digest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["STAGES=9"], "STAGES='9' is not among its choices 1, 2"),
        (["STAGE=2"], "unknown axis 'STAGE'"),
        (["missing.h"], "'missing.h' is neither a file"),
        (["--shapes", "missing.txt"], r"^missing.txt cannot be read \(No such file or directory\): give"),
        (["--shape", "1,8,512,64,casual"], "unknown field 'casual'"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(UserError, match=message):
        asked(*arguments)


def test_a_study_brings_its_best_config_its_shape_and_its_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    search = ["search", "--budget", "2", "--device", "none", "--shape", "1,1,64,64", "--limits", "a10g", "--json"]
    assert 0 == main([*search, "--study", "tiny", "-q"])
    best = json.loads(capsys.readouterr().out)["shortlist"][0]
    (one,) = asked("tiny")
    (elsewhere,) = asked("tiny", "--shape", "1,1,128,64", "--limits", "l4")

    assert best["config"] == one.config.values == elsewhere.config.values
    assert ("B1_H1_S64_D64_fp16", "NVIDIA A10G") == (one.question.problem.label, one.question.limits.name)
    assert ("B1_H1_S128_D64_fp16", "NVIDIA H200") == (elsewhere.question.problem.label, elsewhere.question.limits.name)
    assert TEMPLATE.digest == one.recorded_digest


def test_an_edited_header_is_refused(tmp_path: Path) -> None:
    path = header(tmp_path, AttentionProblem())
    path.write_text(path.read_text().replace("#define EVO_STAGES 2", "#define EVO_STAGES 3"))

    with pytest.raises(UserError, match="changed after it was exported"):
        asked(str(path))


@pytest.mark.parametrize(
    ("shape", "device", "us", "bound"),
    [
        # 4·8·512²·64 operations at 989 TFLOP/s; 2 MB at 64 B · 132 · 1.98 GHz
        (AttentionProblem(), "h200", 0.543, "tensor rate"),
        (AttentionProblem(seq_q=64), "h200", 262144 / (64 * 132 * 1980), "L2 bandwidth"),
        (AttentionProblem(seq_q=64, batch=512, heads=64), "l4", 512 * 64 * 4 * 64 * 64 * 2 / 300e3, "DRAM bandwidth"),
    ],
)
def test_the_roofline_says_which_rate_binds(shape: AttentionProblem, device: str, us: float, bound: str) -> None:
    found_us, found = comparison.roofline(shape, card(device))

    assert bound == found
    assert us == pytest.approx(found_us, rel=0.001)


def lap(name: str, us: float, error: float = 3e-4, about: str = "", checks: tuple[Check, ...] = ()) -> Final:
    windows = [us * (1 + 0.001 * (i % 3)) for i in range(50)]
    cold_us = () if name == "triton" else [1.5 * window for window in windows]
    return make_final(name, windows, [10.0] * 50, 100, 1, checks, Deviation(4 * error, error, 0), about, cold_us)


def finals(*finalists: tuple[Candidate, Final | Rejection]) -> Finals:
    return Finals(
        lap("default", 10.0, checks=(CHECK,)),
        finalists,
        (lap("sdpa", 9.0), lap("sdpa_flash", 12.0), lap("triton", 6.0, about="BLOCK_M 64")),
        {"gpu": "NVIDIA H200", "torch": "2.11", "driver": "580"},
        5,
        {"before": {}},
        lap("empty kernel", 1.0),
        {"flashinfer": "not installed"},
        126,
    )


def ours(us: float = 5.0) -> tuple[Candidate, Final]:
    return Candidate(1, SPACE.config(SPACE.default), "compare"), lap("1", us, checks=(CHECK,))


def made(*finalists: tuple[Candidate, Final | Rejection]) -> dict[str, Any]:
    config = SPACE.config(SPACE.default)
    what = {"what": "w", "config": config.values, "label": config.label, "template_digest": "d"}
    limits = gate_limits(card("h200"), card("l4"))
    return comparison.row(AttentionProblem(), card("h200"), limits, what, finals(*finalists))


def test_a_row_holds_every_figure_and_survives_json() -> None:
    row = json.loads(json.dumps(made(ours()), allow_nan=False))

    shape = {"batch": 1, "heads": 8, "kv_heads": 8, "seq_q": 512, "seq_k": 512, "head_dim": 64}
    assert shape | {"causal": False, "dtype": "fp16"} == {k: row["shape"][k] for k in (*shape, "causal", "dtype")}
    assert "NVIDIA L4" == row["limits"]
    assert "interleaved" in row["method"]
    assert ["triton", "sdpa", "sdpa_flash", "flashinfer"] == [one["name"] for one in row["competitors"]]
    assert "not installed" == row["competitors"][-1]["unavailable"]
    best = row["competitors"][0]
    assert best["ratio_to_ours"] == pytest.approx(6.0 / 5.0)
    assert best["ratio_to_ours_95"][0] <= best["ratio_to_ours"] <= best["ratio_to_ours_95"][1]
    assert (3e-4, 1.2e-3, 0) == (best["error"], pytest.approx(best["max_abs_error"]), best["nonfinite"])
    assert row["ours"]["median_us"] == pytest.approx(5.005)
    assert (1.5 * 5.005, None, 126) == (
        pytest.approx(row["ours"]["cold_median_us"]), row["competitors"][0]["cold_median_us"], row["cold_copies"],
    )  # fmt: skip
    assert row["ours"]["tflops"] == pytest.approx(4 * 8 * 512**2 * 64 / 5.005e6)
    assert row["ours"]["roofline_share"] == pytest.approx(0.543 / 5.005, rel=0.001)
    assert row["ours"]["launch_floor_share"] == pytest.approx(1.001 / 5.005)
    assert row["ours"]["ratio_to_default"] == pytest.approx(0.5, rel=0.01)
    assert not row["ours"]["is_default"]


def test_the_default_itself_is_measured_once() -> None:
    row = made()

    assert row["ours"]["is_default"]
    assert row["ours"]["median_us"] == row["default"]["median_us"]


def test_a_wrong_competitor_is_not_the_best(capsys: pytest.CaptureFixture[str]) -> None:
    run = finals(ours())
    wrong = lap("triton", 1.0, error=0.1)
    row = comparison.row(
        AttentionProblem(), card("h200"), card("h200"), {**made(ours())["ours"]},
        dataclasses.replace(run, baselines=(wrong, *run.baselines[:2])),
    )  # fmt: skip
    command.show({"environment": {}, "rows": [row]})
    best = comparison.best_competitor(row)

    assert best is not None
    assert "sdpa" == best["name"]
    assert [False, True, True] == [one["right"] for one in row["competitors"] if "median_us" in one]
    assert "WRONG" in capsys.readouterr().out


def test_a_refused_finalist_leaves_the_default_as_yardstick() -> None:
    row = made((ours()[0], Rejection(Gate.CORRECTNESS, "max error 1 is over 2x")))

    assert {"gate": "correctness", "rejected": "max error 1 is over 2x"}.items() <= row["ours"].items()
    assert "median_us" not in row["ours"]
    assert row["competitors"][0]["ratio_to_ours"] == pytest.approx(0.6, rel=0.01)


@pytest.fixture
def on_a_card(monkeypatch: pytest.MonkeyPatch) -> list[list[Candidate]]:
    """An H200 whose final run is arithmetic; what it was asked to time."""
    timed: list[list[Candidate]] = []

    def measure(
        question: Question, target: Target, control: tuple[dict[str, int], Artifact], work: list[Any], force: bool
    ) -> Finals:
        assert control[1].cubin.is_file()
        timed.append([candidate for candidate, _ in work])
        return finals(*((candidate, ours()[1]) for candidate, _ in work))

    monkeypatch.setattr(command, "find_target", lambda *_: H200)
    monkeypatch.setattr(command, "measure", measure)
    return timed


def test_the_command_builds_compares_and_writes(
    on_a_card: list[list[Candidate]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "compare.json"
    code = main(
        ["compare", "WARPS_M=2", "--shape", "1,8,512,64", "--shape", "1,8,1024,64", "--json", "-o", str(output)]
    )
    printed = json.loads(capsys.readouterr().out)

    assert 0 == code
    assert json.loads(output.read_text()) == printed
    assert "evoengine compare WARPS_M=2 --shape" in printed["command"]
    assert "NVIDIA H200" == printed["environment"]["gpu"]
    assert printed["environment"]["toolchain"].startswith("NVRTC")
    assert ["B1_H8_S512_D64_fp16", "B1_H8_S1024_D64_fp16"] == [row["label"] for row in printed["rows"]]
    assert [[2], [2]] == [[candidate.config.values["WARPS_M"] for candidate in one] for one in on_a_card]
    assert 0 < printed["rows"][0]["ours"]["registers"] <= 255
    assert TEMPLATE.digest == printed["rows"][0]["ours"]["template_digest"]


def test_a_document_that_is_there_is_kept_and_nothing_is_measured(
    on_a_card: list[list[Candidate]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "compare.json"
    output.write_text("an hour's work")

    assert 2 == main(["compare", "--force", "-o", str(output)])
    assert f"evoengine: {output} exists: remove it, or give another --output\n" == capsys.readouterr().err
    assert "an hour's work" == output.read_text()
    assert [] == on_a_card


def test_the_tables_show_every_competitor(
    on_a_card: list[list[Candidate]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = header(tmp_path, AttentionProblem(), WARPS_M=2)
    code = main(["compare", str(path), "--shape", "1,8,512,64", "--shape", "1,8,1024,64"])
    out = capsys.readouterr().out

    assert 0 == code
    lines = [line.split() for line in out.splitlines()]
    assert ["ours", "5.005", "7.507", "0.2%", "1.00x", "1.000-1.000"] == next(
        line for line in lines if line[:2] == ["ours", "5.005"]
    )[:6]
    (triton, *_) = [line for line in lines if line[:1] == ["triton"]]
    assert ["triton", "6.006", "-", "0.2%", "1.20x"] == triton[:5], (
        "no cold time of what is set up for one set of tensors"
    )
    assert "does not run here: not installed" in out
    assert "roofline 0.543 us (tensor rate), launch floor (an empty kernel) 1.001 us" in out
    assert "the template has changed since (0123456789abcdef" in out
    (mean,) = [line for line in lines if line[:2] == ["geometric", "mean"]]
    assert ["1.80x", "2.40x", "1.20x"] == mean[2:]


def test_a_config_that_breaks_a_rule_is_a_row_with_the_reason_and_exit_code_1(
    on_a_card: list[list[Candidate]], capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["compare", "BLOCK_N=512,STAGES=2", "--json"])
    (row,) = json.loads(capsys.readouterr().out)["rows"]

    assert 1 == code
    assert "static" == row["ours"]["gate"]
    assert [] == on_a_card


def test_limits_of_another_card_hold(
    on_a_card: list[list[Candidate]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    within = Target(card("h200"), gate_limits(card("h200"), card("l4")), 0)
    monkeypatch.setattr(command, "find_target", lambda *_: within)
    big = "WARPS_M=2,BLOCK_N=512,WARPS_KV=4,STAGES=1"
    code = main(["compare", big, "--limits", "l4"])
    out = capsys.readouterr().out

    assert 1 == code
    assert "refused at the gate static" in out
    assert "limits of NVIDIA L4" in out


def test_without_a_gpu_nothing_is_compared(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    assert 2 == main(["compare"])
    assert "there is no GPU here" in capsys.readouterr().err
