"""What a search was worth, in sentences: the same on the terminal and in a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evoengine.worth import CLOSE

LIGHT = 0.02
"""Weight under which a knob is not named; `--json` has them all."""


def answer(summary: Mapping[str, Any]) -> str:
    """The study's result in a sentence or two."""
    if summary["elites"]:
        faster = [row for row in summary["elites"] if row["verdict"] == "FASTER"]
        if not faster:
            return "No finalist is significantly faster than the default config: keep the default."
        best = faster[0]
        sdpa = f" and {best['ratio_to_sdpa']:.2f} times as fast as PyTorch SDPA" if best["ratio_to_sdpa"] else ""
        ratio = f"{1 / best['ratio_to_default']:.2f} times as fast as the default config"
        if "worst_shape" in best:
            worst = f"{1 / best['worst_ratio_to_default']:.2f} times at worst, at {best['worst_shape']}"
            ratio += f" in the geometric mean of {len(best['shapes'])} shapes ({worst})"
        return f"Trial {best['trial']} takes {best['median_us']:.3f} µs a launch, {ratio}{sdpa}."
    if summary["measured"]:
        best = summary["measured"][0]
        return (
            f"Trial {best['trial']} is the fastest that the search measured, {best['median_us']:.3f} µs a launch; no "
            "final run has confirmed it."
        )
    if summary["shortlist"]:
        best = summary["shortlist"][0]
        return (
            f"Nothing was measured. Trial {best['trial']} has the lowest estimate, {best['estimated_us']:.2f} µs; "
            "resume the study on a machine with the card to measure the shortlist."
        )
    return "No config passed every gate." if summary["rejections"] else "No config was judged yet."


def worth_in_words(found: dict[str, Any], unit: str = "us") -> list[tuple[str, str]]:
    """(subject, sentence) for what the document of `worth.worth` knows."""
    said = [
        ("best", _best(found, unit)),
        ("random search", random_search(found["random"], found["best_us"], unit)),
        ("elites", _elites(found)),
        ("knobs", knobs(found["knobs"])),
        ("converged", _converged(found["converged"])),
    ]
    return [(subject, text) for subject, text in said if text]


def random_search(random: dict[str, Any], best_us: float, unit: str = "us") -> str:
    """What random search is expected to find, and how that is known."""
    if random["basis"] is None:
        return f"not known: {random['reason']}"
    low, high = random["best_us_95"]
    text = (
        f"{random['best_us']:.3f} {unit} expected after {random['evaluations']} evaluations, "
        f"{random['best_us'] / best_us:.2f} times the best"
    )
    if random["basis"] == "model":
        return f"{text} (95 %: {low:.3f} to {high:.3f} {unit}), says the converged search's model of the whole space"
    return f"{text} (95 %: at most {high:.3f} {unit}), bootstrap of the {random['draws']} configs drawn at random"


def knobs(knobs: dict[str, Any]) -> str:
    """The heavy knobs, and what a weight is."""
    if not knobs["importance"]:
        return f"not known: {knobs['reason']}"
    weights = [f"{one['knob']} {one['weight']:.0%}" for one in knobs["importance"] if one["weight"] >= LIGHT]
    light = len(knobs["importance"]) - len(weights)
    rest = f", {light} more under {LIGHT:.0%} each" if light else ""
    return f"{', '.join(weights)}{rest} ({what_weight_is(knobs)})"


def what_weight_is(knobs: dict[str, Any]) -> str:
    return (
        f"weight in being among the fastest {knobs['top_share']:.0%} of {knobs['trials']} trials with a time; "
        f"{knobs['evaluator']}"
    )


def _best(found: dict[str, Any], unit: str) -> str:
    timing = "in the search's own timing" if found["measured"] else "estimated"
    reached = " and ".join(f"within {close} % after {found[f'evaluations_to_{close}_percent']}" for close in CLOSE)
    best = f"{found['best_us']:.3f} {unit} {timing} (trial {found['best_trial']})"
    return f"{best}, {reached} of {found['evaluations']} evaluations"


def _elites(found: dict[str, Any]) -> str:
    if not found["elites"]:
        return ""
    return f"{found['elites']} confirmed, one for every {found['evaluations_per_elite']:.1f} evaluations"


def _converged(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    return (
        f"none of the last {found['patience']} configs was expected to gain more than {found['expected_gain']:.2%} "
        f"(noise {found['noise']['share']:.1%})"
    )
