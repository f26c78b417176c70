"""Bugs of synchronisation that a GPU may hang on or run without a trace: the interpreter names each.

A bug is one edit of the shipped sources or of their PTX, judged as a candidate is. Bugs that a GPU shows as well are
the mutants of test_mutants.py.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from interpreted import compile_ptx

from evoengine.devices.interpreter.trial import Trial
from evoengine.hardware import card
from evoengine.problem import AttentionProblem
from evoengine.space import Values, load_space
from evoengine.template import Template, load_template, shipped
from evoengine.verdict import Estimate, Gate, Rejection, ResourceUsage

RESOURCES = ResourceUsage(128, 0, 0, 0, 0, 0)
FULL, CAUSAL = AttentionProblem(), AttentionProblem(causal=True)
SPACE = load_space(shipped("search_spaces") / "attention.py")
TOGETHER = SPACE.default | dict(
    WARPS_M=2, ROW_TILES=1, BLOCK_N=32, WARPS_KV=1, STAGES=2, PRODUCER_WARPS=0, Q_IN_REGS=1, OVERLAP=0,
)  # fmt: skip
SPLIT = TOGETHER | dict(WARPS_KV=2)
ROLES = TOGETHER | dict(PRODUCER_WARPS=1)
MBARRIERS = ROLES | dict(MBARRIER=1)
GRID = TOGETHER | dict(SPLIT_KV=4)


def judge(template: Template, values: Values, problem: AttentionProblem, ptx: str) -> Rejection | Estimate:
    return Trial(template, problem, card("l4")).judge(values, ptx, RESOURCES)


@dataclass(frozen=True)
class Bug:
    """An edit of one source file: every match of the pattern is replaced."""

    name: str
    file: str
    pattern: str
    replacement: str
    gate: Gate
    reason: str
    values: Values


BUGS = (
    Bug(
        "the two roles disagree on a barrier's count",
        "pipe.cuh",
        r"ptx::barrier_sync\(kFullK \+ slot, cfg::kThreads\);",
        "ptx::barrier_sync(kFullK + slot, cfg::kConsumerThreads);",
        Gate.RUNTIME,
        "barrier 1 is given",
        ROLES,
    ),
    Bug(
        "a slot is refilled before it is given back",
        "pipe.cuh",
        r"if \(tile >= cfg::kStages\) ptx::mbarrier_wait\(at\(kEmptyV [^;]*;",
        "",
        Gate.TIMEOUT,
        "whose phase of parity 0 lacks 32 of 32 arrivals",
        MBARRIERS,
    ),
    Bug(
        "consumers ask for the phase before",
        "pipe.cuh",
        r"ptx::mbarrier_wait\(at\(kFullK \+ slot\), parity\(tile\)\);",
        "ptx::mbarrier_wait(at(kFullK + slot), parity(tile) ^ 1);",
        Gate.TIMEOUT,
        "whose phase of parity 1 lacks 32 of 32 arrivals",
        MBARRIERS,
    ),
    Bug(
        "a parity that counts on",
        "pipe.cuh",
        r"return tile / cfg::kStages & 1;",
        "return tile / cfg::kStages;",
        Gate.RUNTIME,
        "a parity of 3",
        MBARRIERS | dict(STAGES=1),
    ),
    Bug(
        "every lane gives a slot back",
        "pipe.cuh",
        r"if \(threadIdx\.x % 32 == 0\) ptx::mbarrier_arrive",
        "ptx::mbarrier_arrive",
        Gate.RUNTIME,
        "32 lanes arrive at the mbarrier",
        MBARRIERS,
    ),
    Bug(
        "nobody waits for the barriers to be made",
        "kernel.cu",
        r"__syncthreads\(\);\n    if \(producer\)",
        "if (producer)",
        Gate.RUNTIME,
        "never initialised",
        MBARRIERS,
    ),
    Bug(
        "a CTA arrives before all of its warps have written",
        "split.cuh",
        r"__syncthreads\(\);\n    if \(threadIdx\.x == 0\)",
        "if (threadIdx.x == 0)",
        Gate.CORRECTNESS,
        "differ bit for bit",
        GRID | dict(WARPS_KV=2),
    ),
)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_caught(bug: Bug, tmp_path: Path) -> None:
    folder = tmp_path / "attention"
    shutil.copytree(shipped("kernel_templates") / "attention", folder)
    source, found = re.subn(bug.pattern, bug.replacement, (folder / bug.file).read_text())
    assert found > 0, "the template has changed: plant the bug anew"
    (folder / bug.file).write_text(source)
    template = load_template(folder)
    verdict = judge(template, bug.values, FULL, compile_ptx(template, bug.values, FULL))

    assert isinstance(verdict, Rejection)
    assert bug.gate is verdict.gate, verdict.reason
    assert bug.reason in verdict.reason
    assert (bug.gate is Gate.TIMEOUT) is ("mbarriers" in verdict.evidence)


SYNCHRONISATION = re.compile(
    r"(?<![\w.])(?:bar\.sync|bar\.arrive|cp\.async\.(?:commit_group|wait_group|mbarrier)|mbarrier\.(?:arrive|test_wait))\b[^;]*;"
)


def weaker(statement: str) -> str:
    """A wait that allows one group more, a test that is always passed, or nothing."""
    test = re.match(r"mbarrier\.test_wait\S* (\S+),", statement)
    more = re.sub(r"wait_group (\d+)", lambda m: f"wait_group {int(m[1]) + 1}", statement)
    return f"setp.eq.u32 {test[1]}, 0, 0;" if test else more if more != statement else ""


@pytest.mark.parametrize(
    "values", [SPLIT, SPLIT | dict(STAGES=1), ROLES, MBARRIERS], ids=["split", "one stage", "roles", "mbarriers"]
)
def test_no_barrier_wait_or_commit_can_be_weakened(values: Values) -> None:
    """Each one in the PTX in turn."""
    template = load_template(shipped("kernel_templates") / "attention")
    ptx = compile_ptx(template, values, FULL)
    places = list(SYNCHRONISATION.finditer(ptx))
    survivors = []
    for number, place in enumerate(places):
        replaced = ptx[: place.start()] + weaker(place[0]) + ptx[place.end() :]
        if isinstance(judge(template, values, FULL, replaced), Estimate):
            survivors.append((number, place[0]))
    # Two protect nothing in these launches: the wait before the epilogue, for a CTA without a key, and the consumers'
    # barrier after Q, which the barrier for the first K repeats.
    needless = {place[0] for place in places if "wait_group 0" in place[0]}
    if values["PRODUCER_WARPS"]:
        needless.add(next(place[0] for place in places if "bar.sync" in place[0]))

    assert len(places) > 12
    assert {statement for _, statement in survivors} <= needless, survivors
    assert len(survivors) <= 2


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (TOGETHER, FULL),
        (SPLIT, CAUSAL),
        (SPLIT, AttentionProblem(causal=True, lse=True)),
        (TOGETHER | dict(LAZY_RESCALE=1), AttentionProblem(head_dim=32, causal=True, lse=True, dtype="bf16")),
        (ROLES, FULL),
        (MBARRIERS | dict(WARPS_KV=2, STAGES=3), CAUSAL),
        (ROLES | dict(WARPS_KV=2, STAGES=3, Q_IN_REGS=0), AttentionProblem(dtype="bf16", causal=True)),
        (SPLIT | dict(ROW_TILES=2, STAGES=1), AttentionProblem(head_dim=128)),
        (GRID | dict(STAGES=1, LAZY_RESCALE=1), FULL),
        (MBARRIERS | dict(WARPS_KV=2, SPLIT_KV=8, HEAVY_FIRST=1), AttentionProblem(head_dim=32, causal=True, lse=True)),
    ],
)
def test_the_shipped_kernel_is_accepted(values: Values, problem: AttentionProblem) -> None:
    template = load_template(shipped("kernel_templates") / "attention")
    verdict = judge(template, values, problem, compile_ptx(template, values, problem))

    assert isinstance(verdict, Estimate), verdict.reason
    assert [""] * len(verdict.checks) == [check.reason for check in verdict.checks]
    # the four modes; with counters, once more on what the first launch left there
    assert all(check.repeats == 4 + (values["SPLIT_KV"] > 1) for check in verdict.checks)
    assert all(check.max_abs > 0 for check in verdict.checks)
