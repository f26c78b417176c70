"""The final table of configs: every figure that decides is there at the widths of real terminals."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from evoengine.cli import result, tables
from evoengine.cli.result import show_result
from evoengine.cli.tables import PIPE_WIDTH

LABEL = "wm_2.rt_1.bn_512.wkv_2.st_1.pw_4.mb_0.un_0.ll_0.qr_1.ov_0.lr_0.sm_1.ms_1.ot_1.hf_0.sp_1.mc_1"
DECISIVE = ("us", "noise", "vs default", "vs SDPA", "verdict", "regs", "smem B", "CTAs/SM")
FIGURES = ("4.693", "0.8%", "1.78x", "1.96x", "FASTER", "160", "135296", "1")


def row(label: str, **more: Any) -> dict[str, Any]:
    return {
        "trial": 150, "label": label, "median_us": 4.693, "cold_median_us": 7.026, "noise": 0.008, "registers": 160,
        "ratio_to_default": 1 / 1.78, "ratio_to_sdpa": 1.96, "verdict": "FASTER", "spill_bytes": 0, "error": 2.8e-4,
        "smem_bytes": 135296, "ctas_per_sm": 1, "verdict_confidence": 0.99, **more,
    }  # fmt: skip


def lines(monkeypatch: pytest.MonkeyPatch, width: int, label: str = LABEL, **more: Any) -> list[str]:
    text = io.StringIO()
    terminal = width != PIPE_WIDTH
    out = Console(file=text, width=width, force_terminal=terminal, color_system=None, highlight=False, markup=False)
    for module in (result, tables):
        monkeypatch.setattr(module, "console", lambda **_: out)
    plain = {"study": "first", "template": "attention", "shape": "S", "device": "D", "limits": "D", "spent": 1}
    nothing = {"sources": [], "free": {}, "rejections": [], "measured": [], "shortlist": [], "baselines": []}
    default = {"median_us": 8.36, "cold_median_us": 12.0}
    document = {**plain, **nothing, "budget": 1, "verdicts": {}, "worth": None, "winner": "trial 150"}
    show_result(document | {"elites": [row(label, **more)], "default": default})
    return [line.rstrip() for line in text.getvalue().splitlines()]


@pytest.mark.parametrize("width", [80, 120, 160, PIPE_WIDTH])
def test_no_width_hides_what_decides(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    said = lines(monkeypatch, width)
    [head] = [at for at, line in enumerate(said) if "verdict" in line]

    assert max(map(len, said)) <= width
    assert [] == [name for name in DECISIVE if name not in said[head]]
    assert [] == [figure for figure in FIGURES if figure not in said[head + 2].split()]
    assert ("cold us" in said[head]) == (width >= 120)
    assert LABEL in "".join(line.strip() for line in said[head + 2 : head + 5])
    assert (LABEL in said[head + 2]) == (width == PIPE_WIDTH), "on one line where somebody searches it"
    assert [] == [token for token in LABEL.split(".") if not any(token in line for line in said)]


def test_means_over_several_shapes_have_the_worst_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"shape": "S", "weight": 1.0, "median_us": 4.0, "noise": 0.01, "ratio_to_default": 0.5, "verdict": "SAME"}
    said = lines(monkeypatch, 80, worst_shape="S", worst_ratio_to_default=1 / 1.25, shapes=[own])
    [head] = [at for at, line in enumerate(said) if "at worst" in line and "CTAs/SM" in line]

    assert max(map(len, said)) <= 80
    assert ["1.25x"] == [word for word in said[head + 2].split() if word == "1.25x"]


def test_a_short_label_stands_beside_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    assert any("w_1.r_8" in line and "FASTER" in line for line in lines(monkeypatch, 90, "w_1.r_8"))


def test_a_terminals_sentences_break_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    said = lines(monkeypatch, 80)

    assert "FASTER, SLOWER: by more than 1% over the whole 99.00% interval of the ratio," in said
    assert 1 == sum(line.endswith("for all finalists together") for line in lines(monkeypatch, PIPE_WIDTH))
