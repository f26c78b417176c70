"""Wisdom: what is kept, what is merged, and what a lookup says where there is nothing for a problem."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from command_line import empty_database
from measured_study import BEST, PROBLEM, SPACE, TEMPLATE, make_chosen, measurement, spec_of, write_guessed, write_study

from evoengine.archive.archive import Archive
from evoengine.cli import main, sources
from evoengine.errors import UserError
from evoengine.export.gather import wisdom_of
from evoengine.export.wisdom import Advice, Wisdom, lookup, merge, parse_wisdom, render_wisdom
from evoengine.problem import AttentionProblem, problem_fields

LONG = AttentionProblem(seq_q=1024)
LONGER = AttentionProblem(seq_q=4096)
DECODE = AttentionProblem(seq_q=16, seq_k=8192)
WIDE = AttentionProblem(head_dim=128)
VALIDATORS = {"template_digest": TEMPLATE.digest, "compiler": "NVRTC 13.0.88"}
KNOWN = wisdom_of(
    [
        make_chosen(PROBLEM, STAGES=1),
        make_chosen(LONGER, STAGES=3),
        make_chosen(DECODE, SPLIT_KV=8),
        make_chosen(LONG, "h200", us=2.0, WARPS_M=2),
        make_chosen(WIDE, "h200", WARPS_M=1),
    ]
)


def ask(problem: AttentionProblem, device: str = "NVIDIA L4", wisdom: Wisdom = KNOWN, **validators: str) -> Advice:
    macros = make_chosen(problem).problem_macros
    return lookup(wisdom, problem_fields(problem), macros, device, {**VALIDATORS, **validators}, SPACE.default)


def test_it_reads_back_as_it_was_written() -> None:
    read = parse_wisdom(render_wisdom(KNOWN))

    assert {row.key: row for row in KNOWN.rows} == {row.key: row for row in read.rows}
    assert dataclasses.replace(KNOWN, rows=()) == dataclasses.replace(read, rows=())
    assert render_wisdom(KNOWN) == render_wisdom(read)


def test_it_is_kernel_launchers_form() -> None:
    """What its reader (src/wisdom.cpp) asks of a file: these members, of these types, a value for every parameter."""
    head, *rows = map(json.loads, render_wisdom(KNOWN).splitlines())

    assert ("1.0", "evo_attention", "time") == (head["version"], head["key"], head["objective"])
    assert [axis.name for axis in SPACE] == head["tunable_parameters"]
    for row in rows:
        assert all(type(size) is int for size in row["problem_size"])
        assert isinstance(row["environment"]["device_name"], str)
        assert len(head["tunable_parameters"]) == len(row["config"])
        assert isinstance(row["time"], float)
    assert [0.002, 0.005] == sorted({row["time"] for row in rows})  # milliseconds


@pytest.mark.parametrize(
    ("problem", "device", "step", "values", "words"),
    [
        (PROBLEM, "NVIDIA L4", "exact", {"STAGES": 1}, None),
        (AttentionProblem(seq_q=600), "NVIDIA L4", "nearest size", {"STAGES": 1}, "B1_H8_S512_D64_fp16"),
        (AttentionProblem(seq_q=3000), "NVIDIA L4", "nearest size", {"STAGES": 3}, "B1_H8_S4096_D64_fp16"),
        (AttentionProblem(seq_q=16, seq_k=4096), "NVIDIA L4", "nearest size", {"SPLIT_KV": 8}, "S16_K8192"),
        (AttentionProblem(scale=0.5), "NVIDIA L4", "exact", {"STAGES": 1}, None),
        (WIDE, "NVIDIA L4", "other device", {"WARPS_M": 1}, "on NVIDIA H200"),
        (AttentionProblem(seq_q=512), "NVIDIA A10G", "other device", {"STAGES": 1}, "on NVIDIA L4"),
        (AttentionProblem(causal=True), "NVIDIA L4", "default", {}, "using the default config"),
        (AttentionProblem(dtype="bf16"), "NVIDIA H200", "default", {}, "using the default config"),
    ],
)
def test_the_nearest_is_found_and_every_step_away_is_a_warning(
    problem: AttentionProblem, device: str, step: str, values: dict[str, int], words: str | None
) -> None:
    advice = ask(problem, device)

    assert step == advice.step
    assert {**SPACE.default, **values} == advice.values
    assert (words is None) == (advice.warnings == ())
    assert words is None or words in advice.warnings[0]


def test_rows_of_other_sources_are_void_and_those_of_another_compiler_stale() -> None:
    moved = ask(PROBLEM, template_digest="f" * 16)
    older = ask(PROBLEM, compiler="NVRTC 13.1.0")

    assert ("default", None) == (moved.step, moved.row)
    assert "5 of 5 rows are stale" in moved.warnings[0]
    assert ("exact", 1) == (older.step, older.values["STAGES"])
    assert "measured with NVRTC 13.0.88, here is NVRTC 13.1.0" in older.warnings[0]


def test_an_axis_that_the_file_does_not_know_has_its_default() -> None:
    place = KNOWN.parameters.index("SPLIT_KV")

    def without(row: tuple[Any, ...]) -> tuple[Any, ...]:
        return row[:place] + row[place + 1 :]

    rows = tuple(dataclasses.replace(row, config=without(row.config)) for row in KNOWN.rows)
    old = dataclasses.replace(KNOWN, parameters=without(KNOWN.parameters), default=without(KNOWN.default), rows=rows)
    advice = ask(DECODE, wisdom=old)

    assert SPACE.default == advice.values
    assert ("the wisdom does not know SPLIT_KV: SPLIT_KV=1, its default",) == advice.warnings


@pytest.mark.parametrize(
    ("new", "stages"),
    [
        (make_chosen(us=4.0, STAGES=3), 3),
        (make_chosen(us=6.0, STAGES=3), 1),
        (make_chosen(us=6.0, STAGES=3, digest="f" * 16), 3),
        (make_chosen(us=6.0, STAGES=3, compiler="NVRTC 13.1.0"), 3),
    ],
    ids=["faster", "slower", "slower, of newer sources", "slower, of a newer compiler"],
)
def test_a_merge_keeps_other_rows_and_the_better_of_two(new: Any, stages: int) -> None:
    merged = merge(KNOWN, wisdom_of([new]))
    configs = {row.key: dict(zip(merged.parameters, row.config, strict=True)) for row in merged.rows}

    assert {row.key for row in KNOWN.rows} == configs.keys()
    assert stages == configs[wisdom_of([new]).rows[0].key]["STAGES"]


def test_wisdom_of_another_kernel_is_not_merged() -> None:
    with pytest.raises(UserError, match=r"holds wisdom of other .* --force to begin anew"):
        merge(dataclasses.replace(KNOWN, key="other"), KNOWN)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"version": "1.0"', '"version": "2.0"', "version '2.0'"),
        ('"key"', '"name"', "its first line has no version, key"),
        ('"time": 0.005', '"time": -1.0', r"line \d .*time -1.0 is none"),
        ('"config": [4,', '"config": [true,', r"line \d .*19 whole numbers"),
        ('"config": [4,', '"config": [', r"line \d .*19 whole numbers"),
        ('"macros"', '"macro"', r"line \d .*macros"),
        ('"shape"', '"form"', r"line \d .*no shape"),
        ("}}\n", "}\n", r"line 2 "),
    ],
)
def test_damage_is_one_line_with_its_place(old: str, new: str, says: str) -> None:
    text = render_wisdom(KNOWN)
    assert old in text

    with pytest.raises(UserError, match=says):
        parse_wisdom(text.replace(old, new, 1))


@pytest.mark.parametrize("text", ["", "[]", "{}", "#pragma once", "[" * 100_000])
def test_what_is_no_wisdom_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no wisdom file"):
        parse_wisdom(text)


def test_an_estimate_is_no_wisdom() -> None:
    with pytest.raises(UserError, match="was never measured"):
        wisdom_of([make_chosen(us=None)])


def test_the_command_line_collects_studies_and_keeps_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "check_trial", lambda *_: None)  # the studies' cubins are made up
    database, path = empty_database(tmp_path / "studies.db"), tmp_path / "attention.wisdom"
    archive = Archive.open(str(database))
    write_study(archive, spec_of())
    write_study(archive, spec_of(LONG, name="long"), [({"STAGES": 1}, measurement(7.0))], final=False)
    write_guessed(archive, WIDE)
    archive.close()

    def export(*options: str) -> int:
        return main(["export", *options, "--format", "wisdom", "--storage", str(database), "-o", str(path)])

    assert 0 == export("measured")
    assert 0 == export("long", "--json")
    assert 2 == export("guessed")
    wisdom = parse_wisdom(path.read_text())

    assert "was never measured" in capsys.readouterr().err
    assert {PROBLEM.label, LONG.label} == {row.provenance["shape"] for row in wisdom.rows}
    assert {**SPACE.default, **BEST} == ask(PROBLEM, wisdom=wisdom).values
    assert pytest.approx(1.01 * 4e-3) == ask(PROBLEM, wisdom=wisdom).row.time  # type: ignore[union-attr]
    path.write_text("mine")
    assert 2 == export("measured")
    assert f"{path} is no wisdom file" in capsys.readouterr().err
    assert "mine" == path.read_text()
    monkeypatch.setattr("evoengine.cli.export.MAX_BYTES", 3)
    assert 2 == export("measured")
    assert f"{path} has more than 3 bytes: give another --output" in capsys.readouterr().err
    assert 0 == export("measured", "--force")
    assert 1 == len(parse_wisdom(path.read_text()).rows)
