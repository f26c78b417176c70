"""Search spaces: configs, their names, and the feasible set against brute force."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evoengine.errors import UserError
from evoengine.hardware import DeviceLimits, card
from evoengine.problem import AttentionProblem, Problem
from evoengine.space import Axis, Broken, Config, FeasibleSet, Point, Rule, SearchSpace, Values, load_space

PROBLEM = AttentionProblem()
LIMITS = card("l4")

WARPS = Axis("WARPS", (1, 2, 4, 8), "w")
TILE = Axis("TILE", (16, 32, 64), "t")
LAYOUT = Axis("LAYOUT", (0, 1, 2), "l", ordered=False, names=("none", "pad", "xor"))


def tile_per_warp(values: Values, problem: Problem, limits: DeviceLimits) -> str | None:
    if values["TILE"] >= 8 * values["WARPS"]:
        return None
    return f"TILE={values['TILE']} for {values['WARPS']} warps"


def space(rules: tuple[Rule, ...] = (Rule("tile_per_warp", ("WARPS", "TILE"), tile_per_warp),)) -> SearchSpace:
    return SearchSpace("toy", (WARPS, TILE, LAYOUT), rules, {"WARPS": 2, "TILE": 32, "LAYOUT": 2})


@st.composite
def spaces(draw: st.DrawFn) -> tuple[SearchSpace, tuple[Rule, ...]]:
    """A small space with arbitrary rules of its own, and rules of the hardware that read every axis."""
    axes = tuple(
        Axis(f"A{i}", tuple(draw(st.lists(st.integers(-9, 99), min_size=1, max_size=4, unique=True))), f"a{i}", ordered)
        for i, ordered in enumerate(draw(st.lists(st.booleans(), min_size=1, max_size=4)))
    )
    names = [axis.name for axis in axes]

    def rule(number: int, kind: str, read: list[str]) -> Rule:
        factors = draw(st.lists(st.integers(1, 7), min_size=len(read), max_size=len(read)))
        modulus, refused = draw(st.integers(2, 6)), draw(st.integers(0, 5))

        def check(values: Values, problem: Problem, limits: DeviceLimits) -> str | None:
            total = sum(factor * values[name] for factor, name in zip(factors, read, strict=True))
            return f"{total} mod {modulus} is {refused}" if total % modulus == refused else None

        return Rule(f"{kind}{number}", tuple(read), check)

    subsets = draw(st.lists(st.lists(st.sampled_from(names), unique=True), max_size=3))
    own = tuple(rule(i, "own", subset) for i, subset in enumerate(subsets))
    hardware = tuple(rule(i, "hardware", names) for i in range(draw(st.integers(0, 2))))
    return SearchSpace("random", axes, own, {axis.name: axis.choices[0] for axis in axes}), hardware


def brute_force(space: SearchSpace, rules: tuple[Rule, ...]) -> list[Point]:
    return [
        point
        for point in itertools.product(*(range(len(axis.choices)) for axis in space.axes))
        if all(rule.check(space.config_at(point).values, PROBLEM, LIMITS) is None for rule in rules)
    ]


@given(spaces())
def test_the_feasible_set_is_that_of_brute_force(drawn: tuple[SearchSpace, tuple[Rule, ...]]) -> None:
    space, hardware = drawn
    rules = (*space.rules, *hardware)
    feasible = space.feasible(PROBLEM, LIMITS, hardware)

    assert brute_force(space, rules) == sorted(feasible.points)
    assert space.product == feasible.product == len(feasible.points) + sum(feasible.rejected.values())
    assert [rule.id for rule in rules] == list(feasible.rejected)
    for row, point in enumerate(feasible.points):
        assert space.broken(space.config_at(point).values, PROBLEM, LIMITS, hardware) is None
        assert point == feasible.points[row]
    for at in range(len(space.axes)):
        assert sorted({point[at] for point in feasible.points}) == feasible.used(at)
    every = itertools.product(*(range(len(axis.choices)) for axis in space.axes))
    assert sorted(feasible.points) == [point for point in every if point in feasible.points]


@given(spaces(), st.data())
def test_nearest_is_feasible_and_nothing_feasible_is_closer(
    drawn: tuple[SearchSpace, tuple[Rule, ...]], data: st.DataObject
) -> None:
    space, hardware = drawn
    feasible = space.feasible(PROBLEM, LIMITS, hardware)
    values = {axis.name: data.draw(st.sampled_from(axis.choices)) for axis in space.axes}
    if not feasible.points:
        with pytest.raises(UserError, match="no config of random is feasible"):
            space.nearest(values, feasible)
        return
    target = space.point(values)
    found = space.point(space.nearest(values, feasible).values)

    assert found == min(feasible.points, key=lambda point: (space.distance(point, target), point))
    assert min(space.distance(point, target) for point in feasible.points) == space.distance(found, target)
    assert (target == found) == (target in feasible.points)


def test_each_product_point_is_counted_against_the_first_rule_it_breaks() -> None:
    def no_xor(values: Values, problem: Problem, limits: DeviceLimits) -> str | None:
        return "xor" if values["LAYOUT"] == 2 else None

    rules = (Rule("no_xor", ("LAYOUT",), no_xor), Rule("tile_per_warp", ("WARPS", "TILE"), tile_per_warp))
    feasible = space(rules).feasible(PROBLEM, LIMITS)

    # tile_per_warp is known to fail before LAYOUT is set: 3 of 12 (WARPS, TILE) pairs, 3 layouts each; no_xor takes
    # a third of the other 27
    assert {"tile_per_warp": 9, "no_xor": 9} == feasible.rejected
    assert (36, 18) == (feasible.product, len(feasible.points))


def test_rules_see_the_problem_and_the_limits() -> None:
    def check(values: Values, problem: Problem, limits: DeviceLimits) -> str | None:
        return f"{problem.label} on {limits.name}" if problem is PROBLEM and limits is LIMITS else None

    asked = space((Rule("seen", ("WARPS",), check),))

    assert 0 == len(asked.feasible(PROBLEM, LIMITS).points)
    assert Broken("seen", "B1_H8_S512_D64_fp16 on NVIDIA L4") == asked.broken(asked.default, PROBLEM, LIMITS)
    assert 36 == len(asked.feasible(PROBLEM, card("h200")).points)


def test_the_spaces_own_rules_answer_before_the_hardwares() -> None:
    hardware = (Rule("always", ("WARPS", "TILE", "LAYOUT"), lambda values, problem, limits: "never runs"),)

    assert Broken("tile_per_warp", "TILE=16 for 4 warps") == space().broken(
        {"WARPS": 4, "TILE": 16, "LAYOUT": 0}, PROBLEM, LIMITS, hardware
    )
    assert Broken("always", "never runs") == space().broken(space().default, PROBLEM, LIMITS, hardware)


def test_a_rule_that_fails_is_told_in_a_line_with_its_place() -> None:
    def unnamed(values: Values, problem: Problem, limits: DeviceLimits) -> str | None:
        return f"{values['WRAPS']} warps"

    wrong = space((Rule("unnamed", ("WARPS",), unnamed),))
    message = r"^search space toy: unnamed fails with KeyError: 'WRAPS' \(test_space.py:\d+\): rules may "
    with pytest.raises(UserError, match=message):
        wrong.feasible(PROBLEM, LIMITS)
    with pytest.raises(UserError, match=message):
        wrong.broken(wrong.default, PROBLEM, LIMITS)


def test_a_config_knows_its_values_label_and_digest() -> None:
    config = space().config({"LAYOUT": 2, "TILE": 32, "WARPS": 2})

    assert {"WARPS": 2, "TILE": 32, "LAYOUT": 2} == config.values
    assert ["WARPS", "TILE", "LAYOUT"] == list(config.values)
    assert "w_2.t_32.l_xor" == config.label
    assert (1, 1, 2) == space().point(config.values)
    assert config == space().config_at((1, 1, 2))
    # studies find a config of an earlier run by this: it must never change
    assert "b1dd8c4375dca5b4" == config.digest


def test_configs_of_equal_values_are_equal_whatever_their_label() -> None:
    config = space().config_at((0, 0, 0))
    renamed = Config(config.items, "another")

    assert config == renamed
    assert hash(config) == hash(renamed)
    assert config != space().config_at((0, 0, 1))


def test_a_digest_ignores_the_order_of_axes_and_nothing_else() -> None:
    configs = [space().config_at(point) for point in space().feasible(PROBLEM, LIMITS).points]
    first = configs[0]

    assert len(configs) == len({config.digest for config in configs})
    assert first.digest == Config(tuple(reversed(first.items)), "").digest


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"WARPS": 2, "TILE": 32}, "config lacks axis LAYOUT"),
        ({"WARPS": 2, "TILE": 48, "LAYOUT": 0}, r"TILE=48 is not among its choices \(16, 32, 64\)"),
        (
            {"WARPS": 2, "TILE": 32, "LAYOUT": 0, "TILES": 1},
            "unknown axis 'TILES': did you mean TILE. known are WARPS, TILE",
        ),
    ],
)
def test_values_that_are_no_config_are_refused_by_name(values: Values, message: str) -> None:
    with pytest.raises(UserError, match=message):
        space().config(values)


def test_an_unknown_axis_is_answered_with_the_known_ones() -> None:
    assert TILE is space().axis("TILE")
    with pytest.raises(UserError, match="unknown axis 'STAGES': known are WARPS, TILE, LAYOUT"):
        space().axis("STAGES")


def test_neighbours_are_one_step_away_or_anywhere_without_an_order() -> None:
    assert [(1,), (0, 2), (1, 3), (2,)] == [WARPS.neighbours(i) for i in range(4)]
    assert [(1, 2), (0, 2), (0, 1)] == [LAYOUT.neighbours(i) for i in range(3)]
    assert () == Axis("ONE", (5,), "o").neighbours(0)


def test_distance_is_a_share_of_each_ordered_axis_and_one_for_another_word() -> None:
    toy = space()

    assert 0.0 == toy.distance((1, 1, 1), (1, 1, 1))
    assert pytest.approx(1 / 3 + 1 / 2) == toy.distance((0, 0, 0), (1, 1, 0))
    assert 1.0 == toy.distance((0, 0, 0), (0, 0, 2))
    assert 3.0 == toy.distance((0, 0, 0), (3, 2, 1))


def test_values_are_shown_by_name_where_they_have_one() -> None:
    assert ["none", "pad", "xor"] == [LAYOUT.show(value) for value in LAYOUT.choices]
    assert "64" == TILE.show(64)


def test_iterating_a_space_gives_its_axes() -> None:
    assert [WARPS, TILE, LAYOUT] == list(space())


def test_nothing_feasible_names_the_rule_that_refused_most() -> None:
    with pytest.raises(UserError, match="most were refused by rule worst"):
        space().nearest(space().default, FeasibleSet([], {"some": 10, "worst": 26}, 36))


@pytest.mark.parametrize(
    ("choices", "names", "message"),
    [
        ((), (), "must be distinct and not empty"),
        ((1, 2, 1), (), r"BAD: choices \(1, 2, 1\) must be distinct"),
        ((0, 1), ("off",), "1 names for 2 choices"),
    ],
)
def test_an_axis_that_makes_no_sense_is_refused(choices: tuple[int, ...], names: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Axis("BAD", choices, "b", names=names)


def test_a_space_that_contradicts_itself_is_refused() -> None:
    reads_nothing_known = Rule("odd", ("WARPS", "STAGES"), tile_per_warp)
    with pytest.raises(UserError, match="rule odd reads unknown axis STAGES"):
        space((reads_nothing_known,))
    with pytest.raises(UserError, match="not distinct"):
        SearchSpace("twice", (WARPS, WARPS), (), {"WARPS": 1})
    with pytest.raises(UserError, match="TILE=17"):
        SearchSpace("default", (TILE,), (), {"TILE": 17})
    with pytest.raises(UserError, match="TILE=18"):
        SearchSpace("start", (TILE,), (), {"TILE": 16}, starts=({"TILE": 18},))


def test_the_digest_of_a_space_follows_everything_that_shapes_a_search() -> None:
    def digest(
        name: str = "toy",
        axis: Axis = TILE,
        rule: str = "r",
        default: int = 16,
        source: str = "",
        starts: tuple[Values, ...] = (),
    ) -> str:
        rules = (Rule(rule, (axis.name,), lambda values, problem, limits: None),)
        return SearchSpace(name, (axis,), rules, {axis.name: default}, starts, source).digest

    changed = [
        digest(),
        digest(name="other"),
        digest(axis=Axis("TILE", (16, 32), "t")),
        digest(axis=Axis("TILES", (16, 32, 64), "t")),
        digest(axis=Axis("TILE", (16, 32, 64), "t", ordered=False)),
        digest(rule="s"),
        digest(default=32),
        digest(source="abc"),
    ]

    assert len(changed) == len(set(changed))
    assert digest() == digest(starts=({"TILE": 64},))  # starts change where a search begins, not what it searches


SOURCE = """
from evoengine.space import Axis, Rule, SearchSpace
SPACE = SearchSpace("file", (Axis("A", (1, 2), "a"),), (), {"A": 1}, ({"A": 2},))
"""


def test_a_space_comes_from_its_file_with_the_files_digest(tmp_path: Path) -> None:
    path = tmp_path / "space.py"
    path.write_text(SOURCE)
    loaded = load_space(path)
    path.write_text(SOURCE + "# rules are code: a change that parses to the same axes may still be another space\n")
    changed = load_space(path)

    assert ("file", ("A",), {"A": 1}, ({"A": 2},)) == (
        loaded.name,
        tuple(axis.name for axis in loaded),
        loaded.default,
        loaded.starts,
    )
    assert loaded.digest != changed.digest


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("1 / 0", "does not run: ZeroDivisionError: division by zero"),
        ("SPACE = (", "does not run: SyntaxError"),
        ("import no_such_module", "does not run: ModuleNotFoundError"),
        ("", "defines no SPACE"),
        ("SPACE = {'A': (1, 2)}", "defines no SPACE"),
        (SOURCE.replace('{"A": 1}', '{"A": 3}'), "A=3 is not among its choices"),
    ],
)
def test_a_file_without_a_usable_space_is_refused(tmp_path: Path, source: str, message: str) -> None:
    path = tmp_path / "space.py"
    path.write_text(source)

    with pytest.raises(UserError, match=message) as error:
        load_space(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "why"), [("missing.py", "does not exist"), ("folder", "is not a"), ("notes.txt", "is not a .py file")]
)
def test_what_is_no_python_file_is_refused(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text(SOURCE)

    with pytest.raises(UserError, match=f"{name} {why}.*Python file that defines SPACE"):
        load_space(tmp_path / name)
