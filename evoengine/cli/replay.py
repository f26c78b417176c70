"""`evoengine replay`: search a space whose every time is recorded, to see what a sampler is worth."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evoengine.cli.resolve import shipped_templates, space_path
from evoengine.cli.tables import console, table
from evoengine.errors import UserError
from evoengine.forecast import Forecast
from evoengine.hardware import CARDS
from evoengine.problem import make_problem
from evoengine.recorded.load import load
from evoengine.recorded.replay import replay
from evoengine.recorded.source import source_of
from evoengine.recorded.space import RecordedSpace
from evoengine.recorded.summary import summarise
from evoengine.sampler import INFORMED, check_sampler
from evoengine.sampler.source import Source
from evoengine.space import load_space
from evoengine.template import load_template


def run(arguments: argparse.Namespace) -> int:
    sampler = check_sampler(arguments.sampler)
    space = load(Path(arguments.file))
    sources = _sources(arguments.warm_start or (), space)
    forecast = forecast_of(space) if sampler in INFORMED and not arguments.no_estimate else None
    traces = []
    with console(stderr=True).status("") as status:
        for seed in range(arguments.seed, arguments.seed + arguments.runs):
            status.update(f"{sampler}, seed {seed}")
            traces.append(
                replay(
                    space,
                    sampler=sampler,
                    seed=seed,
                    budget=arguments.budget,
                    batch=arguments.batch,
                    noise_percent=arguments.noise,
                    until_converged=arguments.until_converged,
                    sources=[*sources, *estimated(forecast, seed)],
                )
            )
    how = {"sampler": sampler, "batch": arguments.batch, "noise_percent": arguments.noise}
    how["until_converged"] = arguments.until_converged
    how["warm_start"] = [source.about() for source in sources]
    how["estimate"] = forecast is not None
    document = how | summarise(space, traces, arguments.budget)
    if arguments.json:
        print(json.dumps(document, indent=2, allow_nan=False))
    else:
        _show(document)
    return 0


def forecast_of(space: RecordedSpace) -> Forecast | None:
    """The estimate of what a recording of ours recorded; None for a recording that does not name a template and a card
    that are known here, or that has choices which the template's space has not. An axis younger than the recording is
    at its default, one that is no more says nothing."""
    limits = next((card for card in CARDS.values() if card.name == space.device), None)
    folder = shipped_templates().get(space.template)
    if limits is None or folder is None:
        return None
    template = load_template(folder)
    now = load_space(space_path(None, template))
    choices = {axis.name: {axis.show(choice) for choice in axis.choices} for axis in now}
    known = [axis for axis in space.axes if axis.name in choices]
    if any(axis.show(choice) not in choices[axis.name] for axis in known for choice in axis.choices):
        return None
    constants = {
        axis.name: choice
        for axis in now
        for choice in axis.choices
        if space.constants.get(axis.name) == axis.show(choice)
    }
    problem = make_problem(template.module.PROBLEM, space.problem)
    fixed = {**now.default, **constants}
    return Forecast(template.module, problem, limits, space.search_space, space.points, fixed)


def estimated(forecast: Forecast | None, seed: int) -> list[Source]:
    """What a search with this seed knows of the estimate."""
    made = None if forecast is None else forecast.source(seed)
    return [] if made is None else [made]


def _sources(files: Sequence[str], space: RecordedSpace) -> tuple[Source, ...]:
    """The recordings in `files` as sources for a search of `space`.

    Raises:
        UserError: a file cannot be read, or has other parameters or no config that works in common with the space.
    """
    sources = []
    for file in files:
        source = source_of(load(Path(file)), space)
        if source is None:
            raise UserError(
                f"--warm-start {file}: no config that works has the parameters of {space.name} "
                f"({', '.join(axis.name for axis in space.axes)})"
            )
        sources.append(source)
    return tuple(sources)


def _show(document: dict[str, Any]) -> None:
    out = console()
    space, over = document["space"], document["over_runs"]
    _show_space(space)
    for source in document["warm_start"]:
        out.print(f"warm start from {source['name']}: {source['known']} of its configs, digest {source['digest']}")
    if document["estimate"]:
        out.print("each search knows the estimate of the configs, as a real one does (without: --no-estimate)")
    marks = list(over["percent_of_optimum"])
    noise = f", {document['noise_percent']:g} % noise" if document["noise_percent"] else ""
    early = document["until_converged"]
    at_marks = [] if early else [f">% of optimum at {mark}" for mark in marks]  # runs that stop early pass no marks
    drawn = table(
        f"\n{document['sampler']}, {'up to ' * early}{document['budget']} evaluations in batches of "
        f"{document['batch']}{noise}",
        ">seed",
        *([">stopped at"] if early else []),
        f">best {space['unit']}",
        *at_marks,
        *([f">% picked at {marks[-1]}"] if noise and at_marks else []),
        *([">% off optimum", ">random % off"] if early else []),
        ">to 5 %",
        ">to 1 %",
        ">score over random",
    )
    for run in document["runs"]:
        reached = [run["evaluations_to_5_percent"], run["evaluations_to_1_percent"]]
        drawn.add_row(
            str(run["seed"]),
            *([f"{run['evaluations']}{'' if run['converged'] else ' (budget)'}"] if early else []),
            _cost(run["best_so_far"][-1]),
            *(f"{run['percent_of_optimum'][mark]:.1f}" for mark in marks if at_marks),
            *([f"{run['picked_percent_of_optimum'][marks[-1]]:.1f}"] if noise and at_marks else []),
            *([f"{run['gap_percent']:.2f}", f"{run['random_gap_percent']:.2f}"] if early else []),
            *("-" if count is None else str(count) for count in reached),
            _number(run["score_over_random"], 3),
        )
    out.print(drawn)
    out.print(_over_runs(document, marks))
    if early:
        runs = document["runs"]
        out.print(
            f"{over['converged']} of {len(runs)} runs converged, after {over['median_evaluations']:g} of "
            f"{document['budget']} evaluations and {over['median_gap_percent']:.2f} % off the optimum (medians of all)"
        )


def _show_space(space: dict[str, Any]) -> None:
    failures = sum(space["failures"].values())
    reasons = ", ".join(f"{count} {reason}" for reason, count in space["failures"].items())
    lines = [
        f"{space['name']} ({space['source']}){' on ' + space['device'] if space['device'] else ''}",
        f"{space['configs']:,} of {space['product']:,} configs of {len(space['axes'])} axes are recorded; "
        + (f"{failures:,} of them fail ({reasons})" if failures else "all of them work"),
        f"optimum {_cost(space['optimum'])} {space['unit']}: "
        + ", ".join(f"{name} {word}" for name, word in space["optimum_config"].items()),
    ]
    if space["is_rate"]:
        lines.append(f"{space['objective']} is a rate: higher is better, so its inverse is minimised")
    if space["constants"]:
        lines.append("constant: " + ", ".join(f"{name} {word}" for name, word in space["constants"].items()))
    if space["duplicates"]:
        lines.append(
            f"{space['duplicates']:,} entries repeat a config, which counts with the median of those that work"
        )
    if space["cut"]:
        lines.append("the file was still being written: what it holds so far is taken for the whole space")
    for line in lines:
        console().print(line)


def _over_runs(document: dict[str, Any], marks: list[str]) -> Any:
    over, random = document["over_runs"], document["random"]
    drawn = table(f"\nover all runs ({len(document['runs'])})", "", ">mean", ">standard error", ">random, exact")
    for mark in marks:
        exact = f"{random['percent_of_optimum'][mark]:.2f}"
        drawn.add_row(f"% of optimum at {mark}", *_mean(over["percent_of_optimum"][mark], 2), exact)
        if document["noise_percent"]:
            picked = _mean(over["picked_percent_of_optimum"][mark], 2)
            drawn.add_row(f"% of optimum at {mark}, config that measured best", *picked, "-")
    drawn.add_row(
        "% off the optimum at the end",
        *_mean(over["gap_percent"], 2),
        f"{over['random_gap_percent']['mean']:.2f}",
    )
    drawn.add_row("score over random", *_mean(over["score_over_random"], 3), "0")
    for close in (5, 1):
        share, chance = over[f"within_{close}_percent"], random[f"within_{close}_percent"]
        drawn.add_row(f"runs within {close} %", f"{share:.1%}", "", f"{chance:.1%}")
    for close in (5, 1):
        median = over[f"median_evaluations_to_{close}_percent"]
        drawn.add_row(
            f"median evaluations to {close} %",
            "-" if median is None else f"{median:g}",
            "",
            str(random[f"median_evaluations_to_{close}_percent"]),
        )
    return drawn


def _mean(found: dict[str, float | None] | None, digits: int) -> tuple[str, str]:
    mean, error = (found["mean"], found["standard_error"]) if found else (None, None)
    return _number(mean, digits), _number(error, digits)


def _number(number: float | None, digits: int) -> str:
    return "-" if number is None else f"{number:.{digits}f}"


def _cost(cost: float | None) -> str:
    return "-" if cost is None else f"{cost:.5g}"
