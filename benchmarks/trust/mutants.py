"""Who catches bugs planted in the attention template: the interpreter, and the gate on the GPU.

    python -m benchmarks.trust.mutants --output studies/h200/trust.json

Every mutant of `benchmarks.trust.planted` is compiled and judged as a candidate of the unchanged template: by the
interpreter (for sm_89, those of wgmma for sm_90a), then on the card, at the level of a search (`quick`), where that
accepts it at the level of a final run (`full`), and where that does too by compute-sanitizer's racecheck (`sanitizer`),
as `search --sanitize` runs it over finalists; there the original has to be clean. After a mutant that took the worker
down the original is judged, which must be measured. The section `mutants` is written anew after each problem, and what
the file has of such a card, driver, judge and template is not judged again: a run that breaks off goes on. Exit code 1
where the card accepts a mutant that it should refuse, or refuses an original.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.trust.document import judge_digest, kept_section, put_section, this_card
from benchmarks.trust.planted import MUTANTS, TEMPLATE
from benchmarks.trust.planted.building import Built, build, request
from benchmarks.trust.planted.interpreting import Interpreted, interpret
from benchmarks.trust.planted.mutant import HOPPER, SPACE, Mutant
from evoengine.build import Builder, find_toolchain
from evoengine.devices.cuda import CudaDevice, find_gpu
from evoengine.devices.cuda.sanitizer import PROGRAM, Sanitizer
from evoengine.devices.cuda.watched import find_tool
from evoengine.errors import EvoengineError, TemplateError, UserError
from evoengine.hardware import DeviceLimits
from evoengine.problem import AttentionProblem
from evoengine.space import Values
from evoengine.verdict import Artifact, Candidate, Gate, Measurement, Rejection

INTERPRETED_ARCH = "sm_89"
SEED = 20_251
STEP_SECONDS = 30.0
"""Of the final run; a step is 250 launches."""

Row = dict[str, Any]


def rejected(rejection: Rejection) -> Row:
    """What a section says of a rejection: the gate, the reason, and the input set that brought it to light."""
    row: Row = {"caught": True, "gate": str(rejection.gate), "reason": rejection.reason}
    if rejection.checks and rejection.checks[-1].reason:
        last = rejection.checks[-1]
        row |= {
            "input_set": last.input_set,
            "shape": last.shape,
            "repeats": last.repeats,
            "repeat_mismatches": last.repeat_mismatches,
        }
    return row


def of_interpreter(built: Built, verdict: Interpreted) -> Row:
    if isinstance(verdict, Rejection):
        return rejected(verdict)
    return {"caught": False, "why": built.mutant.unseen}


def control(problem: AttentionProblem, arch: str) -> tuple[Values, Artifact]:
    """The template's default config, which candidates are timed beside."""
    with Builder(TEMPLATE, arch) as builder:
        (artifact,) = builder.build([request(SPACE.default, problem)])
    if isinstance(artifact, Rejection):
        raise TemplateError(f"the default config does not build: {artifact.reason}")
    return SPACE.default, artifact


def candidate(number: int, values: Values) -> Candidate:
    return Candidate(number, SPACE.config(values), "mutant")


def runs_on(mutant: Mutant, limits: DeviceLimits) -> bool:
    return limits.arch == HOPPER or not mutant.needs_hopper


class Jury:
    """The card's verdicts on the mutants of one problem."""

    def __init__(self, problem: AttentionProblem, limits: DeviceLimits) -> None:
        self._control = control(problem, limits.arch)
        self._device = CudaDevice(TEMPLATE, problem, limits, seed=SEED)
        tool = find_tool(PROGRAM)
        self._sanitizer = None if tool is None else Sanitizer(tool, TEMPLATE, 0, SEED)
        self.environment: Mapping[str, Any] = {}
        self.originals_accepted = 0
        self.faults_survived = 0

    def judge(self, group: Sequence[Built]) -> Iterator[tuple[Built, Row]]:
        """Every mutant's row, the survivors of the quick level last.

        Raises:
            TemplateError: an original is refused, alone or after a mutant.
        """
        with self._device as device:
            self.environment = device.start(*self._control).environment
            for number, built in enumerate({one.original.cubin_sha256: one for one in group}.values()):
                self._accept(number, built, "")
                self.originals_accepted += 1
            survivors: list[Built] = []
            for number, built in enumerate(group):
                ((_, verdict),) = device.judge([(candidate(number, built.mutant.values), built.artifact)])
                if isinstance(verdict, Measurement):
                    survivors.append(built)
                    continue
                if verdict.gate is not Gate.CORRECTNESS:
                    self._accept(number, built, f" after mutant {built.mutant.name}")
                    self.faults_survived += 1
                yield built, {"level": "quick", **rejected(verdict)}
            if survivors:
                yield from self._finals(survivors)

    def _accept(self, number: int, built: Built, when: str) -> None:
        values = built.mutant.values
        ((_, verdict),) = self._device.judge([(candidate(number, values), built.original)])
        if isinstance(verdict, Rejection):
            label = SPACE.config(values).label
            raise TemplateError(f"the original {label} is refused{when}: {verdict.gate}, {verdict.reason}")

    def _finals(self, survivors: Sequence[Built]) -> Iterator[tuple[Built, Row]]:
        work = [(candidate(number, built.mutant.values), built.artifact) for number, built in enumerate(survivors)]
        finals = self._device.compare(self._control, work, SEED + 1, (), STEP_SECONDS)
        for built, (_, verdict) in zip(survivors, finals.finalists, strict=True):
            if isinstance(verdict, Rejection):
                yield built, {"level": "full", **rejected(verdict)}
            else:
                yield built, self._sanitized(built)

    def _sanitized(self, built: Built) -> Row:
        """What racecheck says of a mutant that the gate accepted at both levels."""
        if self._sanitizer is None:
            return {"level": "full", "caught": False}
        values = built.mutant.values
        problems = TEMPLATE.module.small_problems(values, built.mutant.problem)
        of_original, of_mutant = (
            self._sanitizer.check("racecheck", one.cubin, values, problems, one.ptx.read_text(errors="replace"))
            for one in (built.original, built.artifact)
        )
        said = {"original": of_original.line, "mutant": of_mutant.line}
        rejection = of_mutant.rejection() if of_original.clean else None
        return {"level": "sanitizer", **(rejected(rejection) if rejection else {"caught": False}), "racecheck": said}


def section(rows: Sequence[Row], originals: int, survived: int, seconds: float) -> Row:
    """The document's section so far; `missed` are mutants that the card accepted at every level."""
    seen = [row for row in rows if "caught" in row["gpu"]]
    missed = [row for row in seen if not row["gpu"]["caught"]]
    return {
        "mutants": list(rows),
        "planted": len(rows),
        "judged_on_the_gpu": len(seen),
        "caught_by_interpreter": sum(row["interpreter"]["caught"] for row in rows),
        "caught_by_gpu_quick": sum(row["gpu"].get("level") == "quick" for row in seen),
        "caught_by_gpu_full": sum(row["gpu"].get("level") == "full" and row["gpu"]["caught"] for row in seen),
        "caught_by_sanitizer": sum(row["gpu"].get("level") == "sanitizer" and row["gpu"]["caught"] for row in seen),
        "missed_by_gpu": [row["name"] for row in missed if "hidden" not in row],
        "hidden_from_gpu": [row["name"] for row in missed if "hidden" in row],
        "originals_accepted": originals,
        "originals_accepted_after_a_fault": survived,
        "seconds": seconds,
    }


def described(mutant: Mutant, of_interpreter: Row) -> Row:
    """A row before the card has seen its mutant."""
    row = {
        "name": mutant.name,
        "models": mutant.models,
        "files": sorted({edit.file for edit in mutant.edits}),
        "config": SPACE.config(mutant.values).label,
        "problem": mutant.problem.label,
        "interpreter": of_interpreter,
        "gpu": {"skipped": "not reached"},
    }
    return row | ({"hidden": mutant.hidden} if mutant.hidden else {})


def rows_of(listed: Sequence[Mutant], before: Row) -> dict[str, Row]:
    """Every mutant's row: what an earlier run knows of it, else the interpreter's verdict.

    What the card accepted then, and should not have, it is to judge again.
    """
    known = {(row["name"], row["config"], row["problem"]): row for row in before.get("mutants", ())}
    found = [known.get((one.name, SPACE.config(one.values).label, one.problem.label)) for one in listed]
    built = build([one for one, row in zip(listed, found, strict=True) if row is None], INTERPRETED_ARCH)
    verdicts = iter(interpret([(one.mutant.values, one.mutant.problem, one.artifact) for one in built]))
    fresh = {one.mutant.name: of_interpreter(one, verdict) for one, verdict in zip(built, verdicts, strict=True)}
    rows = {}
    for mutant, row in zip(listed, found, strict=True):
        rows[mutant.name] = described(mutant, row["interpreter"] if row else fresh[mutant.name])
        if row and (row["gpu"].get("caught") or mutant.hidden):
            rows[mutant.name]["gpu"] = row["gpu"]
    return rows


def run(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Judge bugs planted in the attention template.")
    parser.add_argument("--output", metavar="FILE", type=Path, required=True, help="trust document to write to")
    arguments = parser.parse_args(argv)
    limits = find_gpu()
    if limits is None:
        raise UserError("no GPU here: `evoengine doctor` says what is missing; tests/test_mutants.py needs none")
    started = time.monotonic()
    ordered = sorted(MUTANTS, key=lambda mutant: mutant.problem.label)
    setting: Row = {
        **this_card(limits),
        "judge": judge_digest(),
        "template_digest": TEMPLATE.digest,
        "space_digest": SPACE.digest,
        "toolchain": find_toolchain("nvrtc").version,
    }
    before = kept_section(arguments.output, "mutants", setting)
    rows = rows_of(ordered, before)
    originals = before.get("originals_accepted", 0)
    survived = before.get("originals_accepted_after_a_fault", 0)
    so_far = section(list(rows.values()), originals, survived, before.get("seconds", 0.0))
    left = [one for one in ordered if runs_on(one, limits) and "caught" not in rows[one.name]["gpu"]]
    for problem, built in groupby(build(left, limits.arch), key=lambda one: one.mutant.problem):
        group = list(built)
        jury = Jury(problem, limits)
        try:
            for one, row in jury.judge(group):
                rows[one.mutant.name]["gpu"] = row
                print(
                    f"{one.mutant.name}: {row['level']}: {row.get('reason', 'accepted')}", file=sys.stderr, flush=True
                )
        finally:
            originals += jury.originals_accepted
            survived += jury.faults_survived
            seconds = before.get("seconds", 0.0) + time.monotonic() - started
            so_far = section(list(rows.values()), originals, survived, seconds)
            put_section(arguments.output, "mutants", so_far, {**jury.environment, **setting})
    print(f"missed: {', '.join(so_far['missed_by_gpu']) or 'none'}", file=sys.stderr)
    return 1 if so_far["missed_by_gpu"] else 0


def main() -> int:
    try:
        return run(sys.argv[1:])
    except EvoengineError as error:
        print(f"mutants: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
