"""What evoengine reads, damaged: every parser either succeeds with values that hold together or refuses in one line.

A target is a strategy for what is read and a function that reads it as the command line would. Valid files are changed
in their bytes, or in one value at any depth; forged checksums are made right again, as a forger would.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import gzip
import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from benchmarks.trust import replayed
from benchmarks.trust.lives import Life, Place
from evoengine.archive.archive import Archive
from evoengine.archive.lease import Owner
from evoengine.cli import entries
from evoengine.cli.replay import forecast_of
from evoengine.cli.resolve import Target, find_target, reopen
from evoengine.errors import TemplateError, UserError
from evoengine.export.header import HeaderFacts, parse_header, render_header
from evoengine.hardware import card
from evoengine.problem import AttentionProblem, parse_shape, problem_fields
from evoengine.recorded.load import load
from evoengine.recorded.replay import replay
from evoengine.summary import summarise

Strategy = st.SearchStrategy[Any]

WORDS = st.sampled_from(["", "attention", "../..", "\x1b[2J", "a\nb", "$(id)", "nan", "time", "9" * 30, "NVIDIA L4"])
NUMBERS = st.integers() | st.integers(-(10**40), 10**40) | st.floats()
SCALARS = st.none() | st.booleans() | NUMBERS | WORDS | st.text(max_size=8)
VALUES: Strategy = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=5
)
CELLS = SCALARS.filter(lambda value: not isinstance(value, int) or abs(value) < 2**63) | st.binary(max_size=8)
"""What a cell of SQLite can hold, whatever its column was declared as."""
TABLES = ("evo_study", "evo_session", "evo_candidate", "evo_build", "evo_verdict", "evo_baseline", "evo_elite")
OPTUNAS = ("trials", "trial_params", "trial_user_attributes", "trial_values")
ARGUMENTS = argparse.Namespace(template=None, space=None, storage="none.db", limits=None, shape=None, shapes=None)
TARGET = Target(card("l4"), card("l4"), None)


@dataclass(frozen=True, slots=True)
class Parser:
    """`read` takes what `inputs` draws; only errors that are the user's may come out of it."""

    inputs: Strategy
    read: Callable[[Any], None]

    def refusal(self, drawn: Any) -> str:
        """What the user is told of it; empty where it was read.

        Raises:
            AssertionError: what is said is more than one line.
        """
        refusal = ""
        try:
            self.read(drawn)
        except UserError as error:
            refusal = str(error)
        assert len(refusal.splitlines()) <= 1, f"not one line: {refusal}"
        return refusal


@dataclass(slots=True)
class Fuzzed:
    """What came of a parser's examples."""

    examples: int = 0
    refused: int = 0


def fuzz(parser: Parser, examples: int, seed_number: int) -> Fuzzed:
    """Read so many examples.

    Raises:
        Exception: the first that is no `UserError`, from the smallest example that has it.
    """
    done = Fuzzed()

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @seed(seed_number)
    @given(parser.inputs)
    def run(drawn: Any) -> None:
        done.examples += 1
        done.refused += bool(parser.refusal(drawn))

    run()
    return done


def changed_bytes(sample: bytes) -> Strategy:
    """`sample` with a few places overwritten."""
    pieces = st.binary(max_size=6) | st.sampled_from([b"[" * 3000, b"9" * 5000, b"NaN", b"\\ud800", b'"', b"\n"])
    edits = st.lists(st.tuples(st.integers(0, len(sample)), st.integers(0, 12), pieces), min_size=1, max_size=4)

    def edit(edits: list[tuple[int, int, bytes]]) -> bytes:
        damaged = bytearray(sample)
        for at, length, piece in edits:
            damaged[at : at + length] = piece
        return bytes(damaged)

    return edits.map(edit)


def changed_values(document: Any) -> Strategy:
    """`document` with the value at one path replaced, dropped or joined by another."""
    return st.tuples(st.sampled_from(_paths(document)), VALUES, st.sampled_from(["put", "put", "drop", "add"])).map(
        lambda drawn: _changed(document, *drawn)
    )


def _paths(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys: Any = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    return [found for key in keys for found in [(*path, key), *_paths(node[key], (*path, key))]]


def _changed(document: Any, path: tuple[Any, ...], value: Any, how: str) -> Any:
    made = node = copy.deepcopy(document)
    for key in path[:-1]:
        node = node[key]
    if how == "drop":
        del node[path[-1]]
    elif how == "add" and isinstance(node, dict):
        node["more"] = value
    else:
        node[path[-1]] = value
    return made


def parsers(folder: Path, url: str) -> dict[str, Parser]:
    """Every target by name; `url` is an SQLite database with evoengine's tables, `folder` is for what is read."""
    lines = [json.loads(line) for line in _recording_lines(8)]
    return {
        "header": Parser(changed_bytes(_header().encode()) | _facts(), lambda data: _read_header(folder, data)),
        "recording": Parser(
            changed_values(lines).map(_as_lines) | changed_bytes(_as_lines(lines)), lambda data: _replay(folder, data)
        ),
        "T4": Parser(changed_values(_t4(lines)).map(_as_json), lambda data: _replay(folder, data)),
        "cachefile": Parser(changed_values(_cachefile(lines)).map(_as_json), lambda data: _replay(folder, data)),
        "shape": Parser(_texts("1,8,512,64,causal,dtype=bf16,kv_heads=2,scale=0.1"), _read_shape),
        "config": Parser(_texts("STAGES=2,BLOCK_N=64") | _texts("wm_4.bn_64"), _read_config),
        "device": Parser(_texts("cuda:0") | st.sampled_from(["cuda:\u00b2", "cuda:" + "9" * 30]), _read_device),
        "database": _database(folder, url),
    }


# *** headers ***


def _header() -> str:
    asked = replayed.question()
    launch = asked.launch(asked.space.default)
    resources = asked.recorded(asked.control.values).resources
    facts = HeaderFacts(
        template="attention",
        template_digest=asked.template.digest,
        space=asked.space.name,
        space_digest=asked.space.digest,
        entry=asked.template.module.ENTRY,
        config=asked.control.label,
        shape=asked.problem.label,
        problem=problem_fields(asked.problem),
        study="fuzzed",
        trial=1,
        device="NVIDIA L4",
        arch="sm_89",
        driver="none",
        compiler="replay",
        cubin_sha256="ab" * 32,
        registers=resources.registers,
        spill_bytes=0,
        method="replay",
        median_us=5.0,
        noise=0.01,
        speedup_over_sdpa=None,
        speedup_over_default=1.0,
        evoengine_version="0",
        date="2026-01-01",
        command="replayed",
        defines=asked.template.module.defines(asked.space.default, asked.problem),
        grid_ctas=launch.grid,
        block_threads=launch.block,
        smem_bytes=launch.smem_bytes,
    )
    return render_header(facts)


def _facts() -> Strategy:
    """Headers that a forger signed: a fact or a macro is another, and the checksum is right."""
    facts = parse_header(_header())
    fields = ("template", "problem", "defines", "study", "config")
    document = {name: copy.deepcopy(getattr(facts, name)) for name in fields}
    return changed_values(document).map(lambda changes: _signed(facts, changes))


def _signed(facts: HeaderFacts, changes: dict[str, Any]) -> bytes:
    try:
        return render_header(dataclasses.replace(facts, **changes)).encode()
    except (TemplateError, TypeError, ValueError, AttributeError):  # nothing that a header could say
        return b""


def _read_header(folder: Path, data: bytes) -> None:
    path = folder / "fuzzed.h"
    path.write_bytes(data)
    for entry in entries._on_shapes(entries._find(str(path), ARGUMENTS, TARGET), [], TARGET):
        entry.question.space.point(entry.config.values)


# *** recorded spaces ***


def _recording_lines(count: int) -> list[str]:
    with gzip.open(replayed.RECORDING, "rt", encoding="utf-8") as file:
        return [next(file) for _ in range(count + 1)]


def _as_lines(lines: Any) -> bytes:
    return b"\n".join(map(_as_json, lines if isinstance(lines, list) else [lines]))


def _as_json(document: Any) -> bytes:
    return json.dumps(document).encode()


def _t4(lines: list[dict[str, Any]]) -> dict[str, Any]:
    results = [
        {
            "configuration": row["values"],
            "times": {"runtimes": [row["median_us"]]},
            "invalidity": "correct",
            "correctness": 1,
            "measurements": [{"name": "time", "value": row["median_us"], "unit": "us"}],
            "objectives": ["time"],
        }
        for row in lines[1:]
    ]
    return {"metadata": {"timeunit": "us"}, "results": results, "schema_version": "1.0.0"}


def _cachefile(lines: list[dict[str, Any]]) -> dict[str, Any]:
    rows = [{**row["values"], "time": row["median_us"]} for row in lines[1:]]
    names = list(lines[1]["values"])
    head = {"device_name": "any", "kernel_name": "any", "objective": "time", "tune_params_keys": names}
    return {**head, "cache": {",".join(map(str, row.values())): row for row in rows}}


def _replay(folder: Path, data: bytes) -> None:
    path = folder / "fuzzed.json"
    path.write_bytes(data)
    space = load(path)
    forecast = forecast_of(space)
    if forecast is not None:
        forecast.source(0)
    trace = replay(space, sampler="evolution", seed=0, budget=2)
    assert all(space.points[row] in space.row_of for row in trace.rows)


# *** the command line ***


def _texts(sample: str) -> Strategy:
    """Text as an argument of a process can hold it, and `sample` with places changed."""
    argument = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=400)
    return argument | changed_bytes(sample.encode()).map(lambda data: data.decode(errors="replace").replace("\0", ""))


def _read_shape(text: str) -> None:
    problem = parse_shape(AttentionProblem, text)
    assert problem.flops >= 0
    assert problem.label.isprintable()


def _read_config(text: str) -> None:
    found = entries._find(text or "=", ARGUMENTS, TARGET)
    assert found.values is not None
    found.space.point(found.values)


def _read_device(text: str) -> None:
    find_target(text, "l4", None)


# *** databases ***


def _database(folder: Path, url: str) -> Parser:
    """A finished study of which one cell holds something else."""
    Life(Place(url, "fuzzed", folder), 1).end()
    sound, path = Path(url.removeprefix("sqlite:///")), folder / "fuzzed.db"
    with closing(sqlite3.connect(sound)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        cells = [
            (table, column, rowid, value)
            for table in (*TABLES, *OPTUNAS)
            for (rowid,) in connection.execute(f"SELECT rowid FROM {table} LIMIT 6").fetchall()
            for column, value in _row(connection, table, rowid)
        ]

    def change(cell: tuple[str, str, int, Any]) -> Strategy:
        *where, value = cell
        return st.tuples(st.just(where), _cell(value))

    def read(drawn: tuple[tuple[str, str, int], Any]) -> None:
        (table, column, rowid), value = drawn
        shutil.copyfile(sound, path)
        with closing(sqlite3.connect(path)) as connection, connection:
            try:
                connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (value, rowid))
            except (sqlite3.IntegrityError, UnicodeEncodeError):  # no database holds that
                return
        _read_study(path)

    return Parser(st.sampled_from(cells).flatmap(change), read)


def _row(connection: sqlite3.Connection, table: str, rowid: int) -> list[tuple[str, Any]]:
    cursor = connection.execute(f"SELECT * FROM {table} WHERE rowid = ?", (rowid,))
    return list(zip((column[0] for column in cursor.description), cursor.fetchone(), strict=True))


def _cell(value: Any) -> Strategy:
    """Any value; in place of a document also the document with one value changed."""
    try:
        document = json.loads(value) if isinstance(value, str) else None
    except ValueError:
        document = None
    return CELLS | changed_values(document).map(json.dumps) if _paths(document) else CELLS


def _read_study(path: Path) -> None:
    """As `studies`, `show` and `resume` read it."""
    with closing(Archive.open(str(path))) as archive:
        archive.studies()
        study = archive.open_study(None)
        question = reopen(study.spec, stale=True)
        summarise(study, study.records(), {}, question.limits, 8)
        study.acquire(Owner.current())
        study.recover()
        for record in study.records():
            study.spec.frozen_space.point(record.config.values)
            record.seen(measures=True)
        study.release()
