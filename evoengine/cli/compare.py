"""`evoengine compare`: a config beside every competitor there is, on one shape or many, in one interleaved run each."""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from evoengine import __version__
from evoengine.build import Builder
from evoengine.cli.entries import Entry, entries
from evoengine.cli.output import write_whole
from evoengine.cli.resolve import Target, find_target
from evoengine.cli.tables import console, table
from evoengine.comparison import best_competitor, refused, row
from evoengine.devices.cuda import CudaDevice, Finals
from evoengine.devices.cuda.messages import COMPETITORS
from evoengine.devices.cuda.shapes import race_all
from evoengine.errors import TemplateError, UserError
from evoengine.problem import members_of
from evoengine.question import Question
from evoengine.space import Config
from evoengine.verdict import Artifact, Candidate, Rejection

SEED = 20_011
"""Of inputs and order; fixed, so that two comparisons see the same inputs, and none that a search uses by default."""


def run(arguments: argparse.Namespace) -> int:
    if arguments.output and os.path.exists(arguments.output):  # before minutes are measured for nothing
        raise UserError(f"{arguments.output} exists: remove it, or give another --output")
    target = find_target(arguments.device, "l4", arguments.limits)
    compared = entries(arguments, target)
    if target.ordinal is None:
        raise UserError("compare measures, and there is no GPU here: `evoengine doctor` says what is missing")
    document: dict[str, Any] = {
        "command": arguments.command_line,
        "evoengine": __version__,
        "created_at": datetime.now(UTC).isoformat(),
        "environment": {},
        "rows": [],
    }
    progress = console(stderr=True)
    for number, entry in enumerate(compared, 1):
        question = entry.question
        progress.print(f"{number}/{len(compared)} {question.problem.label}: {entry.what}", soft_wrap=True)
        made, environment = compare(entry, target, force=arguments.force)
        document["rows"].append(made)
        document["environment"] = document["environment"] or environment
        if arguments.output:  # after every shape: what is measured stays, whatever the next one does
            content = json.dumps(document, indent=2) + "\n"
            write_whole(arguments.output, content.encode(), force=True)
    if arguments.json:
        print(json.dumps(document, indent=2))
    else:
        show(document)
    return int(any("rejected" in made["ours"] for made in document["rows"]))


def compare(entry: Entry, target: Target, *, force: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """One row, and the environment it was measured in (empty where the config was refused before it could run).

    Raises:
        TemplateError: the default config, which everything is timed beside, does not build or is wrong.
        UserError: the card is busy, and not `force`.
    """
    assert target.ordinal is not None, "a comparison needs a card"
    question, config = entry.question, entry.config
    ours: dict[str, Any] = {
        "what": entry.what,
        "config": config.values,
        "label": config.label,
        "template_digest": question.template.digest,
    }
    if entry.recorded_digest is not None:
        ours["recorded_template_digest"] = entry.recorded_digest
    refusal = question.static_gate(config.values)
    if refusal is not None:
        return refused(question.problem, question.limits, ours, refusal), {}
    with Builder(question.template, target.device.arch) as builder:
        default, built = builder.build([question.build_request(one.values) for one in (question.default, config)])
    if isinstance(default, Rejection):
        raise TemplateError(f"the default config does not build: {default.reason}")
    if isinstance(built, Artifact):
        ours |= _built(built)
    refusal = built if isinstance(built, Rejection) else question.resource_gate(config.values, built)
    if refusal is not None:
        return refused(question.problem, question.limits, ours, refusal), {}
    assert isinstance(built, Artifact), built
    control = question.default.values, default
    same = question.identity(*_identity(question.default, default)) == question.identity(*_identity(config, built))
    work = [] if same else [(Candidate(1, config, "compare"), built)]
    finals = measure(question, target, control, work, force)
    environment = {**finals.environment, "toolchain": built.compiler}
    return row(question.problem, target.device, question.limits, ours, finals), environment


def measure(
    question: Question,
    target: Target,
    control: tuple[dict[str, int], Artifact],
    work: list[tuple[Candidate, Artifact]],
    force: bool,
    seed: int = SEED,
    competitors: Sequence[str] = COMPETITORS,
) -> Finals:
    """The interleaved run itself; of a set of problems one for each."""
    assert target.ordinal is not None, "a comparison needs a card"
    values, default = control
    members, ordinal = members_of(question.problem), target.ordinal

    def race(at: int, own: Sequence[tuple[Candidate, Artifact]]) -> Finals:
        problem = members[at].problem
        with CudaDevice(question.template, problem, target.device, ordinal=ordinal, seed=seed, force=force) as device:
            return device.compare((values, default.parts[at]), own, seed, competitors)

    return race_all(members, work, seed, race) if len(members) > 1 else race(0, work)


def show(document: dict[str, Any]) -> None:
    """One table a shape, and one of all shapes where there are several."""
    rows = document["rows"]
    out = console()
    environment = document["environment"]
    if environment:
        out.print(f"{environment['gpu']}, driver {environment.get('driver', '?')}, torch {environment['torch']}")
    for made in rows:
        _show_row(made)
    if len(rows) > 1:
        _show_all(rows)


def _show_row(made: dict[str, Any]) -> None:
    out, ours = console(), made["ours"]
    out.print(f"\n{made['label']}, limits of {made['limits']}: {ours['what']}", style="bold")
    out.print(f"ours: {ours['label']}", soft_wrap=True)
    recorded = ours.get("recorded_template_digest", ours["template_digest"])
    if recorded != ours["template_digest"]:
        out.print(f"the template has changed since ({recorded}, now {ours['template_digest']}): built from today's")
    if "rejected" in ours:
        out.print(f"ours was refused at the gate {ours['gate']}: {ours['rejected']}", soft_wrap=True)
    if "roofline_us" not in made:
        return
    out.print(
        f"roofline {made['roofline_us']:.3f} us ({made['roofline_bound']}), launch floor (an empty kernel) "
        f"{made['launch_floor_us']:.3f} us ±{made['launch_floor_noise']:.1%}"
    )
    base = "default" if "rejected" in ours else "ours"
    drawn = table(
        "",
        "competitor",
        ">us",
        ">cold us",
        ">noise",
        f">time / {base}",
        ">95 %",
        ">TFLOP/s",
        ">roofline",
        ">floor",
        ">error",
        "",
    )
    measured = [one for one in made["competitors"] if "median_us" in one]
    if "median_us" in ours:
        measured.append(ours)
    if not ours["is_default"]:
        measured.append({**made["default"], "name": "our default config"})
    for one in sorted(measured, key=lambda figures: float(figures["median_us"])):
        low, high = one["ratio_to_ours_95"]
        lost = "" if one["right"] else "WRONG; "
        lost += f"{one['nonfinite']} values are not finite; " if one["nonfinite"] else ""
        drawn.add_row(
            one["name"],
            f"{one['median_us']:.3f}",
            f"{one['cold_median_us']:.3f}" if one["cold_median_us"] else "-",
            f"{one['noise']:.1%}",
            f"{one['ratio_to_ours']:.2f}x",
            f"{low:.3f}-{high:.3f}",
            f"{one['tflops']:.1f}",
            f"{one['roofline_share']:.0%}",
            f"{one['launch_floor_share']:.0%}",
            f"{one['error']:.1e}",
            lost + one["about"],
        )
    for one in made["competitors"]:
        if "unavailable" in one:
            drawn.add_row(one["name"], *["-"] * 9, f"does not run here: {one['unavailable']}")
    out.print(drawn)


def _show_all(rows: list[dict[str, Any]]) -> None:
    """How many times faster ours is than PyTorch's default, its flash backend, and whoever is fastest."""
    drawn = table("\nall shapes", "shape", ">ours us", ">vs sdpa", ">vs sdpa_flash", ">vs best", "best competitor")
    columns: dict[str, list[float]] = {"sdpa": [], "sdpa_flash": [], "best": []}
    for made in rows:
        if "median_us" not in made["ours"]:
            drawn.add_row(made["label"], "refused", *["-"] * 4)
            continue
        ratios = {one["name"]: one["ratio_to_ours"] for one in made["competitors"] if "median_us" in one}
        best = best_competitor(made)
        if best is not None:
            ratios["best"] = best["ratio_to_ours"]
        for name, column in columns.items():
            column.extend([ratios[name]] if name in ratios else [])
        cells = [f"{ratios[name]:.2f}x" if name in ratios else "-" for name in columns]
        drawn.add_row(made["label"], f"{made['ours']['median_us']:.3f}", *cells, best["name"] if best else "-")
    means = [f"{statistics.geometric_mean(column):.2f}x" if column else "-" for column in columns.values()]
    drawn.add_row("geometric mean", "", *means, "")
    console().print(drawn)


def _identity(config: Config, artifact: Artifact) -> tuple[dict[str, int], str]:
    return config.values, artifact.cubin_sha256


def _built(artifact: Artifact) -> dict[str, Any]:
    resources = artifact.resources
    return {
        "registers": resources.registers,
        "spill_bytes": resources.spill_bytes,
        "smem_bytes": resources.smem_bytes + resources.static_smem_bytes,
        "cubin_sha256": artifact.cubin_sha256,
    }
