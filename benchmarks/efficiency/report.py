"""The benchmark's result: a JSON document of all figures, and the tables that are read off it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.efficiency import runs as kept
from benchmarks.efficiency.figures import Figures, curve, figures, of_space, over_spaces, percent_name
from benchmarks.efficiency.methods import METHODS, version
from benchmarks.efficiency.runs import Key, Run
from evoengine.recorded.recording import FORMAT
from evoengine.recorded.score import CLOSE, MARKS, RandomSearch, random_search
from evoengine.recorded.space import RecordedSpace

RANDOM = "random, exact"


@dataclass(frozen=True, slots=True)
class Judged:
    """A space, exact random search on it, and by method and seed what each run was worth and how long it took."""

    space: RecordedSpace
    random: RandomSearch
    figures: Mapping[str, Mapping[int, Figures]]
    seconds: Mapping[str, float]


def judged(space: RecordedSpace, runs: Mapping[Key, Run], budget: int) -> Judged:
    """The runs on `space` of the methods as they are now; those of other versions do not count."""
    random = random_search(space, budget)
    digest = kept.digest(space)
    found: dict[str, dict[int, Figures]] = {}
    seconds = {}
    here = {key.method for key in runs if key.digest == digest}
    for name in filter(here.__contains__, METHODS):
        mine = {
            key.seed: run
            for key, run in runs.items()
            if key == (space.name, digest, name, version(name), key.seed, budget)
        }
        if mine:
            found[name] = {seed: figures(space, mine[seed].rows, budget, random) for seed in sorted(mine)}
            seconds[name] = float(np.median([run.seconds for run in mine.values()]))
    return Judged(space, random, found, seconds)


def groups(spaces: Sequence[Judged]) -> dict[str, list[Judged]]:
    """Public spaces, our own recordings, and all where there are both."""
    own = [one for one in spaces if one.space.source == FORMAT]
    public = [one for one in spaces if one.space.source != FORMAT]
    found = {"public spaces": public, "own recordings": own, "all spaces": spaces if own and public else []}
    return {name: list(members) for name, members in found.items() if members}


def complete(members: Sequence[Judged], method: str) -> dict[int, list[Figures]]:
    """By seed the figures of a method on every one of `members`; seeds that lack a space are left out."""
    per_space = [one.figures.get(method, {}) for one in members]
    seeds = sorted(set.intersection(*(set(found) for found in per_space)))
    return {seed: [found[seed] for found in per_space] for seed in seeds}


def document(spaces: Sequence[Judged], budget: int, command: str) -> dict[str, Any]:
    """All figures, JSON-ready. Curves are of whole groups: mean % of the optimum after each evaluation."""
    names = [name for name in METHODS if any(name in one.figures for one in spaces)]
    return {
        "command": command,
        "budget": budget,
        "methods": {name: {"family": METHODS[name].family, "version": version(name)} for name in names},
        "groups": {
            group: {
                "spaces": [one.space.name for one in members],
                RANDOM: _random_over(members, budget),
                "methods": {
                    name: {
                        **over_spaces(found),
                        "curve": [round(float(value), 2) for value in curve(found)[0]],
                        "curve_standard_error": [round(float(value), 2) for value in curve(found)[1]],
                    }
                    for name in names
                    if (found := complete(members, name))
                },
            }
            for group, members in groups(spaces).items()
        },
        "spaces": {one.space.name: _space(one) for one in spaces},
    }


def text(document: Mapping[str, Any]) -> str:
    """`document` as JSON with a list of numbers, such as a curve, on one line."""
    indented = json.dumps(document, indent=1, allow_nan=False)
    return re.sub(r"\[[-+.\de,\s]+\]", lambda found: " ".join(found[0].split()), indented) + "\n"


def _space(one: Judged) -> dict[str, Any]:
    space = one.space
    return {
        "source": space.source,
        "device": space.device,
        "digest": kept.digest(space),
        "configs": len(space),
        "product": space.search_space.product,
        "failed": sum(space.failures.values()),
        "optimum": space.optimum,
        "unit": space.unit,
        RANDOM: {
            "percent_of_optimum": _marks(one.random.share),
            **{f"median_evaluations_to_{percent_name(close)}": one.random.draws[close] for close in CLOSE},
            **{f"percent_within_{percent_name(close)}": round(100 * one.random.within[close], 4) for close in CLOSE},
        },
        "methods": {
            name: {**of_space(list(found.values())), "median_seconds": round(one.seconds[name], 2)}
            for name, found in one.figures.items()
        },
    }


def _random_over(members: Sequence[Judged], budget: int) -> dict[str, Any]:
    share = random_curve(members, budget) / 100
    within = {close: np.mean([one.random.within[close] for one in members]) for close in CLOSE}
    return {
        "percent_of_optimum": _marks(share),
        **{f"percent_within_{percent_name(close)}": round(100 * float(within[close]), 4) for close in CLOSE},
    }


def random_curve(members: Sequence[Judged], budget: int) -> NDArray[np.float64]:
    """% of the optimum that random search is expected to be at after each evaluation, mean over `members`."""
    each = [np.pad(one.random.share, (0, budget - len(one.random.share)), "edge") for one in members]
    return np.asarray(100 * np.mean(each, axis=0))


def table(document: Mapping[str, Any]) -> str:
    """Markdown: one table a group, best score first; ± is the standard error over seeds."""
    blocks = []
    for group, found in document["groups"].items():
        exact = found[RANDOM]
        marks = list(exact["percent_of_optimum"])
        rows = sorted(found["methods"].items(), key=lambda item: -item[1]["score_over_random"]["mean"])
        lines = [
            f"{group} ({', '.join(found['spaces'])}), budget {document['budget']}",
            "",
            f"| search | seeds | {' | '.join(f'% at {mark}' for mark in marks)} | score | within 5 % | within 1 % |",
            f"| --- {'| --- ' * (len(marks) + 4)}|",
        ]
        for name, one in rows:
            cells = [_cell(one["percent_of_optimum"][mark], 1) for mark in marks]
            cells += [_cell(one["score_over_random"], 2)]
            cells += [f"{one[f'percent_within_{percent_name(close)}']['mean']:.0f} %" for close in CLOSE]
            lines.append(f"| {name} | {one['seeds']} | {' | '.join(cells)} |")
        cells = [f"{exact['percent_of_optimum'][mark]:.1f}" for mark in marks] + ["0"]
        cells += [f"{exact[f'percent_within_{percent_name(close)}']:.0f} %" for close in CLOSE]
        blocks.append("\n".join([*lines, f"| {RANDOM} | | {' | '.join(cells)} |"]))
    return "\n\n".join(blocks)


def _cell(found: Mapping[str, float | None], digits: int) -> str:
    mean, error = found["mean"], found["standard_error"]
    return f"{mean:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def _marks(share: NDArray[np.float64]) -> dict[str, float]:
    return {str(mark): round(100 * float(share[mark - 1]), 4) for mark in MARKS if mark <= len(share)}
