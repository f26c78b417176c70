"""`evoengine knobs`: which knobs change what runs. Compiles only; needs no GPU."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from rich.text import Text

from evoengine.build import Builder
from evoengine.cli.resolve import find_question, find_target
from evoengine.cli.tables import console, table
from evoengine.errors import UserError
from evoengine.knobs import Knob, liveness
from evoengine.problem import problem_fields
from evoengine.question import Question

STYLES = {"live": "green", "rare": "yellow", "dead": "bold red"}


def run(arguments: argparse.Namespace) -> int:
    """Exit code 1 when a knob is dead."""
    target = find_target(arguments.device, arguments.target, arguments.limits)
    question, _ = find_question(arguments, target, arguments.shape or "")
    if not question.feasible.points:
        raise UserError(
            f"no config of {question.space.name} is feasible for {question.problem.label} within these limits: relax "
            "the limits or choose another shape"
        )
    builder = Builder(question.template, target.device.arch, compiler=arguments.compiler, jobs=arguments.jobs)
    progress = console(stderr=True)
    with builder, progress.status("building pairs") as status:
        knobs = liveness(
            question,
            builder,
            arguments.pairs,
            arguments.seed,
            lambda done, of: status.update(f"building pairs: {done} of {of}"),
        )
    if arguments.json:
        print(
            json.dumps(_document(question, target.device.arch, builder.toolchain.version, arguments, knobs), indent=2)
        )
    else:
        _show(question, knobs)
    return int(any(knob.state == "dead" for knob in knobs))


def _document(
    question: Question, arch: str, toolchain: str, arguments: argparse.Namespace, knobs: list[Knob]
) -> dict[str, Any]:
    return {
        "space": question.space.name,
        "space_digest": question.space.digest,
        "template": question.template.name,
        "template_digest": question.template.digest,
        "problem": problem_fields(question.problem),
        "limits": question.limits.name,
        "arch": arch,
        "toolchain": toolchain,
        "pairs": arguments.pairs,
        "seed": arguments.seed,
        "knobs": [{**dataclasses.asdict(knob), "compared": knob.compared, "changed": knob.changed} for knob in knobs],
    }


def _show(question: Question, knobs: list[Knob]) -> None:
    out = console()
    title = f"{question.space.name} at {question.problem.label} within the limits of {question.limits.name}"
    drawn = table(title, "knob", "state", ">changed", "no difference between", "never feasible")
    for axis, knob in zip(question.space, knobs, strict=True):
        equal = [
            f"{axis.show(link.choices[0])}-{axis.show(link.choices[1])}"
            for link in knob.links
            if link.compared and not link.changed
        ]
        drawn.add_row(
            knob.axis,
            Text(knob.state, STYLES.get(knob.state, "")),
            f"{knob.changed} of {knob.compared}" if knob.compared else "-",
            " ".join(equal),
            " ".join(axis.show(choice) for choice in knob.never),
        )
    out.print(drawn)
    for knob in knobs:
        if knob.state == "dead":
            example = next(link.unchanged for link in knob.links if link.unchanged)
            out.print(
                f"{knob.axis} is dead: no pair differs in cubin, launch or arguments, as at {example}", soft_wrap=True
            )
