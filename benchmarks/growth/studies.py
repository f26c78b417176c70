"""A study that grows in a database: what claims, verdicts, opening it again, `show` and `report` take."""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.growth.memory import peak_mb
from benchmarks.trust import replayed
from evoengine.archive.archive import Archive
from evoengine.archive.lease import Owner
from evoengine.archive.study import Study
from evoengine.question import Question
from evoengine.sampler.proposer import Proposer
from evoengine.space import Point
from evoengine.verdict import Artifact, Candidate, Gate, Measurement, Rejection, ResourceUsage, Verdict

NAME = "grown"
BATCH = 32
WATCHED = 96
"""The last so many trials before a mark are the ones whose claims and verdicts are timed."""
CONTROL_US = 9.0
REOPEN = """\
import json, sys, time
started = time.perf_counter()
from benchmarks.growth.studies import reopened
print(json.dumps(reopened(sys.argv[1], started)))
"""
COMMAND = """\
import sys
from benchmarks.growth.memory import peak_mb
from evoengine.cli import main
code = main(sys.argv[1:])
print(peak_mb(), file=sys.stderr)
sys.exit(code)
"""


def question() -> Question:
    """Attention at the mission shape within an L4's limits: 362,336 feasible configs."""
    asked = replayed.question()
    return Question(asked.template, asked.space, asked.problem, asked.limits, asked.ceilings)


def answer(point: Point) -> tuple[Verdict, Artifact | None]:
    """A fifth is refused by the compiler; the others are measured, with a time that depends on every knob."""
    if sum(point) % 5 == 0:
        return Rejection(Gate.COMPILE, "ptxas fatal: planted", {"log_tail": "x" * 400}), None
    us = 4.0 + sum((index - 1.5) ** 2 * (1 + at % 3) for at, index in enumerate(point)) / 20
    name = "".join(map(str, point))
    built = Artifact(name, Path("none"), name, ResourceUsage(96, 4, 8, 0, 0, 49_152), 0.5, "replay", "sm_89")
    return Measurement((us,) * 9, (CONTROL_US,) * 9, CONTROL_US, 40, "warm", "converged"), built


def grow(url: str, marks: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Fill a study to each mark in turn, and measure there."""
    asked = question()
    spec = dataclasses.replace(replayed.spec(NAME, sampler="evolution", seed=1, budget=max(marks)), device="NVIDIA L4")
    with closing(Archive.open(url)) as archive:
        study = archive.create_study(spec)
        draws = Proposer(asked.space, asked.feasible, sampler="random", seed=1)
        done = 0
        for mark in marks:
            study.acquire(Owner.current())
            claims, tells = [], []
            while done < mark:
                for claim_ms, tell_ms in _evaluate(study, draws, min(BATCH, mark - done)):
                    claims.append(claim_ms)
                    tells.append(tell_ms)
                    done += 1
            study.release()
            yield {
                "trials": mark,
                "claim_ms": statistics.median(claims[-WATCHED:]),
                "tell_ms": statistics.median(tells[-WATCHED:]),
                **_again(url),
            }


def _evaluate(study: Study, draws: Proposer, count: int) -> Iterator[tuple[float, float]]:
    """One batch: for each trial the milliseconds of its share of the claim, and of its verdict."""
    proposals = draws.propose(count)
    started = time.perf_counter()
    study.renew()
    study.claim_waiting(BATCH, estimated=True)
    study.claim_waiting(BATCH, estimated=False)
    candidates: list[Candidate] = study.claim(proposals)
    share = 1e3 * (time.perf_counter() - started) / count
    for candidate, proposal in zip(candidates, proposals, strict=True):
        verdict, artifact = answer(proposal.point)
        asked = time.perf_counter()
        study.commit(candidate, verdict, artifact)
        yield share, 1e3 * (time.perf_counter() - asked)


def _again(url: str) -> dict[str, Any]:
    """What new processes take: to go on with the study, to show it, and to write its report."""
    found = {f"resume_{key}": value for key, value in json.loads(_run("-c", REOPEN, url).stdout).items()}
    with tempfile.TemporaryDirectory() as folder:
        for verb, more in (("show", []), ("report", ["-o", f"{folder}/report.html"])):
            started = time.perf_counter()
            done = _run("-c", COMMAND, verb, NAME, "--storage", url, *more)
            found |= {f"{verb}_s": time.perf_counter() - started, f"{verb}_peak_mb": float(done.stderr.split()[-1])}
    return found


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True)


def reopened(url: str, started: float) -> dict[str, float]:
    """Seconds from the start of a process to the study's records, and to the next batch's proposals."""
    asked = question()
    with closing(Archive.open(url)) as archive:
        study = archive.open_study(NAME)
        study.acquire(Owner.current())
        study.recover()
        records = study.records()
        read = time.perf_counter()
        proposer = Proposer(asked.space, asked.feasible, sampler="evolution", seed=1)
        proposer.observe([record.seen(measures=True) for record in records])
        proposer.propose(1)
        study.release()
    return {"records_s": read - started, "s": time.perf_counter() - started, "peak_mb": peak_mb()}
