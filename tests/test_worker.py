"""`evoengine worker`: joins studies, shares them with others, helps those that measure, leaves when it is told to."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from command_line import JOBS, QUESTION, lay_out

from benchmarks.trust import replayed
from benchmarks.trust.joined import Orders
from evoengine.archive.archive import Archive
from evoengine.archive.lease import Owner
from evoengine.archive.records import Record
from evoengine.build import Builder, compiling
from evoengine.build.shared import FolderStore
from evoengine.cli import main
from evoengine.cli.resolve import reopen
from evoengine.cli.running import STOP_SIGNALS
from evoengine.cli.storage import shown_storage, without_secrets
from evoengine.verdict import Artifact, Estimate, Measurement, is_paid

ROOT = Path(__file__).parent.parent
END_SECONDS = 120


class Workers:
    """Workers of the replayed question, each a process, on one study in a file."""

    def __init__(self, folder: Path, database: Path, *, budget: int) -> None:
        self._folder = folder
        self.url = f"sqlite:///{folder / 'studies.db'}"
        shutil.copyfile(database, folder / "studies.db")
        (folder / "cubins").mkdir()
        self.archive = Archive.open(self.url)
        self.archive.create_study(replayed.spec("shared", sampler="random", seed=0, budget=budget))
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *options: str, verdict_seconds: float = 0.02) -> subprocess.Popen[str]:
        orders = Orders(str(self._folder / "log"), str(self._folder / "cubins"), 0.0, 300.0, verdict_seconds)
        words = [*orders.words(), "worker", "--storage", self.url, "--study", "shared", "--batch", "4", *options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self._started.append(subprocess.Popen(words, cwd=ROOT, text=True, start_new_session=True, **pipes))
        return self._started[-1]

    def records(self) -> list[Record]:
        return self.archive.open_study("shared").records()

    def until(self, verdicts: int) -> None:
        deadline = time.monotonic() + END_SECONDS
        while sum(one.verdict is not None for one in self.records()) < verdicts:
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate()
        self.archive.close()


@pytest.fixture
def workers(tmp_path: Path, database: Path, no_orphans: None) -> Iterator[Workers]:
    made = Workers(tmp_path, database, budget=24)
    yield made
    made.close()


class TestTogether:
    def test_a_study_is_finished_once_with_its_own_budget(self, workers: Workers) -> None:
        helper = workers.start("--no-gpu", "--ahead", "8", "--until-done", "--json", "--quiet")
        workers.until(4)
        others = [workers.start("--until-done", "--json", "--quiet") for _ in range(2)]
        ends = [process.communicate(timeout=END_SECONDS) for process in (helper, *others)]
        records = workers.records()
        visits = [visit for out, _ in ends for visit in json.loads(out)["studies"]]

        assert [0, 0, 0] == [process.returncode for process in (helper, *others)], ends
        assert {"done"} == {one.state for one in records}
        assert 24 == sum(is_paid(one.verdict, one.twin_of) for one in records)
        assert len(records) == len({one.config for one in records})
        assert any(isinstance(one.verdict, Measurement) and one.estimate is not None for one in records)
        # An estimate and the measurement after it are two verdicts of one trial.
        assert len(records) + sum(one.estimate is not None for one in records) == sum(v["verdicts"] for v in visits)
        assert "budget spent" == workers.archive.summary("shared").status
        assert workers.archive.open_study("shared").elites()

    def test_who_helps_stays_so_far_ahead(self, workers: Workers) -> None:
        helper = workers.start("--no-gpu", "--ahead", "8", "--quiet")
        workers.until(8)
        time.sleep(2)  # idle: nobody measures
        helper.terminate()
        helper.communicate(timeout=END_SECONDS)
        waiting = [one for one in workers.records() if one.state != "done"]

        assert 8 == len(waiting)
        assert all(isinstance(one.verdict, Estimate) for one in waiting)
        assert "new" == workers.archive.summary("shared").status

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_ends_it_after_the_verdict_in_flight(self, workers: Workers, number: signal.Signals) -> None:
        worker = workers.start("--quiet", verdict_seconds=0.5)
        workers.until(3)
        worker.send_signal(number)
        _, said = worker.communicate(timeout=END_SECONDS)

        assert 130 == worker.returncode
        assert "stopping after the verdict in flight" not in said  # --quiet
        assert "running" not in {one.state for one in workers.records()}
        assert 3 <= sum(one.state == "done" for one in workers.records()) < 24
        assert "" == workers.archive.summary("shared").searched_by

    def test_a_study_that_is_searched_alone_is_waited_for(self, workers: Workers) -> None:
        alone = workers.archive.open_study("shared")
        alone.acquire(Owner.current())
        worker = workers.start("--until-done")
        assert worker.stderr is not None
        said = worker.stderr.readline()
        alone.release()
        _, rest = worker.communicate(timeout=END_SECONDS)

        assert re.search(r"is being searched by pid \d+ on .*; this worker tries again", said)
        assert 0 == worker.returncode, rest
        assert {"done"} == {one.state for one in workers.records()}


def test_a_study_that_is_not_there_is_named(tmp_path: Path, database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 2 == main(["worker", "--storage", str(database), "--study", "nosuch"])
    assert re.search("unknown study 'nosuch'|no study", capsys.readouterr().err)


def test_what_cannot_go_on_here_is_left_out(tmp_path: Path, database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copyfile(database, tmp_path / "studies.db")
    with closing(Archive.open(str(tmp_path / "studies.db"))) as archive:
        archive.create_study(replayed.spec("foreign", sampler="random", seed=0, budget=4))

    assert 0 == main(["worker", "--storage", str(tmp_path / "studies.db"), "--no-gpu", "--until-done"])
    assert "study foreign is left out: study foreign was built with replay, here is NVRTC" in capsys.readouterr().err


def test_its_builds_are_found_by_others(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real compiler and the interpreter: a search on one machine, a helper and a builder on others."""
    folder = lay_out(tmp_path / "work", database)
    monkeypatch.chdir(folder)
    assert 0 == main(["search", *QUESTION, *JOBS, "--study", "s", "--budget", "1", "--quiet"])
    with closing(Archive.open("studies/evoengine.db")) as archive:
        study = archive.open_study("s")
        study.set_budget(5)
        monkeypatch.setenv("EVOENGINE_HOME", str(tmp_path / "another"))
        words = ["worker", "--no-gpu", "--until-done", "--template", "mine", "--cache", str(tmp_path / "builds"), *JOBS]
        assert 0 == main(words), capsys.readouterr().err
        records = study.records()
    question = reopen(study.spec, template_folder="mine")
    fresh = [one for one in records if isinstance(one.verdict, Estimate)][1:]
    with Builder(question.template, study.spec.arch, home=tmp_path / "third") as builder:
        builder.store = FolderStore(tmp_path / "builds")
        monkeypatch.setattr(compiling.Compiling, "__init__", lambda *_: pytest.fail("compiled again"))
        built = builder.build([question.build_request(one.config.values) for one in fresh])

    assert 5 == sum(is_paid(one.verdict, one.twin_of) for one in records)
    assert 2 <= len(fresh)
    for one, artifact in zip(fresh, built, strict=True):
        assert one.build is not None
        assert isinstance(artifact, Artifact)
        assert (one.build.cubin_sha256, True) == (artifact.cubin_sha256, artifact.cached)


@pytest.mark.parametrize(
    "command", [["search", *QUESTION, *JOBS, "--budget", "1"], ["worker", "--no-gpu", "--until-done"]]
)
def test_ctrl_c_does_afterwards_what_it_did_before(folder: Path, command: list[str]) -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]

    assert 0 == main([*command, "--quiet"])
    assert before == [signal.getsignal(number) for number in STOP_SIGNALS]


class TestSecrets:
    @pytest.mark.parametrize(
        ("word", "shown"),
        [
            ("postgresql+psycopg://me:s3c%40ret@host/db", "postgresql+psycopg://me:***@host/db"),
            (
                "--storage=postgresql://me:s3c@host/db?sslmode=require",
                "--storage=postgresql://me:***@host/db?sslmode=require",
            ),
            (
                "postgresql://me@host/db?password=s3c&sslmode=require",
                "postgresql://me@host/db?password=***&sslmode=require",
            ),
            ("postgresql://me@host/db?sslkey=k&sslpassword=s3c", "postgresql://me@host/db?sslkey=k&sslpassword=***"),
            ("postgresql://me@host:5432/db", "postgresql://me@host:5432/db"),
            ("sqlite:///a:b@c.db", "sqlite:///a:b@c.db"),
            ("backup.db#first:try", "backup.db#first:try"),
        ],
    )
    def test_no_word_shows_one(self, word: str, shown: str) -> None:
        assert shown == without_secrets(word)

    @pytest.mark.parametrize("url", ["me:s3cr3t@localhost:1/db", "me@localhost:1/db?password=s3cr3t"])
    def test_a_password_in_the_list_of_processes_is_warned_of(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str
    ) -> None:
        pytest.importorskip("psycopg")
        monkeypatch.setattr("evoengine.archive.database.PATIENCE_SECONDS", 0.2)

        assert 2 == main(["studies", "--storage", f"postgresql+psycopg://{url}"])
        said = capsys.readouterr().err
        assert "can see the password in the list of processes" in said
        assert "does not answer" in said
        assert "s3cr3t" not in said

    def test_what_is_kept_of_a_command_has_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kept: list[str] = []
        monkeypatch.setattr("evoengine.cli.search.run", lambda arguments, *_: kept.append(arguments.command_line) or 0)
        main(["search", "--storage", "postgresql+psycopg://me:s3cr3t@db/x", "--budget", "3"])

        assert ["evoengine search --storage 'postgresql+psycopg://me:***@db/x' --budget 3"] == kept

    def test_a_command_to_paste_has_none(self) -> None:
        assert "URL" == shown_storage("postgresql+psycopg://me:s3cr3t@db/x")
        assert "URL" == shown_storage("postgresql+psycopg://db/x?user=me&password=s3cr3t")
        assert "postgresql+psycopg://me@db/x" == shown_storage("postgresql+psycopg://me@db/x")
