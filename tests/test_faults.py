"""Searches that are stopped, killed, or meet each other: nothing is lost, nothing doubled, nobody left behind."""

from __future__ import annotations

import codecs
import json
import os
import re
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from command_line import JOBS, QUESTION, start
from optuna.trial import TrialState

from benchmarks.trust.processes import Mark
from evoengine.archive.archive import Archive
from evoengine.archive.records import Record
from evoengine.cli import main
from evoengine.verdict import Estimate, Rejection

NAME = "first"
SEARCH = ("search", *QUESTION, *JOBS, "--study", NAME, "--budget", "400", "--verbose")
"""More candidates than the space has, so that no signal comes too late."""
PATIENCE_SECONDS = 60.0


class Running:
    """A search in a process of its own, and everything that it started."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._mark = Mark()
        self.process = start(folder, *arguments, stdout=subprocess.PIPE, env={self._mark.name: self._mark.value})
        self.err = ""

    def wait_for(self, text: str, times: int = 1) -> None:
        """Until standard error has said `text` so often. Past its buffer: `communicate` would lose what that holds."""
        assert self.process.stderr is not None
        decode = codecs.getincrementaldecoder("utf-8")().decode
        while self.err.count(text) < times:
            read = os.read(self.process.stderr.fileno(), 1 << 16)
            assert read, f"ended before it said {text!r}: {self.err}"
            self.err += decode(read)

    def end(self) -> tuple[int, str]:
        """Exit code and standard output, when it is over."""
        out, err = self.process.communicate(timeout=PATIENCE_SECONDS)
        self.err += err
        return self.process.returncode, out

    def left_behind(self) -> list[str]:
        """Command lines of processes that still run, after a grace in which they may notice."""
        return self._mark.left_behind(PATIENCE_SECONDS)


Search = Callable[..., Running]


@pytest.fixture
def search(folder: Path) -> Iterator[Search]:
    """Starts searches that do not outlive the test."""
    running: list[Running] = []

    def begin(*arguments: str) -> Running:
        running.append(Running(folder, *(arguments or SEARCH)))
        return running[-1]

    yield begin
    for one in running:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()


def records() -> list[Record]:
    archive = Archive.open("studies/evoengine.db")
    try:
        return archive.open_study(NAME).records()
    finally:
        archive.close()


def states() -> Counter[TrialState]:
    storage = optuna.storages.RDBStorage("sqlite:///studies/evoengine.db")
    try:
        return Counter(trial.state for trial in optuna.load_study(study_name=NAME, storage=storage).get_trials())
    finally:
        storage.engine.dispose()


def judged(found: list[Record]) -> dict[int, Any]:
    """What a study knows of its finished trials; of a verdict without what a clock said."""
    return {
        one.number: (one.config, one.operator, one.parents, one.twin_of, figure(one))
        for one in found
        if one.verdict is not None
    }


def figure(record: Record) -> Any:
    assert isinstance(record.verdict, Estimate | Rejection)
    return record.verdict.estimated_us if isinstance(record.verdict, Estimate) else record.verdict.reason


def resume_by(candidates: int, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Resume the study in this process until so many more candidates are spent; what `--json` says."""
    main(["show", NAME, "--json"])
    spent = json.loads(capsys.readouterr().out)["spent"]
    code = main(["resume", NAME, *JOBS, "--budget", str(spent + candidates), "--json", "--device", "none"])
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert 0 == code
    assert spent + candidates == document["spent"]
    return document


def stop_between_transactions(running: Running) -> None:
    """Freeze a search, but not while it holds the database: who comes then would be told of the lock instead."""
    while True:
        running.process.send_signal(signal.SIGSTOP)
        try:
            with closing(sqlite3.connect("studies/evoengine.db", timeout=0.2, isolation_level=None)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")
            return
        except sqlite3.OperationalError:
            running.process.send_signal(signal.SIGCONT)
            time.sleep(0.05)


class TestStopped:
    def test_ctrl_c_prints_what_there_is_and_can_be_resumed(
        self, search: Search, capsys: pytest.CaptureFixture[str]
    ) -> None:
        running = search()
        running.wait_for("\n#", 5)
        os.killpg(running.process.pid, signal.SIGINT)  # as a terminal does: to everything in the foreground
        code, out = running.end()
        before = judged(records())

        assert 130 == code
        assert "Traceback" not in running.err
        assert "stopping after the verdict in flight" in running.err
        assert f"go on with: evoengine resume {NAME} --batch 4\n" in running.err
        assert "(stopped by the user)" in out
        assert "shortlist: ESTIMATED, not measured" in out
        assert [] == running.left_behind()
        assert len(re.findall(r"#\d+ t_", running.err)) == len(before) >= 5
        assert TrialState.RUNNING not in states()

        resume_by(6, capsys)
        assert before.items() <= judged(records()).items()

    def test_sigterm_is_ctrl_c_and_json_stays_one_document(self, search: Search) -> None:
        running = search(*SEARCH, "--json")
        running.wait_for("\n#", 3)
        running.process.terminate()
        code, out = running.end()

        assert 130 == code
        assert "stopped by the user" == json.loads(out)["stopped"]
        assert "Traceback" not in running.err
        assert [] == running.left_behind()
        assert TrialState.RUNNING not in states()

    def test_before_the_first_verdict(self, search: Search) -> None:
        running = search()
        running.wait_for("nothing is measured")
        os.killpg(running.process.pid, signal.SIGINT)
        code, _ = running.end()

        assert 130 == code
        assert "Traceback" not in running.err
        assert [] == running.left_behind()


class TestKilled:
    @pytest.mark.parametrize("verdicts", [0, 7])
    def test_loses_no_verdict_and_doubles_none(
        self, search: Search, capsys: pytest.CaptureFixture[str], verdicts: int
    ) -> None:
        running = search()
        running.wait_for("\n#" if verdicts else "nothing is measured", max(verdicts, 1))
        running.process.kill()
        code, _ = running.end()
        before = records()
        said = {int(number) for number in re.findall(r"^#(\d+) ", running.err, re.MULTILINE)}

        assert -signal.SIGKILL == code
        assert [] == running.left_behind()
        assert verdicts <= len(said)
        assert said <= set(judged(before))  # what the user was shown is in the database

        resume_by(5, capsys)
        after = records()
        in_flight = {one.number for one in before} - set(judged(before))
        assert judged(before).items() <= judged(after).items()
        assert in_flight <= set(judged(after))
        assert list(range(len(after))) == [one.number for one in after]
        assert len(after) == len({one.config for one in after}) == len(judged(after))
        assert {TrialState.WAITING, TrialState.PRUNED} >= set(states())

    def test_goes_on_with_the_same_population(
        self, search: Search, capsys: pytest.CaptureFixture[str], folder: Path
    ) -> None:
        running = search()
        running.wait_for("\n#", 6)
        running.process.kill()
        running.end()
        spent = resume_by(4, capsys)["spent"]
        resumed = judged(records())
        whole = [
            "search",
            *QUESTION,
            *JOBS,
            "--study",
            NAME,
            "--quiet",
            "--storage",
            "whole.db",
            "--budget",
            str(spent),
        ]
        main(whole)
        capsys.readouterr()
        archive = Archive.open("whole.db")
        undisturbed = judged(archive.open_study(NAME).records())
        archive.close()

        assert undisturbed == resumed


class TestTwoAtOnce:
    def test_the_second_is_told_who_is_there(self, search: Search, capsys: pytest.CaptureFixture[str]) -> None:
        running = search()
        running.wait_for("\n#")
        stop_between_transactions(running)
        codes = [main(["resume", NAME, "--device", "none"]), main(["resume", "--device", "none", "--quiet"])]
        resumed = capsys.readouterr()
        codes.append(main([*SEARCH[:-1], "--quiet"]))
        again = capsys.readouterr().err
        main(["studies", "--json"])
        [row] = json.loads(capsys.readouterr().out)
        main(["show", "--json"])
        shown = json.loads(capsys.readouterr().out)

        assert [2, 2, 2] == codes
        assert "" == resumed.out
        first, second = resumed.err.splitlines()
        assert first == second
        assert f"evoengine: study {NAME} is being searched by pid {running.process.pid} on" in first
        assert "wait for it, stop it, or give another --study" in first
        assert f"evoengine: study {NAME} exists" in again
        assert 1 == again.count("\n")
        assert f"pid {running.process.pid} on" in row["searched_by"]
        assert NAME == shown["study"]

    def test_two_searches_on_one_database_do_not_disturb_each_other(self, search: Search) -> None:
        one = search(*SEARCH, "--budget", "8")
        other = search(*SEARCH, "--budget", "8", "--study", "second", "--seed", "1")

        assert [0, 0] == [running.end()[0] for running in (one, other)], one.err + other.err
        archive = Archive.open("studies/evoengine.db")
        found = {study.spec.name: (study.status, study.searched_by) for study in archive.studies()}
        archive.close()
        assert {NAME: ("budget spent", ""), "second": ("budget spent", "")} == found
