"""The full gate on a real card: right kernels of every kind pass it, and what the quick gate misses does not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from evoengine.build import Builder, BuildRequest
from evoengine.problem import AttentionProblem, Problem, parse_shape
from evoengine.space import Values, load_space
from evoengine.template import Template, load_template, shipped
from evoengine.verdict import Artifact

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]  # what torch warns of here is not ours

ROOT = Path(__file__).resolve().parents[2]
AXPB = ROOT / "tests" / "templates" / "axpb"
ATTENTION = shipped("kernel_templates") / "attention"
DEFAULT = load_space(shipped("search_spaces") / "attention.py").default
MISSION = AttentionProblem()


@pytest.fixture(scope="module")
def card() -> Any:
    from evoengine.devices.cuda.card import Card

    return Card(0)


@dataclass
class Gate:
    """A prover of one template on one problem, in this process; kernels may come from an edited copy of it."""

    card: Any
    template: Template
    problem: Problem
    folder: Path

    def __post_init__(self) -> None:
        from evoengine.devices.cuda.prove import Prover

        self._prover = Prover(self.template, self.problem, 77, self.folder, self.card, lambda working: None)

    def prove(self, values: Values, *, full: bool, source: Template | None = None) -> Any:
        module = self.template.module
        request = BuildRequest(module.defines(values, self.problem), module.launch(values, self.problem).smem_bytes)
        with Builder(source or self.template, self.card.limits.arch) as builder:
            (built,) = builder.build([request])
        assert isinstance(built, Artifact), built
        kernel = self.card.load(built.cubin.read_bytes(), module.ENTRY)
        proof = self._prover.prove(kernel, values, 250 if full else 50, full=full)
        kernel.unload()
        return proof


@pytest.mark.parametrize(
    ("bug", "caught_on", "reason"),
    [
        ("answers as it did before", "renewed", "max error"),
        ("writes where it wrote before", "moved", "1056 output words were never written"),
        ("loses large inputs", "large", "error"),
    ],
)
def test_a_kernel_that_remembers_or_saturates_is_refused_at_the_full_gate_only(
    card: Any, tmp_path: Path, bug: str, caught_on: str, reason: str
) -> None:
    template = load_template(AXPB)
    values = {"BUG": template.module.BUGS.index(bug), "WORK": 1}  # type: ignore[attr-defined]
    gate = Gate(card, template, template.module.PROBLEM(), tmp_path)
    quick, full = gate.prove(values, full=False), gate.prove(values, full=True)

    assert quick.rejection is None
    assert full.rejection is not None
    assert caught_on == full.checks[-1].input_set
    assert reason in full.rejection.reason
    assert gate.prove({**values, "BUG": 0}, full=True).rejection is None, "the next one is unaffected"


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        ("1,8,512,64", {}),
        ("1,8,512,64,lse", dict(LAZY_RESCALE=1, SUM_MMA=1, BLOCK_N=32)),
        ("1,8,512,64,causal", dict(PRODUCER_WARPS=2, MBARRIER=1, BLOCK_N=128, HEAVY_FIRST=1)),
        ("1,8,512,128,causal,dtype=bf16", dict(OVERLAP=1, LAZY_RESCALE=1)),
        ("1,8,512,32,causal,lse", dict(WARPS_M=2, SPLIT_KV=2, WARPS_KV=2)),
        ("1,4,64,64,seq_k=1024", dict(WARPS_M=1, SPLIT_KV=16, BLOCK_N=32, STAGES=1)),
        ("1,4,512,256,dtype=bf16", dict(BLOCK_N=32, STAGES=1)),
    ],
)
def test_right_kernels_pass_and_the_gate_is_quick(
    card: Any, tmp_path: Path, shape: str, changes: dict[str, int]
) -> None:
    gate = Gate(card, load_template(ATTENTION), parse_shape(AttentionProblem, shape), tmp_path)
    values = {**DEFAULT, **changes}
    first = gate.prove(values, full=True)
    started = time.perf_counter()
    again = gate.prove(values, full=True)
    seconds = time.perf_counter() - started

    assert first.rejection is None, first.rejection
    assert [""] * len(again.checks) == [check.reason for check in again.checks]
    kinds = {"timed", "check", "moved", "renewed", "lengths", "large", "constant", "peaky", "one hot", "races"}
    assert kinds == {check.input_set for check in again.checks}
    assert 250 == again.checks[-1].repeats
    worst = max(max(check.max_ratio, check.fro_ratio, check.row_ratio / 2) for check in again.checks)
    print(f"\n{shape} {changes}: {len(again.checks)} input sets in {seconds:.2f} s, worst {worst:.2f}x the baseline")


HIDDEN = [
    ("large", "consumer.cuh", r"highest\[h\] = ptx::quad_max\(highest\[h\]\);", "highest[h] = 0.0f;", {}),
    (
        "constant",
        "consumer.cuh",
        r"ptx::pack\((o\[i\]\[d\]\[2 \* h\]) \* inverse, ",
        r"ptx::pack(fminf(\1, 65504.0f) * inverse, ",
        {},
    ),
    (
        "large",  # the first of the sets that show it
        "consumer.cuh",
        r"(o\[i\]\[d\]\[[^]]*\]) \*= rescale[^;]*;",
        r"\1 *= 1.0f;",
        dict(LAZY_RESCALE=1),
    ),
    ("one hot", "consumer.cuh", r"1\.0f / sum : 0\.0f", "1.0f / (sum + 5e-4f) : 0.0f", {}),
    ("lengths", "kernel.cu", r"int keys = seq_k;", "int keys = seq_k < 512 ? seq_k : 512;", {}),
]


@pytest.mark.parametrize(("kind", "file", "pattern", "replacement", "changes"), HIDDEN)
def test_a_bug_that_normal_inputs_hide_is_refused_at_the_full_gate_only(
    card: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    file: str,
    pattern: str,
    replacement: str,
    changes: dict[str, int],
) -> None:
    folder = shutil.copytree(ATTENTION, tmp_path / "attention")
    source, found = re.subn(pattern, replacement, (folder / file).read_text())
    assert found > 0, "the template has changed: plant the bug anew"
    (folder / file).write_text(source)
    template = load_template(ATTENTION)
    checked = template.module.check_problems
    # Without the problem with large logits and more keys, which the quick gate has for some of these bugs too.
    monkeypatch.setattr(template.module, "check_problems", lambda values, problem: checked(values, problem)[:-1])
    gate = Gate(card, template, MISSION, tmp_path)
    values = {**DEFAULT, **changes}
    wrong = load_template(folder)
    quick, full = gate.prove(values, full=False, source=wrong), gate.prove(values, full=True, source=wrong)

    assert quick.rejection is None, quick.rejection
    assert full.rejection is not None
    assert kind == full.checks[-1].input_set, full.rejection.reason


def test_verify_times_an_exported_header_again(tmp_path: Path) -> None:
    header = ROOT / "studies" / "elites" / "B1_H8_S512_D64_fp16.h"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", "evoengine", "verify", str(header), "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    found = json.loads(done.stdout)
    print(f"\n{found['differences']}\n{found['timing']}\n{found['failures']}\n{found['not_checked']}")

    assert int(not found["passed"]) == done.returncode, done.stderr
    assert all(why.endswith("slower") for why in found["failures"]), "right, and rebuilt as it was"
    assert {"peaky", "one hot", "races"} <= {check["input_set"] for check in found["checks"]}
    assert 0 < found["timing"]["ratio"] < 1
    assert found["timing"]["verdict"] in ("FASTER", "SAME", "SLOWER")
