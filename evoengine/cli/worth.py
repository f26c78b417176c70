"""What a search was worth, in words."""

from __future__ import annotations

from typing import Any

from evoengine.cli.tables import console, table
from evoengine.worth import CLOSE

LIGHT = 0.02
"""Weight under which a knob is not named; `--json` has them all."""


def show_worth(found: dict[str, Any]) -> None:
    """Print the document of `worth.worth`."""
    drawn = table("\nwhat the search was worth" + ("" if found["measured"] else ": ESTIMATED, not measured"), "", "")
    drawn.show_header = False
    for name, text in (
        ("best", _best(found)),
        ("random search", _random(found["random"], found["best_us"])),
        ("elites", _elites(found)),
        ("knobs", _knobs(found["knobs"])),
        ("converged", _converged(found["converged"])),
    ):
        if text:
            drawn.add_row(name, text)
    console().print(drawn)


def _best(found: dict[str, Any]) -> str:
    timing = "in the search's own timing" if found["measured"] else "estimated"
    reached = " and ".join(f"within {close} % after {found[f'evaluations_to_{close}_percent']}" for close in CLOSE)
    return (
        f"{found['best_us']:.3f} us {timing} (#{found['best_trial']}), {reached} of {found['evaluations']} evaluations"
    )


def _random(random: dict[str, Any], best_us: float) -> str:
    if random["basis"] is None:
        return f"not known: {random['reason']}"
    low, high = random["best_us_95"]
    text = (
        f"{random['best_us']:.3f} us expected after {random['evaluations']} evaluations, "
        f"{random['best_us'] / best_us:.2f} times the best"
    )
    if random["basis"] == "model":
        return f"{text} (95 %: {low:.3f} to {high:.3f} us), says the converged search's model of the whole space"
    return f"{text} (95 %: at most {high:.3f} us), bootstrap of the {random['draws']} configs drawn at random"


def _elites(found: dict[str, Any]) -> str:
    if not found["elites"]:
        return ""
    return f"{found['elites']} confirmed, one for every {found['evaluations_per_elite']:.1f} evaluations"


def _knobs(knobs: dict[str, Any]) -> str:
    if not knobs["importance"]:
        return f"not known: {knobs['reason']}"
    weights = [f"{one['knob']} {one['weight']:.0%}" for one in knobs["importance"] if one["weight"] >= LIGHT]
    light = len(knobs["importance"]) - len(weights)
    rest = f", {light} more under {LIGHT:.0%} each" if light else ""
    return (
        f"{', '.join(weights)}{rest} (weight in being among the fastest {knobs['top_share']:.0%} of {knobs['trials']} "
        f"trials with a time; {knobs['evaluator']})"
    )


def _converged(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    return (
        f"none of the last {found['patience']} configs was expected to gain more than {found['expected_gain']:.2%} "
        f"(noise {found['noise']['share']:.1%})"
    )
