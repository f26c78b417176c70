"""What comes from elsewhere is data: it is read or refused in one line, and no code runs because a file names it."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import command_line
import pytest
import test_export

from benchmarks.trust import fuzz
from evoengine.archive.archive import Archive
from evoengine.build import Builder, BuildRequest
from evoengine.cli import entries, main
from evoengine.cli.replay import forecast_of
from evoengine.cli.trusted import is_trusted, trust
from evoengine.errors import UserError
from evoengine.export.header import MAX_BYTES, render_header
from evoengine.problem import AttentionProblem, make_problem
from evoengine.recorded.load import load
from evoengine.template import load_template, shipped
from evoengine.verdict import Artifact, Check

ROOM = 'it\'s a $HOME & "room" with\na line'


@pytest.fixture(scope="module")
def parsers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, fuzz.Parser]:
    folder = tmp_path_factory.mktemp("fuzz")
    url = f"sqlite:///{folder / 'sound.db'}"
    Archive.open(url).close()
    return fuzz.parsers(folder, url)


@pytest.mark.parametrize(
    ("name", "examples"),
    [
        ("header", 100),
        ("recording", 60),
        ("T4", 30),
        ("cachefile", 30),
        ("shape", 200),
        ("config", 60),
        ("device", 60),
        ("database", 25),
    ],
)
def test_any_damage_is_read_or_refused_in_one_line(
    parsers: dict[str, fuzz.Parser], name: str, examples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`benchmarks/trust/database.py` reads a thousand times as many."""
    monkeypatch.setattr("evoengine.archive.database.PATIENCE_SECONDS", 0.2)
    done = fuzz.fuzz(parsers[name], examples, 1)

    assert examples <= done.examples
    assert done.refused > 0


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which evoengine has not been used yet."""
    monkeypatch.setenv("EVOENGINE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def trap(home: Path) -> Path:
    """A template whose code leaves a trace when it runs."""
    folder = command_line.make_template(home / "trap")
    for name in ("template.py", "space.py"):
        path = folder / name
        path.write_text(f"{path.read_text()}\n__import__('pathlib').Path({str(home / 'ran')!r}).touch()\n")
    return folder


@pytest.fixture
def study(home: Path, trap: Path) -> str:
    """A database from another machine with a study of the trap."""
    options = ["--template", str(trap), "--shape", "1000", "--device", "none", "--budget", "1", "--jobs", "1"]
    assert main(["search", *options, "--study", "theirs", "-q"]) == 0
    (home / "home" / "trusted").unlink()
    (home / "ran").unlink()
    return "theirs"


class TestNoCodeRunsBecauseAFileNamesIt:
    @pytest.mark.parametrize(
        "verb", [["resume"], ["show"], ["export", "-o", "best.h"], ["export", "--force", "-o", "b.h"]]
    )
    def test_a_database_does_not(self, study: str, trap: Path, home: Path, verb: list[str], capsys: Any) -> None:
        assert main([*verb, study]) == 2
        [line] = capsys.readouterr().err.splitlines()

        assert line.endswith("if you trust it, name it yourself with --template DIR")
        assert str(trap) in line
        assert not (home / "ran").exists()

    def test_named_by_the_user_it_does_and_is_known_from_then_on(self, study: str, trap: Path, home: Path) -> None:
        assert main(["show", study, "--template", str(trap)]) == 0
        (home / "ran").unlink()
        assert main(["resume", study, "--device", "none", "-q"]) == 0
        assert (home / "ran").exists()

    def test_a_header_does_not(self, trap: Path, home: Path) -> None:
        for name in (str(trap), "trap", "../trap", f"{shipped('kernel_templates')}/../trap"):
            header = render_header(dataclasses.replace(test_export.FACTS, template=name))
            (home / "best.h").write_text(header)
            with pytest.raises(UserError, match="which is not shipped: say where it is with --template DIR"):
                entries._find("best.h", fuzz.ARGUMENTS, fuzz.TARGET)
        assert not (home / "ran").exists()

    @pytest.mark.parametrize("name", ["{trap}", "../../{trap}", "attention/../../{trap}", "..", "."])
    def test_a_recording_does_not(self, trap: Path, home: Path, name: str) -> None:
        head, *rows = (json.loads(line) for line in fuzz._recording_lines(8))
        head["template"] = name.format(trap=trap)[:80]
        (home / "recorded.json").write_bytes(fuzz._as_lines([head, *rows]))

        assert forecast_of(load(home / "recorded.json")) is None
        assert not (home / "ran").exists()

    def test_what_is_shipped_needs_no_word(self, home: Path) -> None:
        assert is_trusted(shipped("kernel_templates") / "attention")
        assert is_trusted(shipped("search_spaces") / "attention.py")
        assert not is_trusted(shipped("kernel_templates"))
        assert not is_trusted(shipped("kernel_templates") / ".." / "trap")

    def test_a_folder_is_trusted_with_what_is_in_it_and_a_damaged_list_trusts_nothing(
        self, home: Path, trap: Path
    ) -> None:
        trust(trap)
        trust(trap)
        assert is_trusted(trap / "space.py")
        assert not is_trusted(trap.parent)
        assert 1 == len((home / "home" / "trusted").read_text().splitlines())
        for damaged in (b"\xff\xfe", b'"' + str(trap).encode(), b"[]\n7\n", b"[" * 5000):
            (home / "home" / "trusted").write_bytes(damaged)
            assert not is_trusted(trap)


class TestCommandLine:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["space", "--device", "cuda:\u00b2"], "give auto, cuda, cuda:N or none"),
            (["space", "--device", "cuda:" + "9" * 30], "give auto, cuda, cuda:N or none"),
            (["space", "--template", "x" * 300], "neither a folder nor a shipped template"),
            (["space", "--shape", "1\n2"], "unknown field"),
            (["compare", "x" * 300], "no study database at"),
            (["studies", "--storage", "x" * 300], "no study database at"),
            (
                ["search", "--device", "none", "--storage", "sqlite:///file:there.db?uri=true&timeout=soon"],
                "cannot be opened",
            ),
            (["show", "a\nb", "--storage", "there.db"], "holds no study yet"),
            (["compare", "huge.h"], "more than 262,144 bytes"),
            (["compare", "--shapes", "huge.h"], "more than 1,048,576 bytes"),
        ],
    )
    def test_a_strange_value_gets_one_line(self, home: Path, arguments: list[str], says: str, capsys: Any) -> None:
        with (home / "huge.h").open("wb") as file:
            file.truncate(1 << 31)  # sparse: takes no room
        Archive.open("there.db").close()
        assert main(arguments) == 2
        [line] = capsys.readouterr().err.splitlines()

        assert says in line
        assert line.isprintable()
        assert MAX_BYTES == 1 << 18

    @pytest.mark.parametrize(
        ("fields", "says"),
        [
            ({"batch": "8"}, "batch='8', which is not a int"),
            ({"batch": True}, "batch=True, which is not a int"),
            ({"seq_q": 512.5}, "seq_q=512.5, which is not a int"),
            ({"causal": 1}, "causal=1, which is not a bool"),
            ({"scale": "nan"}, "scale='nan', which is not a float"),
            ({"scale": float("nan")}, "must be positive and finite"),
            ({"__class__": 1}, "unknown field '__class__'"),
        ],
    )
    def test_a_problem_is_made_of_its_fields_alone(self, fields: dict[str, object], says: str) -> None:
        with pytest.raises(UserError, match=says):
            make_problem(AttentionProblem, fields)
        assert AttentionProblem(batch=2, scale=1) == make_problem(AttentionProblem, {"batch": 2, "scale": 1})


class TestFoldersWithStrangeNames:
    def test_a_build_lives_in_any_of_them(self, tmp_path: Path) -> None:
        """The cache, the template and, through them, ninja and the compiler."""
        folder = command_line.make_template(tmp_path / ROOM / "template")
        template = load_template(folder)
        problem = template.module.PROBLEM()
        defines = template.module.defines({"THREADS": 64, "ITEMS": 2, "IGNORED": 0}, problem)
        with Builder(template, "sm_89", jobs=1, home=tmp_path / ROOM / "cache") as builder:
            (built,) = builder.build([BuildRequest(defines, 0)])

        assert isinstance(built, Artifact)
        assert built.cubin.is_file()
        assert [tmp_path / ROOM] == list(tmp_path.iterdir())


CELLS = [
    ("evo_study", "spec", "{}", "StudySpec lacks"),
    ("evo_study", "spec", "[" * 100_000, "is not JSON"),
    ("evo_study", "spec", "nothing", "is not JSON"),
    ("evo_study", "name", "other", "says that it is"),
    ("evo_verdict", "windows_us", "[]", "windows beside"),
    ("evo_verdict", "windows_us", '["1", 2, 3]', "'1' is not float"),
    ("evo_verdict", "windows_us", '[{"float": "nan"}, 2, 3]', "is no time"),
    ("evo_verdict", "kind", "estimate", "is not float"),
    ("evo_verdict", "mode", "hot", "'hot' is not"),
    ("evo_verdict", "checks", '[{"seed": 1}]', "Check lacks"),
    ("evo_candidate", "config_digest", "0" * 16, "its candidate"),
    ("evo_build", "registers", "many", "'many' is not int"),
    ("evo_session", "pid", "../1", "'../1' is not int"),
    ("evo_elite", "control_ratio", 0.0, "is no time"),
]


@pytest.fixture(scope="module")
def sound(parsers: dict[str, fuzz.Parser], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database that the fuzzer damages, as it is without damage."""
    return next(tmp_path_factory.getbasetemp().glob("fuzz*/sound.db"))


class TestDatabase:
    @pytest.mark.parametrize(("table", "column", "value", "says"), CELLS, ids=lambda one: str(one)[:20])
    def test_a_crafted_cell_is_named(
        self, sound: Path, tmp_path: Path, table: str, column: str, value: Any, says: str
    ) -> None:
        path = tmp_path / "crafted.db"
        path.write_bytes(sound.read_bytes())
        with closing(sqlite3.connect(path)) as connection, connection:
            if table == "evo_session":
                connection.execute("UPDATE evo_session SET ended_at = NULL")
            only = {"evo_verdict": " WHERE kind = 'measurement'", "trial_user_attributes": " WHERE key = 'evoengine'"}
            where = only.get(table, "")
            connection.execute(
                f"UPDATE {table} SET {column} = ? WHERE rowid = (SELECT max(rowid) FROM {table}{where})", (value,)
            )

        with pytest.raises(UserError, match=says) as error:
            fuzz._read_study(path)
        assert f"database {path} is damaged" in str(error.value)

    def test_a_document_that_knows_less_or_a_check_that_knows_more_is_read(self, sound: Path, tmp_path: Path) -> None:
        path = tmp_path / "older.db"
        path.write_bytes(sound.read_bytes())
        check = {field.name: 0 for field in dataclasses.fields(Check)}
        check |= {"input_set": "ragged", "shape": "s", "reason": "", "inputs_changed": False, "of_tomorrow": [1]}
        del check["input_sha256"]  # newer than the first studies
        with closing(sqlite3.connect(path)) as connection, connection:
            spec = json.loads(connection.execute("SELECT spec FROM evo_study").fetchone()[0])
            del spec["sources"]
            connection.execute("UPDATE evo_study SET spec = ?", (json.dumps(spec),))
            connection.execute("UPDATE evo_verdict SET checks = ?", (json.dumps([check]),))
        fuzz._read_study(path)

    def test_a_database_of_schema_1_is_migrated(self, sound: Path, tmp_path: Path) -> None:
        path = tmp_path / "old.db"
        path.write_bytes(sound.read_bytes())
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("DROP INDEX ix_evo_candidate_revision")
            for table, column in (
                ("candidate", "proposal"),
                ("candidate", "revision"),
                ("session", "finals"),
                ("study", "reference_us"),
            ):
                connection.execute(f"ALTER TABLE evo_{table} DROP COLUMN {column}")
            connection.execute("DROP TABLE evo_blob")
            connection.execute("UPDATE evo_schema SET version = 1")
            trials = connection.execute("SELECT count(*) FROM evo_candidate").fetchone()
        with closing(Archive.open(str(path))) as archive:
            study = archive.open_study(None)
            assert [one.number for one in study.records()] == [one.number for one in study.news()]
            assert trials == (len(study.records()),)
        fuzz._read_study(path)
        with closing(sqlite3.connect(path)) as connection:
            assert (4,) == connection.execute("SELECT version FROM evo_schema").fetchone()
            assert (0,) == connection.execute("SELECT count(*) FROM evo_blob").fetchone()
            assert [None] == [*{row[0] for row in connection.execute("SELECT finals FROM evo_session")}]
            assert trials == connection.execute("SELECT count(*) FROM evo_candidate WHERE proposal IS NULL").fetchone()

    def test_a_schema_that_never_was_is_refused(self, sound: Path, tmp_path: Path) -> None:
        path = tmp_path / "never.db"
        path.write_bytes(sound.read_bytes())
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE evo_schema SET version = 0")

        with pytest.raises(UserError, match="schema 0, which no evoengine has written: give another database"):
            Archive.open(str(path))
