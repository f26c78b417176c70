"""What every choice of an elite is worth: each of its neighbours in the search space, timed beside it.

    PYTHONPATH=. python benchmarks/knob_effects.py studies/elites/*.h --output studies/h200/knob_effects.json
    PYTHONPATH=. python benchmarks/knob_effects.py --markdown --output studies/h200/knob_effects.json

WHAT is an exported header, the JSON of `search`, or a config list or label, with a shape behind an @ where it has none
of its own (`STAGES=1,BLOCK_N=512@1,8,512,64`). On its shape it is the control; its neighbours are, for each axis, every
other choice with all other axes as they are. Where a rule forbids that, the rule is recorded, and the neighbour is the
nearest config that changes as few other axes as possible (`also`, at most two); where there is none, it is refused.

All are built, proven right and timed as in a final run: in rounds of random order beside the control, in a fresh
process, but without competitors. `ratio` is the neighbour's time over the control's with its 95 % interval: 1.05 says
that the control's choice is worth 5 % against this one. A neighbour of the same cubin, launch and arguments is `dead`:
there the knob does nothing. The control runs once more as its own neighbour (`again`): how far equal kernels differ.

--markdown prints the table of the template's README from --output; without a WHAT nothing is measured.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.knobs import tables
from benchmarks.knobs.neighbours import Neighbour, neighbours
from evoengine import __version__
from evoengine.build import Builder, BuildRequest
from evoengine.cli.arguments import STORAGE
from evoengine.cli.entries import Entry, entries
from evoengine.cli.resolve import Target, find_target, find_template, space_path
from evoengine.devices.cuda import CudaDevice, Final, Finals
from evoengine.errors import EvoengineError, TemplateError, UserError
from evoengine.gates import Ceilings
from evoengine.problem import make_problem, problem_fields
from evoengine.question import Question
from evoengine.space import Config, load_space
from evoengine.verdict import Artifact, Candidate, Gate, Rejection

SEED = 20_011
"""Of inputs and order, as in `compare`."""
GROUP = 24
"""Neighbours a run at most. A run costs some seconds to start; one that drops a neighbour starts again."""
STEP_SECONDS = 30.0
"""A step is 250 launches or a window of a few ms; what takes longer hangs."""

METHOD = "device time per launch, warm L2, windows interleaved in one fresh process, proven right before and after"

Work = list[tuple[Candidate, Artifact]]
Row = dict[str, Any]


def built(
    question: Question, arch: str, control: Config, found: Sequence[Neighbour]
) -> tuple[Artifact, list[Artifact | Rejection | None]]:
    """The control's artifact, and for each neighbour its own, why it has none, or None where it has no config.

    Raises:
        TemplateError: the control does not build, or takes more than the limits allow.
    """

    def request(config: Config) -> BuildRequest:
        defines = question.template.module.defines(config.values, question.problem)
        return BuildRequest(defines, question.launch(config.values).smem_bytes)

    configs = [control, *(one.config for one in found if one.config is not None)]
    with Builder(question.template, arch) as builder:
        results = builder.build([request(config) for config in configs])
    for index, (config, result) in enumerate(zip(configs, results, strict=True)):
        if isinstance(result, Artifact):
            results[index] = question.resource_gate(config.values, result) or result
    first, *rest = results
    if isinstance(first, Rejection):
        raise TemplateError(f"{control.label} was refused at the gate {first.gate}: {first.reason}")
    each = iter(rest)
    return first, [None if one.config is None else next(each) for one in found]


def race(entry: Entry, target: Target, control: Artifact, groups: Sequence[Work], seconds: float) -> Iterator[Finals]:
    """The final run of each group, as long as the next one is likely to end within `seconds`; the first in any case."""
    assert target.ordinal is not None, "timing needs a card"
    question, started, longest = entry.question, time.monotonic(), 0.0
    with CudaDevice(question.template, question.problem, target.device, ordinal=target.ordinal, seed=SEED) as device:
        for number, work in enumerate(groups):
            begun = time.monotonic()
            if number and begun - started + longest > seconds:
                return
            yield device.compare((entry.config.values, control), work, SEED, (), STEP_SECONDS)
            longest = max(longest, time.monotonic() - begun)


def effects(entry: Entry, target: Target, seconds: float) -> tuple[Row, Row]:
    """One row, and the environment it was measured in.

    Raises:
        TemplateError: the control is refused or wrong.
    """
    question, control = entry.question, entry.config
    refusal = question.static_gate(control.values)
    if refusal is not None:
        raise TemplateError(f"{control.label} was refused at the gate static: {refusal.reason}")
    started = time.monotonic()
    found = list(neighbours(question, control))
    artifact, results = built(question, target.device.arch, control, found)
    build_seconds = time.monotonic() - started
    own = question.identity(control.values, artifact.cubin_sha256)
    identities: dict[int, str] = {}
    distinct: dict[str, tuple[int, Candidate, Artifact]] = {}
    for index, (one, result) in enumerate(zip(found, results, strict=True)):
        if one.config is None or not isinstance(result, Artifact):
            continue
        identities[index] = question.identity(one.config.values, result.cubin_sha256)
        if identities[index] != own:
            candidate = Candidate(index + 1, one.config, "knob")
            distinct.setdefault(identities[index], (one.steps, candidate, result))
    # The nearest first: what the time does not suffice for is then far from the control.
    work: Work = [(candidate, result) for _, candidate, result in sorted(distinct.values(), key=lambda one: one[0])]
    groups = _groups((Candidate(0, control, "knob"), artifact), work)
    verdicts: dict[str, Final | Rejection] = {}
    runs: list[Finals] = []
    for finals in race(entry, target, artifact, groups, seconds - build_seconds):
        runs.append(finals)
        (_, again), *timed = finals.finalists
        if isinstance(again, Rejection):
            raise TemplateError(f"{control.label} is wrong beside itself: {again.reason}")
        for candidate, verdict in timed:
            verdicts[identities[candidate.number - 1]] = verdict
    axes: dict[str, Row] = {axis.name: {"choice": control.values[axis.name], "others": []} for axis in question.space}
    for index, (one, result) in enumerate(zip(found, results, strict=True)):
        made = _built(one, result, artifact)
        if index in identities:
            made["dead"] = identities[index] == own
            made |= {} if made["dead"] else _timed(verdicts.get(identities[index]))
        axes[one.axis]["others"].append(made)
    row = {
        "label": question.problem.label,
        "shape": problem_fields(question.problem),
        "limits": question.limits.name,
        "what": entry.what,
        "recorded_template_digest": entry.recorded_digest,
        "control": {"label": control.label, "config": control.values, **_artifact(artifact), **_times(runs[0].control)},
        "again": [_timed(finals.finalists[0][1]) for finals in runs],
        "axes": axes,
        "build_seconds": build_seconds,
        "seconds": time.monotonic() - started,
    }
    return row, {**runs[0].environment, "toolchain": artifact.compiler}


def _groups(again: tuple[Candidate, Artifact], work: Work) -> list[Work]:
    """`work` in as few runs as GROUP allows, of even size, and the control again in each."""
    count = max(math.ceil(len(work) / GROUP), 1)
    size = math.ceil(len(work) / count)
    return [[again, *work[at * size : (at + 1) * size]] for at in range(count)]


def _built(one: Neighbour, result: Artifact | Rejection | None, control: Artifact) -> Row:
    made: Row = {"choice": one.choice, "also": dict(one.also)}
    if one.broken is not None:
        made["forbidden"] = {"rule": one.broken.rule, "reason": one.broken.reason}
    if one.config is not None:
        made["label"] = one.config.label
    if isinstance(result, Rejection):
        used = {
            name: result.evidence[name]
            for name in ("registers", "spill_bytes", "smem_bytes")
            if name in result.evidence
        }
        return made | _timed(result) | used
    if result is None:
        return made | {"gate": str(Gate.STATIC), "rejected": made["forbidden"]["reason"]}
    return made | _artifact(result) | {"cubin_changed": result.cubin_sha256 != control.cubin_sha256}


def _artifact(artifact: Artifact) -> Row:
    used = artifact.resources
    return {
        "cubin_sha256": artifact.cubin_sha256,
        "registers": used.registers,
        "spill_bytes": used.spill_bytes,
        "smem_bytes": used.static_smem_bytes + used.smem_bytes,
    }


def _timed(verdict: Final | Rejection | None) -> Row:
    if verdict is None:
        return {"skipped": "out of time"}
    if isinstance(verdict, Rejection):
        return {"gate": str(verdict.gate), "rejected": verdict.reason}
    return {"ratio": verdict.ratio, "ratio_95": [verdict.ratio_low, verdict.ratio_high], **_times(verdict)}


def _times(final: Final) -> Row:
    return {"median_us": final.median_us, "noise": final.noise, "windows": len(final.windows_us)}


def found_entries(whats: Sequence[str], arguments: argparse.Namespace, target: Target) -> list[Entry]:
    """Every WHAT on its own shape, on the one behind its @, or on every --shape.

    Raises:
        UserError: a WHAT cannot be read.
    """
    found = []
    for text in whats:
        what, _, shape = text.partition("@")
        if what.endswith(".json"):
            found.append(_study(Path(what), arguments, target))
            continue
        shapes = [shape] if shape else arguments.shape
        asked = {**vars(arguments), "what": [what], "shape": shapes, "shapes": None, "storage": STORAGE}
        found += entries(argparse.Namespace(**asked), target)
    return found


def _study(path: Path, arguments: argparse.Namespace, target: Target) -> Entry:
    """The best elite of a search that was printed as JSON."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        values, fields = document["elites"][0]["config"], document["problem"]
        template, digest = document["template"], document["template_digest"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): give what `search --json` printed, with an elite") from error
    found = find_template(arguments.template or template)
    space = load_space(space_path(arguments.space, found))
    question = Question(found, space, make_problem(found.module.PROBLEM, fields), target.limits, Ceilings())
    return Entry(str(path), question, space.config(values), digest)


def run(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", metavar="WHAT", nargs="*", help="header, search's JSON, config list or label [@SHAPE]")
    parser.add_argument("--output", metavar="FILE", type=Path, required=True, help="JSON, written after every shape")
    parser.add_argument("--seconds", type=float, default=40.0, help="per shape; the farthest neighbours are skipped")
    parser.add_argument("--markdown", action="store_true", help="print the README's table instead of the compact one")
    parser.add_argument("--shape", metavar="SHAPE", action="append", help="for what has no shape of its own")
    parser.add_argument("--limits", metavar="CARD", help="neighbours must fit this card too, such as l4")
    parser.add_argument("--device", default="auto", help="auto, cuda or cuda:N")
    parser.add_argument("--template", metavar="DIR", help="default: attention")
    parser.add_argument("--space", metavar="FILE", help="default: the template's own")
    arguments = parser.parse_args(argv)
    failed = False
    if arguments.what:
        document, failed = measure(arguments, " ".join(["python benchmarks/knob_effects.py", *argv]))
    else:
        document = tables.read(arguments.output)
    if arguments.markdown:
        print(tables.markdown(document))
    else:
        tables.show(document)
    return int(failed)


def measure(arguments: argparse.Namespace, command: str) -> tuple[Row, bool]:
    """Every shape, written one by one; and whether one has failed."""
    target = find_target(arguments.device, "l4", arguments.limits)
    if target.ordinal is None:
        raise UserError("knob_effects measures, and there is no GPU here: `evoengine doctor` says what is missing")
    asked = found_entries(arguments.what, arguments, target)
    document: Row = {"command": command, "evoengine": __version__, "created_at": datetime.now(UTC).isoformat()}
    document |= {"method": METHOD, "environment": {}, "rows": []}
    failed = False
    for number, entry in enumerate(asked, 1):
        question = entry.question
        where = f"{number}/{len(asked)} {question.problem.label}: {entry.what}"
        try:
            row, environment = effects(entry, target, arguments.seconds)
        except TemplateError as error:
            failed = True
            print(f"{where}: {error}", file=sys.stderr)
            row = {"label": question.problem.label, "what": entry.what, "failed": str(error)}
        else:
            print(f"{where}: {row['seconds']:.0f} s", file=sys.stderr)
            digests = {"template_digest": question.template.digest, "space_digest": question.space.digest}
            document["environment"] = document["environment"] or environment | digests
        document["rows"].append(row)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return document, failed


def main() -> int:
    try:
        return run(sys.argv[1:])
    except EvoengineError as error:
        print(f"knob_effects: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
