"""Knob liveness: a dead knob is found, a host's knob is none, and the shipped space has no dead one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import make_template
from fakes import SPACE, FakeBuilder, Module, question

from evoengine.build import Builder
from evoengine.cli import main
from evoengine.errors import TemplateError
from evoengine.gates import Ceilings
from evoengine.hardware import card
from evoengine.knobs import Knob, liveness
from evoengine.problem import AttentionProblem, parse_shape
from evoengine.question import Question
from evoengine.space import Point, Values, load_space
from evoengine.template import Template, load_template, shipped
from evoengine.verdict import Gate


def right(values: Values) -> Gate | None:
    return None


def found(
    tmp_path: Path, pairs: int = 8, seed: int = 0, fate: Callable[[Values], Gate | None] = right
) -> dict[str, Knob]:
    knobs = liveness(question(), FakeBuilder(tmp_path, fate), pairs, seed)  # type: ignore[arg-type]
    return {knob.axis: knob for knob in knobs}


def test_a_knob_that_reaches_no_compiler_and_no_launch_is_dead(tmp_path: Path) -> None:
    knobs = found(tmp_path)

    assert {"TILE": "live", "UNROLL": "live", "PAD": "dead", "GRID": "live"} == {
        name: knob.state for name, knob in knobs.items()
    }
    assert (8, 0) == (knobs["PAD"].compared, knobs["PAD"].changed)
    assert knobs["PAD"].links[0].unchanged.startswith("t_64.u_4"), "the default comes first"
    assert (8, 8) == (knobs["GRID"].compared, knobs["GRID"].changed), "one cubin, two launches"


def test_pairs_differ_in_one_axis_and_keep_the_rules(tmp_path: Path) -> None:
    builder = FakeBuilder(tmp_path, right)
    knobs = liveness(question(), builder, 100, 0)  # type: ignore[arg-type]
    links = {knob.axis: [(link.choices, link.compared) for link in knob.links] for knob in knobs}

    # 16 tile and unroll combinations without (128, 8); 2 pads and 2 grids each.
    assert [((16, 32), 16), ((32, 64), 16), ((64, 128), 12)] == links["TILE"]
    assert [((1, 2), 16), ((2, 4), 16), ((4, 8), 12)] == links["UNROLL"]
    assert [((0, 1), 30)] == links["PAD"]
    assert 60 == len(question().feasible.points)
    assert len(builder.built) == 60, "a config that is in many pairs is built once"


def test_what_the_compiler_refuses_is_not_compared(tmp_path: Path) -> None:
    knobs = found(tmp_path, 100, fate=lambda values: Gate.COMPILE if values["TILE"] == 16 else None)
    first, *rest = knobs["TILE"].links

    assert ((16, 32), 0, 16) == (first.choices, first.compared, first.refused)
    assert [0, 0] == [link.refused for link in rest]
    assert "live" == knobs["TILE"].state


def test_what_takes_too_much_is_not_compared(tmp_path: Path) -> None:
    knobs = found(tmp_path, 100, fate=lambda values: Gate.RESOURCES if values["UNROLL"] == 8 else None)

    assert [0, 0, 12] == [link.refused for link in knobs["UNROLL"].links]
    assert "live" == knobs["UNROLL"].state


@pytest.mark.parametrize("gate", [Gate.COMPILE, Gate.RESOURCES])
def test_where_nothing_builds_the_template_is_to_blame(tmp_path: Path, gate: Gate) -> None:
    with pytest.raises(TemplateError, match=rf"none of \d+ configs builds and fits, \S+ for one: {gate}: "):
        found(tmp_path, fate=lambda values: gate)


def test_a_knob_without_a_pair_that_builds_has_no_verdict(tmp_path: Path) -> None:
    knobs = found(tmp_path, fate=lambda values: Gate.COMPILE if values["TILE"] != 16 else None)

    assert "unbuilt" == knobs["TILE"].state
    assert "unbuilt" != knobs["UNROLL"].state


class Rarely(Module):
    """PAD reaches the compiler in one tile of four, UNROLL in none."""

    def defines(self, values: Values, problem: AttentionProblem) -> dict[str, int]:
        return {"TILE": values["TILE"] + (values["PAD"] if values["TILE"] == 128 else 0), "UNROLL": 1}


def test_a_knob_that_acts_on_few_configs_is_rare(tmp_path: Path) -> None:
    asked = dataclasses.replace(question(), template=Template(tmp_path, Rarely()))  # type: ignore[arg-type]
    knobs = {knob.axis: knob for knob in liveness(asked, FakeBuilder(tmp_path, right), 100, 0)}  # type: ignore[arg-type]

    assert ("rare", 30, 6) == (knobs["PAD"].state, knobs["PAD"].compared, knobs["PAD"].changed)
    assert "dead" == knobs["UNROLL"].state


def only(asked: Question, points: list[Point]) -> None:
    """Take all but `points` out of the feasible set."""
    vars(asked)["feasible"] = dataclasses.replace(asked.feasible, points=points)


def test_choices_that_no_feasible_config_has(tmp_path: Path) -> None:
    asked = question()
    points = [point for point in asked.feasible.points if point[0] == 2 and point[1] != 1]
    only(asked, points)
    knobs = {knob.axis: knob for knob in liveness(asked, FakeBuilder(tmp_path, right), 4, 0)}  # type: ignore[arg-type]

    assert ("fixed", (16, 32, 128)) == (knobs["TILE"].state, knobs["TILE"].never)
    assert (2,) == knobs["UNROLL"].never
    assert [(1, 4), (4, 8)] == [link.choices for link in knobs["UNROLL"].links], "neighbours among what is left"


def test_choices_that_never_meet_alone(tmp_path: Path) -> None:
    asked = question()
    only(asked, [point for point in asked.feasible.points if point[2] == point[3]])
    knobs = {knob.axis: knob for knob in liveness(asked, FakeBuilder(tmp_path, right), 4, 0)}  # type: ignore[arg-type]

    assert ["never alone", "never alone"] == [knobs[name].state for name in ("PAD", "GRID")]


def test_the_seed_decides_which_pairs(tmp_path: Path) -> None:
    def built(seed: int) -> list[dict[str, int]]:
        builder = FakeBuilder(tmp_path, right)
        liveness(question(), builder, 2, seed)  # type: ignore[arg-type]
        return builder.built

    assert built(1) == built(1)
    assert built(1) != built(2)


class TestCommand:
    @pytest.fixture
    def options(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
        monkeypatch.chdir(tmp_path)
        make_template(tmp_path / "mine")
        return ("knobs", "--template", "mine", "--shape", "1000", "--device", "none", "--pairs", "2", "--jobs", "2")

    def test_a_dead_knob_is_exit_code_1(self, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
        assert 1 == main([*options, "--json"])
        document = json.loads(capsys.readouterr().out)
        knobs = {knob["axis"]: knob for knob in document["knobs"]}

        assert {"THREADS": "live", "ITEMS": "live", "IGNORED": "dead"} == {
            name: knob["state"] for name, knob in knobs.items()
        }
        assert [2, 2, 0, 0, 0] == [link["refused"] for link in knobs["THREADS"]["links"]], "48 threads do not compile"
        assert ("mine", "sm_89", {"n": 1000}) == (document["template"], document["arch"], document["problem"])

        assert 1 == main(options)
        assert "IGNORED is dead: no pair differs in cubin, launch or arguments" in capsys.readouterr().out

    def test_without_it_exit_code_0(self, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
        space = Path("mine/space.py")
        text = space.read_text().replace('Axis("IGNORED", (0, 1), "x")', 'Axis("IGNORED", (0,), "x")')
        space.write_text(text.replace('"IGNORED": 1}', '"IGNORED": 0}'))

        assert 0 == main(options)
        assert "fixed" in capsys.readouterr().out


def test_the_attention_space_has_no_dead_knob() -> None:
    """One pair of the two smallest choices of every axis, on a problem that is cheap to compile for."""
    template = load_template(shipped("kernel_templates") / "attention")
    space = load_space(shipped("search_spaces") / "attention.py")
    asked = Question(template, space, parse_shape(AttentionProblem, "1,1,40,32,causal"), card("l4"), Ceilings())
    only(asked, [point for point in asked.feasible.points if max(point) < 2])
    with Builder(template, asked.limits.arch) as builder:
        knobs = liveness(asked, builder, pairs=1, seed=0)

    expected = [(axis.name, "live", 1) if axis.name != "WGMMA" else ("WGMMA", "fixed", 0) for axis in space]
    assert expected == [(knob.axis, knob.state, knob.changed) for knob in knobs]


def test_wgmma_is_alive_on_hopper() -> None:
    template = load_template(shipped("kernel_templates") / "attention")
    space = load_space(shipped("search_spaces") / "attention.py")
    asked = Question(template, space, parse_shape(AttentionProblem, "1,1,70,64"), card("h200"), Ceilings())
    default = space.point(space.default)
    only(asked, [point for point in asked.feasible.points if point[:-1] == default[:-1]])
    with Builder(template, asked.limits.arch) as builder:
        *_, wgmma = liveness(asked, builder, pairs=1, seed=0)

    assert ("WGMMA", "live", 1) == (wgmma.axis, wgmma.state, wgmma.changed)


def test_the_fake_space_is_what_these_tests_take_it_for() -> None:
    assert [4, 4, 2, 2] == [len(axis.choices) for axis in SPACE]
