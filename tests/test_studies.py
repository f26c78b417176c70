"""The verbs below `evoengine studies`: what they print, ask, refuse and leave behind."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from command_line import empty_database
from measured_study import BEST, GUESSES, TEMPLATE, spec_of, verdicts, write_guessed, write_study

from evoengine.archive.archive import Archive
from evoengine.archive.lease import Owner
from evoengine.build import Builder
from evoengine.build.cache import CacheLock, entry_folder
from evoengine.cli import main
from evoengine.progress import End
from evoengine.verdict import Estimate, Verdict

NAME = "measured"


@dataclass(frozen=True, slots=True)
class Shell:
    """Commands in a folder whose database holds a measured study and, under another name, a guessed one."""

    capsys: pytest.CaptureFixture[str]

    def say(self, *arguments: str) -> str:
        assert 0 == main(arguments)
        return self.capsys.readouterr().out

    def json(self, *arguments: str) -> Any:
        return json.loads(self.say(*arguments, "--json"))

    def names(self, *storage: str) -> set[str]:
        return {row["study"] for row in self.json("studies", *storage)}

    def refused(self, *arguments: str) -> str:
        """The one line on standard error."""
        assert 2 == main(arguments)
        out, err = self.capsys.readouterr()
        assert "" == out
        assert 1 == err.count("\n")
        return err


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = empty_database(tmp_path_factory.mktemp("written") / "evoengine.db")
    with closing(Archive.open(str(path))) as archive:
        write_study(archive, spec_of(name=NAME))
        write_guessed(archive)
    return path


@pytest.fixture
def shell(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    (tmp_path / "studies").mkdir()
    shutil.copyfile(written, tmp_path / "studies" / "evoengine.db")
    return Shell(capsys)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class TestStudies:
    def test_rename(self, shell: Shell) -> None:
        before = shell.json("show", NAME)

        assert {"study": "new", "renamed_from": NAME} == shell.json("studies", "rename", NAME, "new")
        assert {**before, "study": "new"} == shell.json("show", "new")
        assert "study new is now old\n" == shell.say("studies", "rename", "new", "old")
        assert "study guessed exists" in shell.refused("studies", "rename", "old", "guessed")
        assert "unknown study 'odl': did you mean old?" in shell.refused("studies", "rename", "odl", "any")

    @pytest.mark.parametrize(
        ("answer", "left"), [("y\n", {"guessed"}), ("\n", {NAME, "guessed"}), ("", {NAME, "guessed"})]
    )
    def test_delete_asks(self, shell: Shell, monkeypatch: pytest.MonkeyPatch, answer: str, left: set[str]) -> None:
        monkeypatch.setattr("sys.stdin", Terminal(answer))
        said = shell.json("studies", "delete", NAME)

        assert {"study": NAME, "deleted": NAME not in left} == said
        assert left == shell.names()

    def test_a_long_status_is_cut_to_what_happened(self, shell: Shell) -> None:
        with closing(Archive.open("studies/evoengine.db")) as archive:
            archive.open_study(NAME).set_status("no GPU answers: see `evoengine doctor`")
            archive.open_study("guessed").set_status("the default config was refused " * 3)

        said = " ".join(shell.say("studies").split())

        assert "no GPU answers" in said
        assert "doctor" not in said
        assert 1 == said.count("the default")

    def test_a_study_resumed_with_nothing_to_do_is_still_spent(self, shell: Shell) -> None:
        with closing(Archive.open("studies/evoengine.db")) as archive:
            archive.open_study(NAME).set_status(End.SPENT_BEFORE)

        said = shell.say("studies")

        assert "budget spent" in said
        assert "nothing to do" not in said

    def test_what_compare_knows_neither_as_a_study_nor_as_a_label(self, shell: Shell) -> None:
        assert "'wm_3' is neither a study nor a config's label: see `evoengine studies`" in shell.refused(
            "compare", "wm_3"
        )
        assert "'mesured' is neither a study nor a config's label: did you mean measured?" in shell.refused(
            "compare", "mesured"
        )

    def test_delete_without_a_terminal_needs_yes(self, shell: Shell) -> None:
        line = shell.refused("studies", "delete", NAME)

        assert f"study {NAME} ({len(verdicts())} trials, 3 elites) would be lost" in line
        assert "give --yes" in line
        assert {NAME, "guessed"} == shell.names()
        assert f"study {NAME} ({len(verdicts())} trials, 3 elites) is deleted\n" == shell.say(
            "studies", "delete", NAME, "--yes"
        )
        assert {"guessed"} == shell.names()

    def test_a_copy_shows_what_the_study_shows(self, shell: Shell) -> None:
        before = shell.json("show", NAME, "--top", "99")
        done = shell.json("studies", "copy", NAME, "--to-storage", "sub/copy.db")
        shell.say("studies", "copy", NAME, "--as", "twice")

        assert {"study": NAME, "copied_from": NAME, "storage": "sub/copy.db"} == done
        assert before == shell.json("show", "--storage", "sub/copy.db", "--top", "99")
        assert {**before, "study": "twice"} == shell.json("show", "twice", "--top", "99")
        assert "give another with --as NAME" in shell.refused("studies", "copy", NAME)

    @pytest.mark.parametrize(
        ("storage", "file"),
        [
            ("~/x.db", "home/x.db"),
            ("a?b.db", "a?b.db"),
            ("a%41.db", "a%41.db"),
            ("a{b}.db", "a{b}.db"),
            ("sqlite:///a.db?timeout=9", "a.db"),
        ],
    )
    def test_a_database_is_the_file_that_is_named(
        self, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str, file: str
    ) -> None:
        (tmp_path / "home").mkdir()
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        shell.say("studies", "copy", NAME, "--to-storage", storage)

        assert {NAME} == shell.names("--storage", storage)
        assert shell.json("show", NAME) == shell.json("show", NAME, "--storage", storage)
        assert [tmp_path / file] == [one for one in tmp_path.rglob("*.db") if one.parent.name != "studies"]
        assert NAME == shell.json("studies", "merge", f"{storage}#{NAME}", "--storage", "merged.db")["study"]

    @pytest.mark.parametrize("storage", ["nosuch.db", "sqlite+pysqlite:///nosuch.db", "sqlite:///nosuch.db?timeout=9"])
    def test_reading_makes_no_database(self, shell: Shell, tmp_path: Path, storage: str) -> None:
        for verb in (("show",), ("studies",), ("studies", "delete", NAME)):
            assert "no study database at nosuch.db" in shell.refused(*verb, "--storage", storage)
        assert "no study database at nosuch.db" in shell.refused("studies", "merge", f"{storage}#{NAME}")
        assert [tmp_path / "studies"] == list(tmp_path.iterdir())

    def test_a_database_without_a_name_is_refused(self, shell: Shell, tmp_path: Path) -> None:
        for verb in (("show",), ("search", "--device", "none"), ("studies", "merge", "studies/evoengine.db")):
            assert "the study database has no name" in shell.refused(*verb, "--storage", "")
        assert [tmp_path / "studies"] == list(tmp_path.iterdir())

    def test_merge_into_a_database_of_its_own(self, shell: Shell) -> None:
        """A laptop's file, first as the GPU machine's first study, then into a study that is there."""
        told = shell.json("studies", "merge", "studies/evoengine.db#guessed", "--storage", "gpu.db")
        again = shell.json("studies", "merge", "studies/evoengine.db#guessed", "--storage", "gpu.db")

        assert ("guessed", True) == (told["study"], told["new_study"])
        assert (False, 0, 0, len(GUESSES)) == tuple(
            again[key] for key in ("new_study", "estimated", "rejected", "known")
        )
        assert shell.json("show", "guessed") == shell.json("show", "--storage", "gpu.db")
        assert shell.say("studies", "merge", "studies/evoengine.db#guessed", "--storage", "gpu.db").endswith(
            "; go on with: evoengine resume guessed --storage gpu.db\n"
        )

    def test_merge_into_a_measured_study(self, shell: Shell) -> None:
        judged: list[tuple[dict[str, int], Verdict]] = [(dict(STAGES=3), Estimate(7.0)), (BEST, Estimate(3.0))]
        with closing(Archive.open("laptop.db")) as laptop:
            write_study(laptop, replace(spec_of(name="laptop"), measures=False), judged, final=False)
        before = shell.json("show", NAME, "--top", "99")
        words = shell.say("studies", "merge", "laptop.db", "--into", NAME)
        after = shell.json("show", NAME, "--top", "99")

        counted = "1 estimated and 0 rejected configs, 1 known already"
        assert f"study {NAME} takes from laptop of laptop.db: {counted}; go on with: evoengine resume {NAME}\n" == words
        assert before["measured"] == after["measured"]
        assert before["elites"] == after["elites"]
        assert {**before["verdicts"], "estimated": 1} == after["verdicts"]
        assert [(15, 7.0)] == [(row["trial"], row["estimated_us"]) for row in after["shortlist"]]

    def test_what_cannot_be_merged_is_told(self, shell: Shell) -> None:
        assert "no study database at laptop.db: give the file" in shell.refused("studies", "merge", "laptop.db#any")
        assert "unknown study 'gessed': did you mean guessed?" in shell.refused(
            "studies", "merge", "studies/evoengine.db#gessed"
        )
        assert f"study {NAME} has measured 9 configs" in shell.refused(
            "studies", "merge", f"studies/evoengine.db#{NAME}", "--into", "guessed"
        )

    def test_options_may_stand_before_the_verb(self, shell: Shell) -> None:
        shutil.copyfile("studies/evoengine.db", "elsewhere.db")
        assert 0 == main(["studies", "--storage", "elsewhere.db", "--json", "rename", NAME, "new"])

        assert {"study": "new", "renamed_from": NAME} == json.loads(shell.capsys.readouterr().out)
        assert {NAME, "guessed"} == shell.names()
        assert {"new", "guessed"} == shell.names("--storage", "elsewhere.db")

    def test_a_study_that_is_searched_is_left_alone(self, shell: Shell) -> None:
        with closing(Archive.open("studies/evoengine.db")) as archive:
            archive.open_study(NAME).acquire(Owner.current())

            assert "is being searched by pid" in shell.refused("studies", "delete", NAME, "--yes")
        assert {NAME, "guessed"} == shell.names()

    def test_a_mistyped_verb_is_told(self, shell: Shell) -> None:
        with pytest.raises(SystemExit):
            main(["studies", "delte", NAME])

        assert "did you mean delete?" in shell.capsys.readouterr().err


class TestPrune:
    @pytest.fixture
    def home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: Shell) -> Path:
        """A cache with a build that a study refers to, one that none does, and what a killed compile left."""
        home = tmp_path / "cache"
        monkeypatch.setenv("EVOENGINE_HOME", str(home))
        with closing(Archive.open("studies/evoengine.db")) as archive:
            wanted = sorted(archive.builds())[0]
        for days, digest in ((9, wanted), (0, "f" * 32)):
            folder = entry_folder(home, digest)
            folder.mkdir(parents=True)
            (folder / "kernel.cubin").write_bytes(b"\x7f" * 250_000)
            os.utime(folder, (time.time() - days * 86400,) * 2)
        (home / "work" / "left").mkdir(parents=True)
        (home / "builds" / "ff" / "notes").mkdir()
        (home / "trusted").write_text("")
        return home

    def builds(self, home: Path) -> list[str]:
        return sorted(path.parent.name[:1] for path in home.glob("builds/*/*/kernel.cubin"))

    def test_removes_what_no_study_refers_to(self, shell: Shell, home: Path) -> None:
        both = self.builds(home)
        dry = shell.json("studies", "prune", "--dry-run")
        assert (both, True) == (self.builds(home), (home / "work" / "left").exists())
        done = shell.json("studies", "prune")

        figures = {"removed": 1, "removed_bytes": 250_000, "kept": 1, "kept_bytes": 250_000, "abandoned": 1}
        assert {"cache": str(home), "dry_run": True, **figures} == dry
        assert {"cache": str(home), "dry_run": False, **figures} == done
        assert both[:1] == self.builds(home)
        assert [] == list((home / "work").iterdir())
        assert (home / "builds" / "ff" / "notes").exists()
        assert f"{home}: 0 builds, 0.0 MB, removed; 1 kept, 0.2 MB\n" == shell.say("studies", "prune")

    def test_removes_what_is_older(self, shell: Shell, home: Path) -> None:
        assert 0 == shell.json("studies", "prune", "--older-than", "10")["removed"]
        assert 1 == shell.json("studies", "prune", "--older-than", "8.5")["removed"]
        assert ["f"] == self.builds(home)

    def test_waits_for_no_build_and_disturbs_none(self, shell: Shell, home: Path) -> None:
        with Builder(TEMPLATE, "sm_89") as builder:
            assert [] == builder.build([])
            line = shell.refused("studies", "prune")
            assert 2 == len(self.builds(home))

        assert f"the cache folder {home} is in use by another evoengine: wait for it or stop it" in line
        assert 1 == shell.json("studies", "prune")["removed"]

    def test_any_number_of_builders_share_the_cache(self, home: Path) -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(2):
                stack.enter_context(closing(lock := CacheLock(home)))
                lock.share()

    def test_a_cache_that_is_not_there_is_empty(self, shell: Shell, home: Path) -> None:
        shutil.rmtree(home)

        assert 0 == shell.json("studies", "prune")["removed"]
        assert not home.exists()
