"""compute-sanitizer over one candidate: four tools, each a process of its own, and what their findings are worth."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evoengine.devices.cuda.bare import Job
from evoengine.devices.cuda.sanitizer_log import Finding, parse
from evoengine.devices.cuda.watched import LOG, Watched, watch
from evoengine.problem import Problem, problem_fields
from evoengine.space import Values
from evoengine.template import Template
from evoengine.verdict import Evidence, Gate, Rejection

PROGRAM = "compute-sanitizer"
Tool = Literal["memcheck", "initcheck", "racecheck", "synccheck"]
TOOLS: tuple[Tool, ...] = ("memcheck", "initcheck", "racecheck", "synccheck")
"""In the order they run: the other three do not check accesses, and their manual wants memcheck clean first."""
GATES: dict[Tool, Gate] = {
    "memcheck": Gate.RUNTIME,
    "initcheck": Gate.CORRECTNESS,
    "racecheck": Gate.CORRECTNESS,
    "synccheck": Gate.CORRECTNESS,
}
"""The gate at which a finding rejects."""

PADDING_BYTES = 64 * 1024
"""Ground behind each allocation on which every access is a finding: as wide as the gate's own guard bands."""
PRINT_LIMIT = 50
"""Reports printed: one wrong instruction makes one for each of its threads."""
KEPT = 3
"""Findings that go into the evidence."""
TRACKED_BARRIERS = 64
"""mbarriers a CTA that racecheck and synccheck keep track of. They count those of the source, too few for inline PTX,
and then report launch failures that are their own; a ring of 4 slots has 17."""
CHECK_SECONDS = 120.0
"""Deadline of one tool on a candidate's small problems. A few seconds are usual, most of them its own start-up."""
OPTIONS: dict[Tool, tuple[str, ...]] = {
    # what the driver refuses, the launcher says itself
    "memcheck": ("--padding", str(PADDING_BYTES), "--report-api-errors", "no"),
    "initcheck": (),
    "racecheck": ("--num-cuda-barriers", str(TRACKED_BARRIERS)),
    "synccheck": ("--num-cuda-barriers", str(TRACKED_BARRIERS)),
}

_MBARRIER = re.compile(r"\bmbarrier\.")
_PART_OF_A_CTA = re.compile(r"\bbar(?:rier)?(?:\.cta)?\.(?:sync|arrive)(?:\.aligned)?\s+[^,;]+,")
"""A named barrier with a number of threads: what producers and consumers hand over through."""


@dataclass(frozen=True, slots=True)
class Report:
    """What one tool found. `unfinished` says why it did not come to an end; findings until then stand.

    `doubt` is why its findings prove nothing for this kernel; empty where they do. `problems` were launched.
    """

    tool: Tool
    findings: tuple[Finding, ...]
    total: int
    unfinished: str
    doubt: str
    problems: tuple[str, ...]
    seconds: float

    @property
    def clean(self) -> bool:
        return not self.findings and not self.unfinished

    @property
    def line(self) -> str:
        """One line for a user."""
        if self.findings:
            return f"{self.tool}: {self.findings[0].line} ({self.total} in all)"
        return f"{self.tool}: {self.unfinished or 'clean'}"

    @property
    def evidence(self) -> Evidence:
        found = [{**dataclasses.asdict(one), "line": one.line} for one in self.findings[:KEPT]]
        words = {"unfinished": self.unfinished, "doubt": self.doubt if found else ""}
        return {
            "clean": self.clean,
            "total": self.total,
            "findings": found,
            "problems": list(self.problems),
            "seconds": round(self.seconds, 3),
            **{name: word for name, word in words.items() if word},
        }

    def rejection(self) -> Rejection | None:
        """The verdict, where a finding is one: warnings are programming-model hazards that may be intended."""
        errors = [finding for finding in self.findings if finding.severity == "error"]
        if self.doubt or not errors:
            return None
        reason = f"{self.tool}: {errors[0].line}"
        return Rejection(GATES[self.tool], reason, {"sanitizer": {self.tool: self.evidence}})


class Sanitizer:
    """Launches candidates of one template under the tools, on GPU `ordinal`."""

    def __init__(self, executable: Path, template: Template, ordinal: int, seed: int) -> None:
        self._executable = executable
        self._template = template
        self._ordinal = ordinal
        self._seed = seed

    def check(
        self,
        tool: Tool,
        cubin: Path,
        values: Values,
        problems: Sequence[Problem],
        ptx: str = "",
        seconds: float = CHECK_SECONDS,
    ) -> Report:
        """Run one tool over one launch of each problem. `ptx` tells which findings prove something, see `doubt`."""
        fields = [problem_fields(problem) for problem in problems]
        job = Job(str(self._template.folder), str(cubin.absolute()), dict(values), fields, self._ordinal, self._seed)
        started = time.monotonic()
        watched = watch(self._command(tool), job, seconds)
        log = parse(watched.log, watched.launched)
        return Report(
            tool,
            log.findings,
            max(log.total or 0, len(log.findings)),
            _unfinished(watched, bool(log.findings), log.trouble, log.total is None, seconds),
            doubt(tool, ptx),
            tuple(one.problem for one in watched.launched),
            time.monotonic() - started,
        )

    def _command(self, tool: Tool) -> tuple[str, ...]:
        options = {
            "--tool": tool,
            "--log-file": LOG,
            "--print-limit": str(PRINT_LIMIT),
            "--show-backtrace": "no",
            "--target-processes": "application-only",
            "--launch-timeout": "60",  # a slow disk may keep Python from the driver for longer than the default 10 s
        }
        flat = [word for option in options.items() for word in option]
        return (str(self._executable), *flat, *OPTIONS[tool])


def doubt(tool: Tool, ptx: str) -> str:
    """Why findings of `tool` prove nothing for a kernel of this PTX; empty where they do.

    memcheck and initcheck see each access by itself, and everything that a kernel may read is written before it
    starts: their findings stand. The other two have to understand how threads wait for each other, and do not always:

    - racecheck follows `bar` and, as documented, cp.async with its groups. Of mbarriers its release notes list false
      positives repaired in 2025.1 (cp.async.mbarrier.arrive), 2025.3, 2025.4 and 2026.3, after the CUDA 13.0 that
      evoengine asks for; FlashAttention documents one in a loop between warps (AI/RACECHECK_TMA_HAZARD.md).
    - synccheck calls it divergence when part of a CTA waits at a barrier. Named barriers of producers and consumers
      are meant so, and are reported all the same; of cp.async.mbarrier.arrive the notes list false positives until
      2025.4.

    A race there shows in the 50 and 250 bit-equal repeats of the gate.
    """
    if tool in ("racecheck", "synccheck") and _MBARRIER.search(ptx):
        return "false positives are known for mbarriers"
    if tool == "synccheck" and _PART_OF_A_CTA.search(ptx):
        return "false positives are known for named barriers of a part of the CTA"
    return ""


def _unfinished(watched: Watched, found: bool, trouble: str, no_summary: bool, seconds: float) -> str:
    if watched.code is None:
        return f"no end in {seconds:g} s"
    if found:
        return ""  # a finding ends the context, after which every launch fails
    if trouble:
        return trouble
    if watched.finished:
        return "its report has no summary" if no_summary else ""
    last = watched.words.rpartition("\n")[2]
    return f"the launch ended with code {watched.code}{last and f' ({last})'}"
