"""Fit the costs of the latency estimate to recorded spaces, and judge its ranking of every recorded config.

    python benchmarks/fit_estimate.py studies/h200/spaces/mission.jsonl.gz \\
        --judge studies/h200/spaces/mission_l4.jsonl.gz --output studies/h200/estimate.json

A random half of the configs of the first recordings is fitted (least squares of the logarithm of estimated over
measured time, by coordinate search), the other half and every recording of --judge only judged. The constants belong
into `Costs` of evoengine/devices/estimate.py; a test holds them against the output. Spearman's rank correlation with
ties averaged; `best_place` is the place of the fastest measured config in the estimate's order, from 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evoengine.devices.estimate import FITTED, Costs, candidate_us
from evoengine.errors import EvoengineError, UserError
from evoengine.hardware import CARDS, DeviceLimits
from evoengine.problem import Problem, make_problem
from evoengine.recorded.document import Document, read_document
from evoengine.space import Values, load_space
from evoengine.template import Template, load_template, shipped
from evoengine.verdict import ResourceUsage

Floats = NDArray[np.float64]
START = Costs(
    step_clocks=500.0,
    issue_clocks=4.0,
    load_clocks=600.0,
    copy_clocks=10.0,
    slow_copy_clocks=30.0,
    spill_clocks=10.0,
    merge_line_clocks=4.0,
    unit_overlap=2.0,
    load_overlap=2.0,
)
"""Where the search begins: orders of magnitude, so that the result does not depend on what was shipped before."""
FIRST_STEP, LAST_STEP = 0.3, 0.002
"""Of the coordinate search, in the logarithm of a constant."""


@dataclass(frozen=True)
class Recording:
    """The configs of a recording that were timed, each with what its build uses, and their medians in microseconds."""

    path: Path
    template: Template
    problem: Problem
    limits: DeviceLimits
    cases: list[tuple[Values, ResourceUsage]]
    measured: Floats

    def estimates(self, costs: Costs, *, compiled: bool = True) -> Floats:
        """As searches estimate them."""
        module = self.template.module
        return np.array(
            [
                candidate_us(module, values, self.problem, self.limits, used if compiled else None, costs)
                for values, used in self.cases
            ]
        )

    def part(self, chosen: NDArray[np.bool_]) -> Recording:
        cases = [case for case, keep in zip(self.cases, chosen, strict=True) if keep]
        return replace(self, cases=cases, measured=self.measured[chosen])


def read(path: Path) -> Recording:
    """A recording of the attention template. An axis younger than the recording is taken at its default.

    Raises:
        UserError: the file is no such recording, or of a device that has no datasheet here.
    """
    try:
        return _recording(path, read_document(path))
    except UserError as error:
        raise UserError(f"{path} {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no recording of configs as `record_space` writes it ({error!r})") from error


def _recording(path: Path, document: Document) -> Recording:
    device = document.head.get("device")
    limits = next((card for card in CARDS.values() if card.name == device), None)
    if limits is None:
        raise UserError(f"was recorded on {device!r}: known are {', '.join(c.name for c in CARDS.values())}")
    template = load_template(shipped("kernel_templates") / "attention")
    default = load_space(shipped("search_spaces") / "attention.py").default
    problem = make_problem(template.module.PROBLEM, document.head["problem"])
    rows = [row for row in document.entries if row.get("median_us") is not None]
    cases: list[tuple[Values, ResourceUsage]] = [
        ({**default, **row["values"]}, ResourceUsage(**row["resources"])) for row in rows
    ]
    return Recording(path, template, problem, limits, cases, np.array([row["median_us"] for row in rows]))


def log_error(recordings: Sequence[Recording], costs: Costs) -> float:
    """Root mean square of ln(estimated / measured)."""
    errors = np.concatenate([np.log(one.estimates(costs) / one.measured) for one in recordings])
    return float(np.sqrt(np.mean(errors**2)))


def fit(recordings: Sequence[Recording], start: Costs) -> Costs:
    """Coordinate search in the logarithms: a step that helps grows, one that helps in neither direction is halved."""
    best, error = start, log_error(recordings, start)
    steps = {field.name: FIRST_STEP for field in fields(Costs)}
    while max(steps.values()) > LAST_STEP:
        for name in [name for name, step in steps.items() if step > LAST_STEP]:
            for factor in (math.exp(steps[name]), math.exp(-steps[name])):
                tried = replace(best, **{name: getattr(best, name) * factor})
                if (tried_error := log_error(recordings, tried)) < error:
                    best, error = tried, tried_error
                    steps[name] *= 1.3
                    break
            else:
                steps[name] /= 2
    return best


def ranks(values: Floats) -> Floats:
    """Ranks from 0, ties averaged."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    first = np.cumsum(counts) - counts
    return np.asarray((first + (counts - 1) / 2)[inverse])


def spearman(a: Floats, b: Floats) -> float:
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def judge(recording: Recording, costs: Costs) -> dict[str, Any]:
    """How well the estimate ranks a recording's configs."""
    measured, estimated = recording.measured, recording.estimates(costs)
    fast = measured <= np.quantile(measured, 0.25)
    place = 1 + int((estimated < estimated[measured.argmin()]).sum())
    ratio = estimated / measured
    return {
        "configs": len(measured),
        "spearman": round(spearman(estimated, measured), 4),
        "spearman_fastest_quarter": round(spearman(estimated[fast], measured[fast]), 4),
        "spearman_before_compiling": round(spearman(recording.estimates(costs, compiled=False), measured), 4),
        "best_place": place,
        "best_place_percent": round(100 * place / len(measured), 2),
        "estimated_over_measured_q10_q50_q90": [round(float(q), 3) for q in np.quantile(ratio, (0.1, 0.5, 0.9))],
    }


def rounded(costs: Costs) -> Costs:
    """To three digits: what a fit of this size carries, and what estimate.py shows."""
    return Costs(**{name: float(f"{value:.3g}") for name, value in asdict(costs).items()})


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def report(fitted_on: Sequence[Path], judged: Sequence[Path], seed: int, *, refit: bool) -> dict[str, Any]:
    """Fit (or take the shipped costs), judge everything, and say what it was made of."""
    recordings = [read(path) for path in fitted_on]
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(len(one.cases)) < len(one.cases) // 2 for one in recordings]
    halves = [one.part(half) for one, half in zip(recordings, chosen, strict=True)]
    costs = rounded(fit(halves, START)) if refit else FITTED
    rows = []
    for one, half in zip(recordings, chosen, strict=True):
        for part, shown in (("fitted half", one.part(half)), ("other half", one.part(~half)), ("all", one)):
            rows.append({"recording": one.path.name, "shape": one.problem.label, "part": part} | judge(shown, costs))
    for path in judged:
        one = read(path)
        rows.append({"recording": path.name, "shape": one.problem.label, "part": "judged only"} | judge(one, costs))
    return {
        "costs": asdict(costs),
        "log_error_of_fit": round(log_error(halves, costs), 4),
        "seed": seed,
        "judged": rows,
        "sources": {path.name: digest(path) for path in (*fitted_on, *judged)},
        "template_digest": recordings[0].template.digest,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [f"{'recording':24} {'part':12} {'configs':>7} {'Spearman':>8} {'fast 1/4':>8} {'uncompiled':>10}  best"]
    for row in rows:
        lines.append(
            f"{row['recording']:24.24} {row['part']:12} {row['configs']:7} {row['spearman']:8.3f} "
            f"{row['spearman_fastest_quarter']:8.3f} {row['spearman_before_compiling']:10.3f}  "
            f"{row['best_place']} ({row['best_place_percent']:.2f} %)"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Fit and judge the latency estimate on recorded spaces.")
    parser.add_argument("recordings", nargs="+", type=Path, metavar="RECORDING", help="fitted by half, judged in full")
    parser.add_argument("--judge", nargs="+", type=Path, default=[], metavar="RECORDING", help="judged only")
    parser.add_argument("--seed", type=int, default=0, help="which half is fitted")
    parser.add_argument("--keep", action="store_true", help="judge the shipped costs, fit nothing")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON to write")
    arguments = parser.parse_args()
    result = report(arguments.recordings, arguments.judge, arguments.seed, refit=not arguments.keep)
    print(table(result["judged"]))
    print("\n".join(f"{name:17} {value:g}" for name, value in result["costs"].items()))
    if result["costs"] != asdict(FITTED):
        print("these differ from Costs in evoengine/devices/estimate.py: enter them there")
    if arguments.output is not None:
        command = " ".join(["python", *sys.argv])
        arguments.output.write_text(json.dumps({"command": command} | result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EvoengineError as error:
        sys.exit(f"fit_estimate: {error}")
