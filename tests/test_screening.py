"""Finalists under compute-sanitizer: who is rejected, what is noted, and what the study then says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fake_sanitizer
import fakes
import pytest
from fakes import FakeBuilder, FakeGpu, Module, Silent
from test_engine import Bench, bench, server

from evoengine.archive.lease import Owner
from evoengine.build import BuildRequest
from evoengine.cli import result
from evoengine.cli.toolkit import show_sanitized
from evoengine.devices import Work
from evoengine.devices.cuda.sanitizer import TOOLS, Report, Tool
from evoengine.devices.cuda.sanitizer_log import parse
from evoengine.engine import Search
from evoengine.problem import AttentionProblem
from evoengine.question import Question
from evoengine.screening import Screening
from evoengine.space import Values
from evoengine.template import Template
from evoengine.verdict import Artifact, Candidate, Gate, Measurement, Rejection, Verdict

__all__ = ["bench", "server"]  # fixtures


HANGS = "hangs"


class SmallModule(Module):
    def small_problems(self, values: Values, problem: AttentionProblem) -> list[AttentionProblem]:
        return [AttentionProblem(seq_q=16)]


class PtxBuilder(FakeBuilder):
    """Leaves a PTX, which says what the config is."""

    def _one(self, request: BuildRequest) -> Artifact | Rejection:
        built = super()._one(request)
        if isinstance(built, Artifact):
            built.ptx.write_text(f"TILE {request.defines['TILE']}")
        return built


class FakeSanitizer:
    """Finds what `find` says: by tool and config, a recorded report and a doubt."""

    def __init__(self, find: Callable[[Tool, Values], tuple[str, str] | None]) -> None:
        self.find = find
        self.ran: list[tuple[Tool, int]] = []

    def check(self, tool: Tool, cubin: Path, values: Values, problems: Sequence[Any], ptx: str) -> Report:
        assert f"TILE {values['TILE']}" == ptx
        assert [AttentionProblem(seq_q=16)] == list(problems)
        self.ran.append((tool, values["TILE"]))
        text, doubt = self.find(tool, values) or ("", "")
        log = parse(text)
        unfinished = doubt if text == HANGS else ""
        return Report(tool, log.findings, len(log.findings), unfinished, doubt, ("P",), 0.5)


def screening(find: Callable[[Tool, Values], tuple[str, str] | None]) -> tuple[Screening, FakeSanitizer]:
    asked, sanitizer = fakes.question(), FakeSanitizer(find)
    small = Question(
        Template(asked.template.folder, SmallModule()),  # type: ignore[arg-type]
        asked.space, asked.problem, asked.limits, asked.ceilings,
    )  # fmt: skip
    return Screening(small, sanitizer), sanitizer  # type: ignore[arg-type]


@pytest.fixture
def screened(bench: Bench) -> Bench:
    bench.builder = PtxBuilder(bench.folder)
    return bench


def test_a_finding_rejects_and_the_study_forgets_the_time(screened: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    def wide_tiles_race(tool: Tool, values: Values) -> tuple[str, str] | None:
        return (fake_sanitizer.RACE, "") if tool == "racecheck" and values["TILE"] == 128 else None

    screen, sanitizer = screening(wide_tiles_race)
    gpu, listener = FakeGpu(), Silent()
    screened.run(gpu, budget=40, screening=screen, listener=listener)
    records = {record.number: record for record in screened.records()}
    summary = screened.summary()
    overruled = [
        number
        for number, record in records.items()
        if isinstance(record.verdict, Rejection) and record.verdict.reason.startswith("racecheck: Race reported")
    ]

    assert overruled, "128 rows are the fastest tiles, so that some of them were finalists"
    assert {128} == {records[number].config.values["TILE"] for number in overruled}
    assert 8 == len(gpu.finalists) + sum(records[number].twin_of is None for number in overruled)
    assert set(gpu.finalists).isdisjoint(overruled)
    assert {row["trial"] for row in summary["elites"]} == set(gpu.finalists)
    assert set(overruled).isdisjoint(row["trial"] for row in summary["measured"])
    for number in overruled:
        verdict = records[number].verdict
        assert isinstance(verdict, Rejection)
        assert Gate.CORRECTNESS == verdict.gate
        assert {"memcheck", "initcheck", "racecheck"} == set(verdict.evidence["sanitizer"]), "stopped at the finding"
    assert summary["verdicts"]["correctness"] > 0
    assert any(row["example"].startswith("racecheck: ") for row in summary["rejections"])
    assert any("racecheck: Race reported" in note for note in listener.notes)
    assert all(row["sanitizer"] is not None for row in summary["elites"])
    assert all(told["clean"] for row in summary["elites"] for told in row["sanitizer"].values())
    ran = [tool for tool, tile in sanitizer.ran if tile != 128]
    assert list(TOOLS) * len(gpu.finalists) == ran

    show_sanitized(summary["elites"])
    assert f"nothing found in trials {summary['elites'][0]['trial']}" in capsys.readouterr().out


def test_twins_of_the_rejected_go_with_it(screened: Bench) -> None:
    screen, _ = screening(lambda tool, values: (fake_sanitizer.OUT_OF_BOUNDS, ""))
    gpu = FakeGpu()
    screened.run(gpu, budget=40, screening=screen)
    records = screened.records()
    rejected = {
        record.number
        for record in records
        if isinstance(record.verdict, Rejection) and record.verdict.reason.startswith("memcheck")
    }
    twins = [record for record in records if record.twin_of in rejected]

    assert [] == gpu.finalists
    assert [] == screened.summary()["elites"]
    assert twins
    assert rejected >= {record.number for record in twins}
    assert 3 == len(gpu.final_seeds), "the next best had their turns"
    assert [] == screened.summary()["measured"]


def test_a_doubted_finding_is_noted_beside_the_elite(screened: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    screen, _ = screening(lambda tool, values: (fake_sanitizer.RACE, "mbarriers") if tool == "racecheck" else None)
    screened.run(FakeGpu(), budget=24, screening=screen)
    elites = screened.summary()["elites"]

    assert elites
    assert all("mbarriers" == row["sanitizer"]["racecheck"]["doubt"] for row in elites)
    assert all(isinstance(record.verdict, Measurement) for record in screened.records() if record.number in
               {row["trial"] for row in elites})  # fmt: skip
    show_sanitized(elites)
    assert f"trial {elites[0]['trial']}: racecheck: Race reported" in capsys.readouterr().out


def test_a_tool_that_hangs_is_asked_once(screened: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    screen, sanitizer = screening(lambda tool, values: (HANGS, "no end in 120 s") if tool == "initcheck" else None)
    gpu = FakeGpu()
    screened.run(gpu, budget=24, screening=screen)
    elites = screened.summary()["elites"]
    told = {row["trial"]: row["sanitizer"]["initcheck"]["unfinished"] for row in elites}

    assert 1 < len(gpu.finalists)
    assert 1 == [tool for tool, _ in sanitizer.ran].count("initcheck")
    assert len(gpu.finalists) == [tool for tool, _ in sanitizer.ran].count("synccheck")
    first, *others = gpu.finalists
    assert "no end in 120 s" == told[first]
    assert {f"given up after trial {first}: no end in 120 s"} == {told[number] for number in others}
    show_sanitized(elites)
    assert f"trial {first}: initcheck did not come to an end: no end in 120 s" in capsys.readouterr().out


def test_a_resumed_study_does_not_take_the_rejected_up_again(screened: Bench) -> None:
    first, _ = screening(lambda tool, values: (fake_sanitizer.UNINITIALISED, "") if values["TILE"] == 128 else None)
    screened.run(FakeGpu(), budget=40, screening=first)
    gpu = FakeGpu()
    screened.run(gpu, budget=61)

    assert gpu.finalists
    rejected = {r.number for r in screened.records() if isinstance(r.verdict, Rejection)}
    assert rejected.isdisjoint(gpu.finalists)


def test_without_it_the_elites_say_nothing_of_a_sanitizer(screened: Bench) -> None:
    screened.run(FakeGpu())

    assert all(row["sanitizer"] is None for row in screened.summary()["elites"])


def test_ctrl_c_is_heard_between_tools(screened: Bench) -> None:
    def stop(tool: Tool, values: Values) -> None:
        assert isinstance(screened.search, Search)
        screened.search.request_stop()

    screen, sanitizer = screening(stop)
    outcome = screened.run(FakeGpu(), screening=screen)

    assert outcome.interrupted
    assert 1 == len(sanitizer.ran)


def test_a_rejection_empties_what_the_measurement_filled(screened: Bench) -> None:
    screened.run(FakeGpu())
    study = screened.study()
    study.acquire(Owner.current())
    best = study.best(1)[0]
    study.overrule(best.number, Rejection(Gate.RUNTIME, "memcheck: bad", {"sanitizer": {}}))
    study.release()
    found = next(record for record in screened.records() if record.number == best.number)

    assert Rejection(Gate.RUNTIME, "memcheck: bad", {"sanitizer": {}}) == found.verdict
    assert "done" == found.state
    assert dataclasses.replace(best, verdict=None, committed_at="") == dataclasses.replace(
        found, verdict=None, committed_at="", environment=best.environment
    )


class ExplainingGpu(FakeGpu):
    """Tells of one fault what memcheck found."""

    def judge(self, work: Work) -> Iterator[tuple[Candidate, Verdict]]:
        explained = False
        for candidate, verdict in super().judge(work):
            if isinstance(verdict, Rejection) and verdict.gate is Gate.RUNTIME and not explained:
                explained = True
                found = {"findings": [{"line": "Invalid __global__ write of size 4 bytes at fake+0x60"}]}
                yield candidate, dataclasses.replace(verdict, evidence={"error": "CUDA_ERROR", "memcheck": found})
            else:
                yield candidate, verdict


def test_the_reason_of_a_fault_is_shown(screened: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    screened.run(ExplainingGpu(), budget=60, batch=60)
    rows = {row["gate"]: row for row in screened.summary()["rejections"]}
    result._rejections(list(rows.values()))
    shown = " ".join(capsys.readouterr().out.split())

    assert "Invalid __global__ write of size 4 bytes at fake+0x60" == rows["runtime"]["memcheck"]
    assert 1 < rows["runtime"]["count"]
    assert "memcheck" not in rows["timeout"]
    assert "refused by runtime; memcheck: Invalid __global__ write of size 4 bytes at fake+0x60" in shown
