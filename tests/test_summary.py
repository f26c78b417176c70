"""The answer of a study: which elite wins, and when the default stands."""

from __future__ import annotations

import io
import re
from contextlib import closing
from pathlib import Path

import pytest
from measured_study import spec_of, write_guessed, write_study
from rich.console import Console

from evoengine.archive.archive import Archive
from evoengine.archive.records import Elite
from evoengine.cli import main, result, studies
from evoengine.cli.tables import Label
from evoengine.summary import winner


def elite(number: int, median_us: float, verdict: str) -> Elite:
    return Elite(number, median_us, 0.01, 0.9, {}, verdict, b"", "", "", {})


@pytest.mark.parametrize(
    ("elites", "answer"),
    [
        ([], "none confirmed"),
        ([elite(4, 5.0, "FASTER"), elite(2, 6.0, "FASTER")], "trial 4"),
        # the lower median may be the less certain one
        ([elite(4, 5.0, "SAME"), elite(2, 5.1, "FASTER")], "trial 2"),
        ([elite(4, 5.0, "SAME"), elite(2, 9.0, "SLOWER")], "no significant winner: keep the default"),
    ],
)
def test_the_fastest_that_is_surely_faster_wins(elites: list[Elite], answer: str) -> None:
    assert answer == winner(elites)


@pytest.mark.parametrize("command", [["studies"], ["show"], ["export", "-o", "x.h"], ["resume"]])
def test_a_look_at_no_database_makes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    assert 2 == main(command)
    assert "no study database at studies/evoengine.db: start one with `evoengine search`" in capsys.readouterr().err
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("width", [80, 176])
def test_studies_are_a_line_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    with closing(Archive.open(f"sqlite:///{tmp_path}/study.db")) as archive:
        write_study(archive, spec_of(name="attention-B1_H8_S512_D64-l4-c75c"))
        write_guessed(archive)
        archive.open_study("guessed").set_status("the default config does not build: kernel.cu(17): no such file")
    monkeypatch.setattr(studies, "console", lambda: Console(width=width, highlight=False, markup=False))

    assert 0 == main(["studies", "--storage", f"{tmp_path}/study.db"])
    lines = capsys.readouterr().out.splitlines()
    assert width >= max(map(len, lines))
    [guessed] = [line for line in lines if "guessed" in line]
    assert ["2", "5.000", "estimated"] == guessed.split()[1:4]
    assert "the default" in guessed
    [measured] = [line for line in lines if "attention-B1_H8_S512_D64" in line]
    assert ["15", "4.040", "confirmed"] == measured.split()[1:4]


@pytest.mark.parametrize(("width", "all_figures"), [(80, False), (176, True)])
def test_a_narrow_terminal_keeps_what_decides(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int, all_figures: bool
) -> None:
    monkeypatch.setattr(result, "console", lambda: Console(width=width, highlight=False, markup=False))
    row = {
        "trial": 7,
        "label": "wm_2.bn_512",
        "median_us": 4.365,
        "noise": 0.011,
        "ratio_to_default": 0.5,
        "ratio_to_sdpa": 2.04,
        "registers": 243,
        "smem_bytes": 135168,
        "error": 2.8e-4,
        "cold_median_us": 5.12,
        "verdict_confidence": 0.99375,
    }
    counts = {"verdicts": {}, "free": {}, "shortlist": [], "baselines": [], "rejections": []}
    about = {"study": "s", "template": "t", "shape": "x", "device": "d", "limits": "l", "spent": 1, "budget": 1}
    final = {"winner": "trial 7", "default": {"median_us": 8.36, "cold_median_us": 9.5}}
    result.show_result({**about, **counts, **final, "sources": [], "worth": None, "elites": [row], "measured": []})
    out = capsys.readouterr().out

    assert all(figure in out for figure in ("wm_2.bn_512", "4.365", "1.1%", "2.00x", "2.04x", "243", "135168"))
    assert all_figures == ("2.8e-04" in out) == ("5.120" in out)
    assert "default config in the same run: 8.360 us, 9.500 us with cold L2" in " ".join(out.split())
    assert "by more than 1% over the whole 99.38% interval" in " ".join(out.split())


@pytest.mark.parametrize(("width", "lines"), [(80, 2), (176, 1)])
def test_a_label_is_broken_between_its_tokens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int, lines: int
) -> None:
    label = "wm_4.rt_1.bn_64.wkv_1.st_2.pw_0.mb_0.un_0.ll_0.qr_1.ov_0.lr_0.sm_0.ms_0.ot_0.hf_0.sp_1.mc_1"
    monkeypatch.setattr(result, "console", lambda: Console(width=width, highlight=False, markup=False))
    row = {"trial": 7, "label": label, "estimated_us": 14.874, "registers": 144, "spill_bytes": 0, "smem_bytes": 40960}
    counts = {"verdicts": {}, "free": {}, "measured": [], "baselines": [], "rejections": [], "elites": []}
    about = {"study": "s", "template": "t", "shape": "x", "device": "d", "limits": "l", "spent": 1, "budget": 1}
    figures = {"ctas_per_sm": 2, "error": 2.8e-4}
    result.show_result({**about, **counts, "sources": [], "worth": None, "shortlist": [{**row, **figures}]})
    cells = re.findall(r"\S+_\d+\S*", capsys.readouterr().out)

    assert lines == len(cells)
    assert label == "".join(cells)
    assert [] == [cell for cell in cells if not re.fullmatch(r"([a-z]+_\d+(\.|$))+", cell)]


def test_a_token_wider_than_the_terminal_is_folded() -> None:
    console = Console(width=12, file=io.StringIO(), highlight=False, markup=False)
    console.print(Label("kind_abcdefghijklm.n_1"))

    assert ["kind_abcdefg", "hijklm.", "n_1"] == console.file.getvalue().split()  # type: ignore[attr-defined]
