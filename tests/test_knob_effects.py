"""The worth of an elite's choices without a GPU: its neighbours, what is made of a given run, and the tables."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Self

import pytest
from fake_cuda_worker import FAULTS
from fakes import SPACE, FakeBuilder, fate, question, true_us
from test_comparison import header
from test_cuda_protocol import ARTIFACT, candidate, notes

from benchmarks import knob_effects
from benchmarks.knobs.neighbours import neighbours
from evoengine.cli.entries import Entry
from evoengine.cli.resolve import Target
from evoengine.devices.cuda import CudaDevice, Final, Finals
from evoengine.devices.cuda.results import make_final
from evoengine.errors import TemplateError, UserError
from evoengine.gates import Ceilings
from evoengine.hardware import card
from evoengine.problem import AttentionProblem, parse_shape
from evoengine.question import Question
from evoengine.space import Values, load_space
from evoengine.template import load_template, shipped
from evoengine.verdict import Artifact, Gate, Rejection

H200 = Target(card("h200"), card("h200"), 0)
ATTENTION = load_space(shipped("search_spaces") / "attention.py")
TEMPLATE = load_template(shipped("kernel_templates") / "attention")


def attention(shape: str, limits: str = "h200") -> Question:
    return Question(TEMPLATE, ATTENTION, parse_shape(AttentionProblem, shape), card(limits), Ceilings())


@pytest.mark.parametrize(
    ("shape", "limits", "changes"),
    [
        ("1,8,512,64", "h200", dict(WARPS_M=2, BLOCK_N=512, WARPS_KV=4, STAGES=1, ONE_TILE=1)),
        ("1,8,512,64", "l4", dict(WARPS_M=2, BLOCK_N=256, WARPS_KV=2, STAGES=1, PRODUCER_WARPS=4)),
        ("4,16,1024,64,causal", "h200", dict(BLOCK_N=128, PRODUCER_WARPS=2, MBARRIER=1, UNROLL=1, HEAVY_FIRST=1)),
    ],
)
def test_every_other_choice_is_a_neighbour_and_only_what_rules_demand_changes_besides(
    shape: str, limits: str, changes: dict[str, int]
) -> None:
    asked = attention(shape, limits)
    control = ATTENTION.config({**ATTENTION.default, **changes})
    assert asked.static_gate(control.values) is None
    found = list(neighbours(asked, control))

    choices = [(a.name, c) for a in ATTENTION for c in a.choices if c != control.values[a.name]]
    assert choices == [(one.axis, one.choice) for one in found]
    for one in found:
        changed = {**control.values, one.axis: one.choice}
        refusal = asked.static_gate(changed)
        assert (refusal is None) == (one.broken is None)
        if refusal is not None and one.broken is not None:
            assert refusal.reason == f"{one.broken.rule}: {one.broken.reason}"
        if one.config is not None:
            assert asked.static_gate(one.config.values) is None
            assert {**changed, **one.also} == one.config.values
            assert (one.broken is not None) == bool(one.also)
            assert len(one.also) <= 2
        if len(one.also) == 2:  # neither alone would do
            assert all(asked.static_gate({**changed, name: value}) for name, value in one.also.items())
    assert any(one.also for one in found)
    assert any(one.config is not None and not one.also for one in found)


def test_the_repair_is_the_nearest() -> None:
    control = ATTENTION.config({**ATTENTION.default, "BLOCK_N": 256, "STAGES": 2})
    found = {(one.axis, one.choice): one for one in neighbours(attention("1,8,512,64"), control)}

    assert {"BLOCK_N": 192} == found["STAGES", 3].also
    assert {"PRODUCER_WARPS": 1} == found["MBARRIER", 1].also
    assert (1, 2) == (found["STAGES", 1].steps, found["STAGES", 3].steps)
    assert found["HEAVY_FIRST", 1].config is None


def test_choices_of_the_shipped_space_build_and_change_the_machine_code() -> None:
    asked = attention("1,8,64,64", "l4")
    control = ATTENTION.config({**ATTENTION.default, "WARPS_M": 1, "BLOCK_N": 16})
    found = [one for one in neighbours(asked, control) if one.axis in ("Q_IN_REGS", "SUM_MMA", "HEAVY_FIRST")]
    artifact, results = knob_effects.built(asked, "sm_89", control, found)

    assert ["Q_IN_REGS", "SUM_MMA", "HEAVY_FIRST"] == [one.axis for one in found]
    assert results[2] is None
    cubins = {one.cubin_sha256 for one in (artifact, *results) if isinstance(one, Artifact)}
    assert 3 == len(cubins)


class Card:
    """Times by arithmetic what `fakes` decides; what it was asked to run together."""

    asked: list[list[str]]
    wrong: bool = False

    def __init__(self, *_: Any, seed: int, ordinal: int) -> None:
        self.seed = seed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def compare(
        self, control: tuple[Values, Artifact], work: Any, seed: int, competitors: Any, step_seconds: float
    ) -> Finals:
        assert () == competitors
        Card.asked.append([one.config.label for one, _ in work])
        control_us = true_us(control[0])

        def verdict(values: Values) -> Final | Rejection:
            if fate(values) is not None:
                return Rejection(Gate.CORRECTNESS, "max error 1")
            return make_final("", [true_us(values)] * 5, [control_us] * 5, 10, seed)

        finalists = tuple((one, verdict(one.config.values)) for one, _ in work)
        if Card.wrong:
            finalists = ((work[0][0], Rejection(Gate.CORRECTNESS, "mismatch")), *finalists[1:])
        control_lap = make_final("default", [control_us] * 5, [control_us] * 5, 10, seed)
        return Finals(control_lap, finalists, (), {"gpu": "paper", "driver": "1"}, seed)


@pytest.fixture
def on_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The builder and the card of `fakes`."""

    class Builder(FakeBuilder):
        def __init__(self, *_: Any) -> None:
            super().__init__(tmp_path)

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    Card.asked, Card.wrong = [], False
    monkeypatch.setattr(knob_effects, "Builder", Builder)
    monkeypatch.setattr(knob_effects, "CudaDevice", Card)
    monkeypatch.setattr(knob_effects, "find_target", lambda *_: H200)


def measured(seconds: float = 60.0, **changes: int) -> dict[str, Any]:
    entry = Entry("elite", question(), SPACE.config({**SPACE.default, **changes}), "recorded")
    row, environment = knob_effects.effects(entry, H200, seconds)
    assert {"gpu": "paper", "driver": "1", "toolchain": "fake 1"} == environment
    return json.loads(json.dumps(row, allow_nan=False))


def others(row: dict[str, Any], axis: str) -> dict[int, dict[str, Any]]:
    return {one["choice"]: one for one in row["axes"][axis]["others"]}


def test_a_row_says_of_every_choice_what_came_of_it(on_paper: None) -> None:
    row = measured()
    control_us = true_us(SPACE.default)

    assert ["TILE", "UNROLL", "PAD", "GRID"] == list(row["axes"])
    assert [64, 4, 0, 1] == [axis["choice"] for axis in row["axes"].values()]
    assert control_us == row["control"]["median_us"]
    assert [1.0] == [one["ratio"] for one in row["again"]]
    tiles = others(row, "TILE")
    assert ("correctness", "max error 1") == (tiles[16]["gate"], tiles[16]["rejected"])
    assert ("resources", 300) == (tiles[128]["gate"], tiles[128]["registers"])
    assert tiles[32]["ratio"] == pytest.approx(true_us({**SPACE.default, "TILE": 32}) / control_us)
    assert tiles[32]["ratio_95"][0] <= tiles[32]["ratio"] <= tiles[32]["ratio_95"][1]
    assert (40, 0, 1024, True) == tuple(
        tiles[32][name] for name in ("registers", "spill_bytes", "smem_bytes", "cubin_changed")
    )
    pad, grid = others(row, "PAD")[1], others(row, "GRID")[2]
    assert (False, True) == (pad["cubin_changed"], pad["dead"])
    assert "ratio" not in pad
    assert (False, False) == (grid["cubin_changed"], grid["dead"])  # another launch of the same cubin
    assert grid["ratio"] == pytest.approx((control_us + 0.5) / control_us)
    (together,) = Card.asked
    assert SPACE.config(SPACE.default).label == together[0]
    assert len(together) == len(set(together)) == 1 + 6


def test_a_forbidden_choice_names_its_rule_and_what_changed_besides(on_paper: None) -> None:
    row = measured(TILE=128, UNROLL=2)

    eight = others(row, "UNROLL")[8]
    assert {"rule": "rows", "reason": "more than 512 rows"} == eight["forbidden"]
    assert {"TILE": 64} == eight["also"]
    assert eight["ratio"] == pytest.approx(true_us(dict(TILE=64, UNROLL=8, GRID=1)) / row["control"]["median_us"])


def test_out_of_time_the_farthest_are_skipped(on_paper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knob_effects, "GROUP", 4)
    row = measured(seconds=0.0)

    assert 1 == len(Card.asked) == len(row["again"])
    unroll = others(row, "UNROLL")
    assert "ratio" in unroll[2]
    assert "ratio" in unroll[8]
    assert "out of time" == unroll[1]["skipped"]  # two steps away
    assert "skipped" in others(row, "TILE")[16]


def test_groups_are_of_even_size_and_each_has_the_control_twice(
    on_paper: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knob_effects, "GROUP", 4)
    row = measured()

    assert [4, 4] == [len(group) for group in Card.asked]
    assert {SPACE.config(SPACE.default).label} == {group[0] for group in Card.asked}
    assert 2 == len(row["again"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [(dict(TILE=128, UNROLL=8), "static"), (dict(TILE=16, UNROLL=8), "compile"), (dict(TILE=128), "resources")],
)
def test_a_control_that_a_gate_refuses_has_no_neighbours(on_paper: None, changes: dict[str, int], reason: str) -> None:
    with pytest.raises(TemplateError, match=f"refused at the gate {reason}"):
        measured(**changes)


def test_a_control_that_is_wrong_the_second_time_ends_the_shape(on_paper: None) -> None:
    Card.wrong = True

    with pytest.raises(TemplateError, match="wrong beside itself: mismatch"):
        measured()


def namespace(**changes: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"shape": None, "template": None, "space": None, "limits": None, **changes})


def test_headers_lists_and_searches_are_read(tmp_path: Path) -> None:
    path = header(tmp_path, AttentionProblem(seq_q=1024, seq_k=1024), WARPS_M=2)
    study = tmp_path / "search.json"
    values = {**ATTENTION.default, "STAGES": 1}
    fields = {**dataclasses.asdict(AttentionProblem(heads=2, kv_heads=2))}
    document = {"template": "attention", "template_digest": "d", "problem": fields, "elites": [{"config": values}]}
    study.write_text(json.dumps(document))
    whats = [str(path), "STAGES=1,WARPS_M=8@1,8,256,64,causal", "wm_2@2,8,512,64", str(study)]
    found = knob_effects.found_entries(whats, namespace(), H200)

    assert ["B1_H8_S1024_D64_fp16", "B1_H8_S256_D64_fp16_causal", "B2_H8_S512_D64_fp16", "B1_H2_S512_D64_fp16"] == [
        one.question.problem.label for one in found
    ]
    assert [(2, 2), (8, 1), (2, 2), (4, 1)] == [
        (one.config.values["WARPS_M"], one.config.values["STAGES"]) for one in found
    ]
    assert ["0123456789abcdef", None, None, "d"] == [one.recorded_digest for one in found]


def test_a_search_without_an_elite_is_one_line(tmp_path: Path) -> None:
    study = tmp_path / "search.json"
    study.write_text('{"elites": []}')

    with pytest.raises(UserError, match="with an elite"):
        knob_effects.found_entries([str(study)], namespace(), H200)


def test_without_a_gpu_it_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(sys, "argv", ["knob_effects.py", "STAGES=1", "--output", str(tmp_path / "out.json")])
    code = knob_effects.main()
    said = capsys.readouterr().err

    assert 2 == code
    assert 1 == said.count("\n")
    assert "there is no GPU here" in said
    assert not (tmp_path / "out.json").exists()


def test_the_command_writes_every_shape_and_goes_on_after_one_that_fails(
    on_paper: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def found(whats: Any, arguments: Any, target: Any) -> list[Entry]:
        configs = [SPACE.config({**SPACE.default, **changes}) for changes in (dict(TILE=128), {})]
        return [Entry(what, question(), config) for what, config in zip(whats, configs, strict=True)]

    monkeypatch.setattr(knob_effects, "found_entries", found)
    output = tmp_path / "new" / "knob_effects.json"
    code = knob_effects.run(["bad", "good", "--output", str(output)])
    document = json.loads(output.read_text())
    shown = capsys.readouterr().out

    assert 1 == code
    assert "python benchmarks/knob_effects.py bad good --output" in document["command"]
    assert "refused at the gate resources" in document["rows"][0]["failed"]
    assert "good" == document["rows"][1]["what"]
    assert {"gpu", "driver", "toolchain", "template_digest", "space_digest"} == set(document["environment"])
    cells = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.strip()}
    assert ["64:", "1.08"] == cells["TILE"]  # 32 is the only other tile that is right
    assert ["0:", "="] == cells["PAD"]
    assert "1 dead, 2 rejected, 0 skipped" in shown

    assert 0 == knob_effects.run(["--markdown", "--output", str(output)])
    assert "| `EVO_PAD` | same machine code on 1 |" in capsys.readouterr().out.splitlines()


def test_the_device_races_without_competitors_and_drops_who_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    here = Path(__file__).resolve().parent
    template = load_template(here / "templates" / "axpb")
    worker = (sys.executable, str(here / "fake_cuda_worker.py"), str(tmp_path), f"GPU-{tmp_path.name}-{os.getpid()}")
    work = [(candidate(1), ARTIFACT), (candidate(2, "hangs"), ARTIFACT)]
    with CudaDevice(template, template.module.PROBLEM(), card("l4"), seed=1, worker=worker) as device:
        finals = device.compare(({"BUG": FAULTS.index("right"), "WORK": 10}, ARTIFACT), work, 7, (), 0.5)

    (_, right), (_, hung) = finals.finalists
    assert isinstance(right, Final)
    assert isinstance(hung, Rejection)
    assert Gate.TIMEOUT == hung.gate
    assert [""] == notes(tmp_path, "competitors")
