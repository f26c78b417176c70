"""`evoengine verify`: is a config still what its study or header says?"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evoengine import __version__
from evoengine.archive.archive import Archive
from evoengine.build import Builder
from evoengine.cli.compare import measure
from evoengine.cli.headers import open_header
from evoengine.cli.resolve import Target, find_target, reopen
from evoengine.cli.storage import existing_storage
from evoengine.cli.tables import console, table
from evoengine.devices.interpreter import InterpreterDevice
from evoengine.errors import TemplateError, UserError
from evoengine.export.chosen import chosen_row
from evoengine.gates import Ceilings
from evoengine.hardware import CARDS, gate_limits
from evoengine.question import Question
from evoengine.space import Config
from evoengine.summary import summarise
from evoengine.verdict import Artifact, Candidate, Check, Rejection
from evoengine.verification import (
    Recorded,
    against_recorded,
    compiler_of,
    differences,
    not_reproduced,
    recorded_header,
    recorded_trial,
)

SEED = 30_011
"""Of inputs and order: none that a search, its final run or `compare` uses by default."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A config to verify, the question it answers, and what was recorded of it."""

    what: str
    question: Question
    config: Config
    recorded: Recorded


@dataclass(slots=True)
class Found:
    """What a verification has found so far; `failures` are why the config does not pass."""

    now: dict[str, str]
    failures: list[str] = dataclasses.field(default_factory=list)
    not_checked: list[str] = dataclasses.field(default_factory=list)
    checks: tuple[Check, ...] = ()
    timing: dict[str, Any] | None = None

    def refuse(self, refusal: Rejection) -> None:
        self.failures.append(f"refused at the gate {refusal.gate}: {refusal.reason}")
        self.checks = refusal.checks


def run(arguments: argparse.Namespace) -> int:
    target = find_target(arguments.device, "l4", None)
    subject = find_subject(arguments, target)
    found = verify(subject, target, force=arguments.force)
    document = {
        "command": arguments.command_line,
        "evoengine": __version__,
        "what": subject.what,
        "shape": subject.question.problem.label,
        "label": subject.config.label,
        "config": subject.config.values,
        "recorded": dataclasses.asdict(subject.recorded),
        "differences": differences(subject.recorded, found.now),
        "seed": SEED,
        "checks": [_finite(dataclasses.asdict(check)) for check in found.checks],
        "timing": found.timing,
        "not_checked": found.not_checked,
        "failures": found.failures,
        "passed": not found.failures,
    }
    if arguments.json:
        print(json.dumps(document, indent=2))
    else:
        show(document)
    return int(bool(found.failures))


def find_subject(arguments: argparse.Namespace, target: Target) -> Subject:
    """A file is a header, anything else a study of the database.

    Raises:
        UserError: there is no such thing, or it holds no config that passed every gate.
    """
    path = Path(arguments.what)
    if not path.is_file():
        if path.suffix == ".h":
            raise UserError(f"{arguments.what!r} is no file: give an exported header, or a study (`evoengine studies`)")
        return _of_study(arguments, target)
    if arguments.trial is not None:
        raise UserError(f"--trial {arguments.trial} means a trial of a study, and {path} is a header: leave it out")
    found = open_header(path, arguments.template, arguments.space)
    card = next((one for one in CARDS.values() if one.name == found.facts.device), target.limits)
    limits = card if target.ordinal is None else target.limits
    question = Question(found.template, found.space, found.problem, limits, Ceilings())
    return Subject(str(path), question, found.space.config(found.values), recorded_header(found.facts))


def _of_study(arguments: argparse.Namespace, target: Target) -> Subject:
    with closing(Archive.open(existing_storage(arguments.storage))) as archive:
        study = archive.open_study(arguments.what)
        question = reopen(study.spec, template_folder=arguments.template, space_file=arguments.space, stale=True)
        records = study.records()
        known = summarise(study, records, question.launches(records), question.limits, top=study.spec.budget)
        row = chosen_row(known, question, records, arguments.trial)
        record = next(record for record in records if record.number == row["trial"])
        elite = next((elite for elite in study.elites() if elite.number == row["trial"]), None)
    if target.ordinal is not None:
        question = dataclasses.replace(question, limits=gate_limits(target.device, question.limits))
    recorded = recorded_trial(study.spec, record, elite)
    return Subject(f"trial {record.number} of study {study.name}", question, record.config, recorded)


def verify(subject: Subject, target: Target, *, force: bool = False) -> Found:
    """Every gate anew, and the time where there is a card.

    Raises:
        TemplateError: the default config, which everything is timed beside, does not build or is wrong.
        UserError: the compiler is not installed, another evoengine uses the card, or it is busy and not `force`.
    """
    question, values, then = subject.question, subject.config.values, subject.recorded
    found = Found({"template": question.template.digest})
    refusal = question.static_gate(values)
    if refusal is not None:
        found.refuse(refusal)
        return found
    with tempfile.TemporaryDirectory(prefix="evoengine-") as home:  # nothing that an earlier build left is believed
        compiler = compiler_of(then.compiler)
        with Builder(question.template, then.arch, compiler=compiler, home=Path(home)) as builder:
            (built,) = builder.build([question.build_request(values)])
            found.now["compiler"] = builder.toolchain.version
        if why := not_reproduced(then, question, built):
            found.failures.append(why)
        if isinstance(built, Rejection):
            return found
        found.now["cubin_sha256"] = built.cubin_sha256
        refusal = question.resource_gate(values, built)
        if refusal is not None:
            found.refuse(refusal)
        elif target.ordinal is None:
            _interpret(subject, built, found)
        else:
            with Builder(question.template, target.device.arch, compiler=compiler, home=Path(home)) as builder:
                _measure(subject, target, builder, found, force)
    return found


def _interpret(subject: Subject, built: Artifact, found: Found) -> None:
    question, candidate = subject.question, Candidate(1, subject.config, "verify")
    device = InterpreterDevice(question.template, question.problem, question.limits, jobs=1, full=True)
    with closing(device):
        ((_, verdict),) = device.judge([(candidate, built)])
    if isinstance(verdict, Rejection):
        found.refuse(verdict)
    found.checks = verdict.checks
    found.not_checked += [
        "the gate on a card: lengths and grids of their full size, races between CTAs",
        "the time against the default config, the driver",
    ]


def _measure(subject: Subject, target: Target, builder: Builder, found: Found, force: bool) -> None:
    """The full gate and the time on the card that is here, in a fresh process."""
    question, config, then = subject.question, subject.config, subject.recorded
    default, built = builder.build([question.build_request(one.values) for one in (question.default, config)])
    if isinstance(default, Rejection):
        raise TemplateError(f"the default config does not build: {default.reason}")
    found.now |= {"card": target.device.name, "arch": target.device.arch}
    if isinstance(built, Rejection):
        found.refuse(built)
        return
    same = config.values == question.default.values
    work = [] if same else [(Candidate(1, config, "verify"), built)]
    finals = measure(question, target, (question.default.values, default), work, force, SEED, competitors=())
    found.now["driver"] = str(finals.environment.get("driver", ""))
    final = finals.control if same else finals.finalists[0][1]
    found.checks = final.checks
    if isinstance(final, Rejection):
        found.refuse(final)
        return
    verdict = against_recorded(final, then)
    found.timing = {
        "median_us": final.median_us,
        "noise": final.noise,
        "control_us": finals.control.median_us,
        "ratio": final.ratio,
        "ratio_95": [final.ratio_low, final.ratio_high],
        "recorded_ratio": then.ratio,
        "verdict": verdict,
    }
    if then.card != target.device.name:
        found.not_checked.append(f"the time: it was recorded on {then.card}")
    elif verdict == "SLOWER":
        found.failures.append(f"{final.ratio:.3f} of the default config's time, recorded {then.ratio:.3f}: slower")
    elif verdict is None:
        found.not_checked.append("the time against what was recorded: nothing had been measured")


def _finite(fields: dict[str, Any]) -> dict[str, Any]:
    """The same as strict JSON, which knows no infinity."""
    return {
        key: value if not isinstance(value, float) or math.isfinite(value) else str(value)
        for key, value in fields.items()
    }


def show(document: dict[str, Any]) -> None:
    """What changed, what was proven, how fast it is, and the answer in the last line."""
    out = console()
    out.print(f"{document['what']}: {document['shape']}, {document['label']}", soft_wrap=True)
    if document["differences"]:
        changes = table("\nchanged since", "", "recorded", "now")
        for one in document["differences"]:
            changes.add_row(one["what"], one["then"], one["now"])
        out.print(changes)
    else:
        out.print("nothing that could be compared has changed since")
    passed = [one for one in document["checks"] if not one["reason"]]
    if passed:
        worst = max(one["fro_ratio"] for one in passed)
        sets = "1 input set" if len(passed) == 1 else f"{len(passed)} input sets"
        out.print(f"{sets} passed, relative error at most {worst:.2f}x the baseline's")
    timing = document["timing"]
    if timing is not None:
        low, high = timing["ratio_95"]
        recorded = timing["recorded_ratio"]
        out.print(
            f"{timing['median_us']:.3f} us, {timing['ratio']:.3f} of the default config's time ({low:.3f}-{high:.3f})"
            + ("" if recorded is None else f"; recorded {recorded:.3f}: {timing['verdict']}"),
            soft_wrap=True,
        )
    for what in document["not_checked"]:
        out.print(f"not checked: {what}", soft_wrap=True)
    for why in document["failures"]:
        out.print(f"FAILED: {why}", soft_wrap=True)
    if document["passed"]:
        out.print("verified" + (", as far as it could be checked here" if document["not_checked"] else ""))
