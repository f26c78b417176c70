"""Recorded spaces are read as found in the wild, or refused in one line."""

from __future__ import annotations

import gzip
import json
import math
import string
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded_files import ROWS, cachefile, t4, write

from evoengine.errors import UserError
from evoengine.recorded import document
from evoengine.recorded.load import load
from evoengine.recorded.recording import write_recording
from evoengine.recorded.space import RecordedSpace
from evoengine.space import Axis, SearchSpace
from evoengine.verdict import Gate, Measurement, Rejection, ResourceUsage


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """Reads what it is given as a file."""

    def read(content: object, name: str = "space.json") -> RecordedSpace:
        return load(write(tmp_path / name, content))

    return read


def costs_by_config(space: RecordedSpace) -> dict[tuple[str, ...], float | None]:
    """Cost of every config, which is named by the words of its axes."""
    costs = [None if math.isnan(cost) else cost for cost in space.costs.tolist()]
    return {tuple(space.label(row).values()): cost for row, cost in enumerate(costs)}


EXPECTED = {
    ("32", "1", "0"): 4000.0,
    ("32", "1", "1"): 3500.0,
    ("32", "2", "0"): 3000.0,
    ("32", "2", "1"): None,
    ("64", "1", "0"): 2000.0,
    ("64", "1", "1"): 2500.0,
    ("64", "2", "0"): 1000.0,
    ("64", "2", "1"): 1500.0,
    ("128", "1", "0"): None,
    ("128", "2", "0"): 1040.0,
    ("128", "2", "1"): 8000.0,
}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.T4.json.gz", t4()),
        ("a.T4.json", t4()),
        ("a.json.gz", cachefile()),
        ("a.json", cachefile()),
        ("a.json.gz", cachefile(closed=False)),
        ("a.json", cachefile(closed=False)),
    ],
)
def test_every_format_is_the_same_space(read: Any, name: str, content: object) -> None:
    space = read(content, name)

    assert EXPECTED == costs_by_config(space)
    assert ("a", "time", "us", 1000.0) == (space.name, space.objective, space.unit, space.optimum)
    assert {"version": "3"} == space.constants
    assert (
        Axis("block", (32, 64, 128), "block"),
        Axis("unroll", (1, 2), "unroll"),
        Axis("pad", (0, 1), "pad"),
    ) == space.axes
    assert {"block": 64, "unroll": 1, "pad": 0} == space.default
    assert 2 == sum(space.failures.values())
    assert len(EXPECTED) == len(space) == len(space.feasible.points)
    assert 12 == space.feasible.product


def test_failures_keep_their_reason(read: Any) -> None:
    rows = [*ROWS, ({"block": 128, "unroll": 1, "pad": 1, "version": 3}, "InvalidConfig")]

    assert {"compile": 1, "constraints": 1, "runtime": 1} == read(t4(rows)).failures
    assert {"CompilationFailedConfig": 1, "InvalidConfig": 1, "RuntimeFailedConfig": 1} == read(
        cachefile(rows)
    ).failures


def test_the_order_of_a_file_does_not_matter(read: Any) -> None:
    forward, backward = read(t4()), read(t4(ROWS[::-1]))

    assert forward.points == backward.points
    assert forward.costs.tobytes() == backward.costs.tobytes()


def two(first: Any, second: Any = 2.0) -> list[tuple[dict[str, Any], Any]]:
    return [({"x": 1}, first), ({"x": 2}, second)]


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, None, 0.0, -1.0, True, 1e20, 10**400, 1e-320, [], [math.nan], {"a": 1}, "SkippableFailure"],
)
def test_what_is_no_time_is_a_failure(read: Any, value: Any) -> None:
    for content in (t4(two(value)), cachefile(two(value))):
        space = read(content)

        assert [True, False] == np.isnan(space.costs).tolist()
        assert 1 == sum(space.failures.values())


def test_an_error_beside_a_time_is_a_failure(read: Any) -> None:
    text = cachefile(two(1.0)).replace('"time": 1.0', '"__error__": "RuntimeFailedConfig", "time": 1.0')

    assert {"RuntimeFailedConfig": 1} == read(text).failures


def test_invalidity_decides_before_correctness(read: Any) -> None:
    content = t4(two(1.0))
    content["results"][0] |= {"invalidity": "correctness", "correctness": 1}

    assert {"correctness": 1} == read(content).failures

    content["results"][0] |= {"invalidity": "correct", "correctness": 0}

    assert {} == read(content).failures

    del content["results"][0]["invalidity"]

    assert {"correctness": 1} == read(content).failures


@pytest.mark.parametrize(
    ("unit", "us"),
    [("ns", 2e-3), ("us", 2.0), ("µs", 2.0), ("ms", 2e3), ("", 2e3), ("s", 2e6), ("sec", 2e6), ("milliseconds", 2e3)],
)
def test_units_become_microseconds(read: Any, unit: str, us: float) -> None:
    space = read(t4(two(3.0), unit=unit))

    assert "us" == space.unit
    assert us == pytest.approx(space.optimum, rel=1e-12)


def test_a_files_own_unit_counts_where_a_measurement_has_none(read: Any) -> None:
    assert 2e6 == read(t4(two(3.0), metadata={"timeunit": "seconds"})).optimum
    assert 2e3 == read(t4(two(3.0), metadata="none")).optimum


def test_units_may_differ_from_config_to_config(read: Any) -> None:
    content = t4(two(3.0, 2.0), unit="s")
    content["results"][0]["measurements"][0]["unit"] = "ms"

    assert 3e3 == read(content).optimum


def test_of_several_objectives_time_is_taken_else_the_first(read: Any) -> None:
    content = t4(two(3.0, 2.0))
    for result, joules in zip(content["results"], (5.0, 6.0), strict=True):
        result["objectives"] = ["energy", "time"]
        result["measurements"].insert(0, {"name": "energy", "value": joules, "unit": "J"})

    assert ("time", 2e3) == ((space := read(content)).objective, space.optimum)

    for result in content["results"]:
        result["objectives"] = ["energy", "temperature"]

    assert ("energy", "J", 5.0) == ((space := read(content)).objective, space.unit, space.optimum)

    content["results"][0]["measurements"][0]["unit"] = "mJ"

    with pytest.raises(UserError, match="energy in units that cannot be compared: J, mJ"):
        read(content)


@pytest.mark.parametrize("name", ["GFLOP/s", "GB/s", "TFLOPS", "GFLOPS/W", "throughput"])
def test_a_rate_is_held_as_its_inverse(read: Any, name: str) -> None:
    content = cachefile(two(3.0), objective=name).replace('"GFLOP/s": 1000.0', f'"{name}": 500.0', 1)
    space = read(content.replace('"GFLOP/s": 1000.0', f'"{name}": 2000.0'))

    assert space.is_rate
    assert (name, f"1/({name})") == (space.objective, space.unit)
    assert [1 / 500, 1 / 2000] == space.costs.tolist()


def test_runs_stand_in_for_a_missing_time(read: Any) -> None:
    content = t4(two(3.0))
    content["results"][0] |= {"measurements": [], "times": {"runtimes": [9.0, 1.0, math.nan, 1.5]}}
    cache = cachefile(two(3.0)).replace('"time": 3.0, "times": [3.0, 3.0, 3.0]', '"times": [9.0, 1.0, 1.5]')

    assert [1500.0, 2000.0] == read(content).costs.tolist()
    assert [1500.0, 2000.0] == read(cache).costs.tolist()


def test_a_repeated_config_counts_with_the_median_of_those_that_work(read: Any) -> None:
    repeats = [({"x": 1}, value) for value in (4.0, "RuntimeFailedConfig", 1.0, 3.0)]
    space = read(t4([*repeats, ({"x": 2}, 2.0)]))

    assert [3000.0, 2000.0] == space.costs.tolist()
    assert (3, {}) == (space.duplicates, space.failures)


def only_axis(space: RecordedSpace) -> Axis:
    (axis,) = space.axes
    return axis


@pytest.mark.parametrize(
    ("values", "axis"),
    [
        ([8, 2, 16], Axis("x", (2, 8, 16), "x")),
        ([8.0, 2, 16], Axis("x", (2, 8, 16), "x")),
        (["8", "2", "16"], Axis("x", (2, 8, 16), "x")),
        ([0.5, 2, 0.25], Axis("x", (0, 1, 2), "x", names=("0.25", "0.5", "2"))),
        ([True, False], Axis("x", (0, 1), "x", ordered=False, names=("false", "true"))),
        (["half2", "float", "8"], Axis("x", (0, 1, 2), "x", ordered=False, names=("8", "float", "half2"))),
        ([1, None, True], Axis("x", (0, 1, 2), "x", ordered=False, names=("1", "none", "true"))),
        ([1, "01"], Axis("x", (0, 1), "x", ordered=False, names=("01", "1"))),
        ([1, 2**60], Axis("x", (0, 1), "x", ordered=False, names=("1", str(2**60)))),
        ([1.0, math.nan], Axis("x", (0, 1), "x", ordered=False, names=("1", "nan"))),
        (["a\x1b[2J", "b"], Axis("x", (0, 1), "x", ordered=False, names=("a\\x1b[2J", "b"))),
    ],
)
def test_any_parameter_value_becomes_an_axis(read: Any, values: list[Any], axis: Axis) -> None:
    rows = [({"x": value}, float(number)) for number, value in enumerate(values, 1)]
    space = read(t4(rows))

    assert axis == only_axis(space)
    assert len(values) == len(space)


def test_a_parameter_that_only_some_configs_have(read: Any) -> None:
    space = read(t4([({"x": 1}, 1.0), ({"x": 2, "y": 5}, 2.0)]))

    assert {("1", "none"): 1000.0, ("2", "5"): 2000.0} == costs_by_config(space)


def test_names_from_a_file_cannot_steer_the_terminal(read: Any) -> None:
    space = read(cachefile(two(1.0), device_name="GPU\x1b[31m\ud800"))

    assert "GPU\\x1b[31m\\ud800" == space.device


def test_an_open_cachefile_may_end_anywhere(read: Any) -> None:
    """Every prefix is either what was complete by then, or refused; nothing is made up and nothing complete is lost."""
    whole = cachefile(ROWS[:5], closed=False)
    first = whole.index('"cache": {') + len('"cache": {')
    held = []
    for end in range(first, len(whole)):
        complete = whole[:end].count("}", first)
        if complete < 2:
            with pytest.raises(UserError):
                read(whole[:end])
        else:
            space = read(whole[:end])
            held.append(len(space))

            assert complete == len(space)
            assert space.cut

    assert {2, 3, 4, 5} == set(held)


def test_a_closed_file_is_not_cut(read: Any) -> None:
    assert not read(cachefile()).cut
    assert not read(t4()).cut


WHOLE_T4, WHOLE_CACHE = json.dumps(t4()), cachefile()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is not JSON: a value is expected at character 0"),
        ("hello", "is not JSON: a value is expected at character 0"),
        ("[]", "is no JSON object"),
        (" 7", "is no JSON object"),
        ("[{}", "is not JSON"),
        ("{}", "is no recorded space"),
        ('{"base": {}, "rows": []}', "is no recorded space"),
        ('{"results": {}}', "is no recorded space"),
        ('{"results": []}', "holds 0 config"),
        ('{"results": [1]}', "entry 1 is not an object"),
        ('{"results": [{}]}', "result 1 has no configuration"),
        ('{"cache": {}}', "without tune_params_keys"),
        ('{"cache": {"1": {"time": 1}}, "tune_params_keys": ["x"]}', "config 1 has none of the parameters x"),
        ('{"cache": {1: {}}}', "is not JSON"),
        ('{"base": {1: 2}}', "is not JSON: expecting property name enclosed in double quotes at character 10"),
        ('{"base": "a', "is not JSON: unterminated string starting at character 9"),
        (WHOLE_T4[:-40], "is not JSON"),
        (WHOLE_T4[: len(WHOLE_T4) // 2], "is not JSON"),
        (WHOLE_T4 + "x", "has something after its end"),
        (WHOLE_CACHE.replace('"block": 64', '"block" 64', 1), "is not JSON"),
        (t4(two("RuntimeFailedConfig", math.nan)), "holds 2 configs and none that works"),
        (t4([({"x": 1}, 1.0)]), "no parameter with two values"),
        (t4([({"x": [1]}, 1.0), ({"x": 2}, 1.0)]), "parameter x: list is no value"),
        (t4([({"x": "y" * 201}, 1.0), ({"x": 2}, 1.0)]), "parameter x: str is no value"),
        (t4([({"x": number}, 1.0) for number in range(1025)]), "parameter x has 1025 values, at most 1024"),
        (t4([({f"x{number}": 1}, 1.0) for number in range(129)]), "has 129 parameters, at most 128"),
        (t4(two(1.0), unit="fortnights"), "unknown unit 'fortnights'"),
        ('{"results": ' + "[" * 100_000, "too deep"),
        ('{"results": [{"configuration": {"x": ' + "9" * 5000 + "}}]}", "too deep or too long"),
    ],
    ids=lambda value: None if isinstance(value, str) and len(value) < 60 else "long",
)
def test_a_broken_file_is_one_clear_line(read: Any, content: object, says: str) -> None:
    with pytest.raises(UserError) as caught:
        read(content)

    assert says in str(caught.value)
    assert "space.json " in str(caught.value)
    assert 1 == len(str(caught.value).splitlines())


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    packed = gzip.compress(json.dumps(t4()).encode())
    for name, data, says in (
        ("cut.json.gz", packed[:-20], "is not a whole gzip file"),
        ("damaged.json.gz", packed[:40] + b"\0\0\0\0" + packed[44:], "is not a whole gzip file"),
        ("latin.json", b'{"results": "\xe9"}', "is not UTF-8"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=says):
            load(tmp_path / name)
    with pytest.raises(UserError, match="does not exist: give T4 results"):
        load(tmp_path / "nothing.json")
    with pytest.raises(UserError, match="is not a file"):
        load(tmp_path)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "MAX_BYTES", 1_000_000)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(b'{"results": [' + b"{}," * 10_000_000))

    with pytest.raises(UserError, match="unpacks to more than 1,000,000 bytes"):
        load(tmp_path / "bomb.gz")


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        ("MAX_ENTRIES", "holds more than 10 configs"),
        ("MAX_CONTAINERS", "holds over 10 lists"),
        ("MAX_VALUES", "10 values"),
    ],
)
def test_too_many_rows_are_refused(read: Any, monkeypatch: pytest.MonkeyPatch, limit: str, says: str) -> None:
    monkeypatch.setattr(document, limit, 10)

    with pytest.raises(UserError, match=says):
        read(cachefile())


SPACE = SearchSpace(
    "toy",
    (
        Axis("TILE", (16, 32, 64), "t"),
        Axis("LAYOUT", (0, 2, 5), "l", ordered=False, names=("none", "padded", "xor")),
        Axis("WARPS", (4,), "w"),
    ),
    (),
    {"TILE": 64, "LAYOUT": 2, "WARPS": 4},
)
USAGE = ResourceUsage(128, 0, 0, 0, 0, 49152)


def timed(us: float) -> Measurement:
    return Measurement((us, us), (2.0, 2.0), 2.0, 20, "warm", "converged")


VERDICTS = [
    ({"TILE": 16, "LAYOUT": 0, "WARPS": 4}, timed(9.0), USAGE),
    ({"TILE": 16, "LAYOUT": 5, "WARPS": 4}, Rejection(Gate.COMPILE, "too many registers"), None),
    ({"TILE": 64, "LAYOUT": 2, "WARPS": 4}, timed(7.0), USAGE),
]
record = partial(
    write_recording,
    name="toy_h200",
    template="toy",
    device="NVIDIA H200",
    problem={"batch": 1},
    command="evoengine search",
    environment={"driver": "580.82"},
)


@pytest.mark.parametrize("name", ["rec.jsonl", "rec.jsonl.gz"])
def test_our_own_recording_comes_back(tmp_path: Path, name: str) -> None:
    path = tmp_path / name

    assert 3 == record(path, SPACE, VERDICTS)

    space = load(path)

    assert {("16", "none"): 9.0, ("16", "xor"): None, ("64", "padded"): 7.0} == costs_by_config(space)
    assert ("toy_h200", "NVIDIA H200", "us") == (space.name, space.device, space.unit)
    assert SPACE.axes[:2] == space.axes
    assert {"TILE": 64, "LAYOUT": 2} == space.default
    assert {"WARPS": "4"} == space.constants
    assert {"compile": 1} == space.failures


def test_a_recording_says_where_its_numbers_come_from(tmp_path: Path) -> None:
    path = tmp_path / "rec.jsonl"
    record(path, SPACE, VERDICTS)
    head, *rows = map(json.loads, path.read_text().splitlines())

    assert {"driver": "580.82"} == head["environment"]
    assert "evoengine search" == head["command"]
    assert ("compile", "too many registers", None) == (rows[1]["gate"], rows[1]["reason"], rows[1]["resources"])
    assert (128, 7.0, 0.0) == (rows[2]["resources"]["registers"], rows[2]["median_us"], rows[2]["noise"])


def test_equal_recordings_are_equal_files(tmp_path: Path) -> None:
    for name in ("a.gz", "b.gz"):
        record(tmp_path / name, SPACE, VERDICTS)

    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


def test_a_recording_that_was_cut_short_keeps_its_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "rec.jsonl"

    def killed() -> Any:
        yield from VERDICTS
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(path, SPACE, killed())

    assert 3 == len(load(path))
    assert not load(path).cut

    path.write_text(path.read_text()[:-30])

    assert 2 == len(load(path))
    assert load(path).cut


def test_a_recording_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rec.jsonl"
    with pytest.raises(UserError, match="TILE=17 is not among its choices"):
        record(path, SPACE, [({"TILE": 17, "LAYOUT": 0, "WARPS": 4}, timed(1.0), None)])
    with pytest.raises(UserError, match="cannot be written"):
        record(tmp_path / "missing" / "rec.jsonl", SPACE, VERDICTS)
    record(path, SPACE, VERDICTS)
    whole = path.read_text()
    for old, new, says in (
        ('"version": 1', '"version": 2', "version 2, this evoengine reads 1"),
        ('"ordered": true', '"ordered": 1', "axis 1 lacks"),
        ('"values": {"TILE": 16', '"values": {"TILE": 17', "config 1 has no choice of axis TILE"),
        ('"default": {"TILE": 64', '"default": {"TILE": 65', "TILE=65 is not among its choices"),
        ('"default": {', '"default": [], "was": {', "default is not a config"),
        ('"values"', '"vaiues"', "config 1 has no values"),
        ('{"values"', '{"values', "is not JSON"),
    ):
        path.write_text(whole.replace(old, new))
        with pytest.raises(UserError, match=says):
            load(path)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """A small valid file of every format."""
    path = tmp_path_factory.mktemp("samples") / "rec.jsonl"
    record(path, SPACE, VERDICTS)
    rows = ROWS[:4]
    texts = [json.dumps(t4(rows)), cachefile(rows), cachefile(rows, closed=False), path.read_text()]
    return [text.encode() for text in texts]


TOKENS = [b"null", b"NaN", b"-Infinity", b"1e999", b"true", b"[]", b"{}", b'""', b"9" * 400, b"\\ud800", b"[" * 3000]
NAMES = [b'"time"', b'"results"', b'"cache"', b'"x": ']
PUNCTUATION = [one.encode() for one in string.punctuation]
PIECES = st.sampled_from([*(bytes([one]) for one in range(256)), *PUNCTUATION, *TOKENS, *NAMES])


@given(data=st.data())
def test_any_damage_is_read_or_refused(data: st.DataObject, samples: list[bytes], tmp_path_factory: Any) -> None:
    damaged = bytearray(data.draw(st.sampled_from(samples)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged)))
        damaged[at : at + data.draw(st.integers(0, 12))] = data.draw(PIECES)
    packed = data.draw(st.booleans())
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_bytes(gzip.compress(damaged, 1) if packed else damaged)

    read_or_refused(path)


@given(data=st.data())
def test_any_damage_to_a_gzip_file_is_read_or_refused(
    data: st.DataObject, samples: list[bytes], tmp_path_factory: Any
) -> None:
    damaged = bytearray(gzip.compress(data.draw(st.sampled_from(samples)), mtime=0))
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    path = tmp_path_factory.getbasetemp() / "damaged.gz"
    path.write_bytes(damaged)

    read_or_refused(path)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["time", "correct", "us", "x", "compile"]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.sampled_from(["x", "y"]), children),
    max_leaves=5,
)


@given(data=st.data())
def test_any_value_in_any_place_is_read_or_refused(
    data: st.DataObject, samples: list[bytes], tmp_path_factory: Any
) -> None:
    """One value of a valid file is replaced by any other JSON value, at any depth."""
    lines = data.draw(st.sampled_from([samples[0], samples[1], samples[3]])).decode()
    documents = [json.loads(lines)] if "results" in lines or "cache" in lines else map(json.loads, lines.splitlines())
    changed = [data.draw(st.just(one)) for one in documents]
    node: Any = changed
    while True:
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        if not (isinstance(node[key], dict | list) and node[key]) or data.draw(st.integers(0, 4)) == 0:
            node[key] = data.draw(JSON)
            break
        node = node[key]
    path = tmp_path_factory.getbasetemp() / "changed.json"
    path.write_text("\n".join(json.dumps(one) for one in changed))

    read_or_refused(path)


def read_or_refused(path: Path) -> None:
    """Either a space that holds together, or a UserError of one line."""
    refusal = ""
    try:
        space = load(path)
    except UserError as error:
        refusal = str(error)
    if refusal:
        assert 1 == len(refusal.splitlines())
    else:
        assert len(space) == len(space.costs) == len(set(space.points)) >= 2
        assert 0 < space.optimum < math.inf
        assert sum(space.failures.values()) == np.isnan(space.costs).sum() < len(space)
        assert space.search_space.product >= len(space)
        assert space.search_space.point(space.default) is not None
        assert str(space.label(0)).isprintable()
