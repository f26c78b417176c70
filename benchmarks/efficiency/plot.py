"""Best-so-far curves with their spread: ours beside the best peers and exact random search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.efficiency.figures import curve, over_spaces
from benchmarks.efficiency.methods import KERNEL_TUNER, METHODS, OPTUNA
from benchmarks.efficiency.report import RANDOM, Judged, complete, groups, random_curve

PEERS = 3
"""Best of each peer family that are drawn; more lines cannot be told apart."""
OURS = {
    "evolution": "#c1121f",
    "evolution, batches of 16": "#f77f00",
    "evolution, with the estimate": "#e36bae",
}
PEER_COLOURS = ("#023e8a", "#0096c7", "#7b2cbf", "#2d6a4f", "#74a57f", "#8d6e63")
CAPTION = "lines are means, bands one standard error over seeds"
PANEL, LEGEND_LINE = (5.2, 3.6), 0.27
"""Inches."""
FLOOR = 60.0
"""% of the optimum where the axis begins: below it are only the first few evaluations."""


def draw(spaces: Sequence[Judged], budget: int, path: Path) -> None:
    """One panel a group of spaces and one a space; bands are one standard error over seeds. Written to `path`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {f"mean of {name}": members for name, members in groups(spaces).items() if len(members) > 1}
    panels |= {one.space.name: [one] for one in spaces}
    chosen = _chosen(list(groups(spaces).values())[-1])
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    legend = LEGEND_LINE * (1 + -(-(1 + len(chosen)) // columns))
    height = PANEL[1] * rows + legend
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(PANEL[0] * columns, height), sharex=True, sharey=True, squeeze=False
    )
    for panel, (title, members) in zip(axes.flat, panels.items(), strict=False):
        _panel(panel, title, members, chosen, budget)
    for panel in list(axes.flat)[len(panels) :]:
        panel.axis("off")
    for panel in list(axes.flat)[: len(panels)][-columns:]:  # the lowest of its column
        panel.set_xlabel("configs evaluated")
        panel.tick_params(labelbottom=True)
    for panel in axes[:, 0]:
        panel.set_ylabel("% of the optimum")
    lines = {name: line for panel in axes.flat for line, name in zip(*panel.get_legend_handles_labels(), strict=True)}
    names = [name for name in (RANDOM, *chosen) if name in lines]
    figure.legend(
        [lines[name] for name in names],
        names,
        loc="lower center",
        ncols=columns,
        frameon=False,
        fontsize=10,
        title=CAPTION,
    )
    figure.tight_layout(rect=(0, legend / height, 1, 1))
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def _chosen(members: Sequence[Judged]) -> list[str]:
    """Ours, then the best peers of each family by their score on `members`."""
    scores = {
        name: over_spaces(found)["score_over_random"]["mean"] for name in METHODS if (found := complete(members, name))
    }
    ours = [name for name in OURS if any(name in one.figures for one in members)]
    peers = []
    for family in (OPTUNA, KERNEL_TUNER):
        of_family = [name for name in scores if METHODS[name].family == family]
        peers += sorted(of_family, key=lambda name: -scores[name])[:PEERS]
    return ours + peers


def _panel(panel: Any, title: str, members: Sequence[Judged], chosen: Sequence[str], budget: int) -> None:
    evaluations = np.arange(1, budget + 1)
    panel.plot(evaluations, random_curve(members, budget), color="black", linestyle="--", linewidth=1.2, label=RANDOM)
    colours = {**OURS, **dict(zip((name for name in chosen if name not in OURS), PEER_COLOURS, strict=False))}
    for name in chosen:
        found = complete(members, name)
        if found:
            mean, error = curve(found)
            ours, colour = name in OURS, colours[name]
            panel.plot(
                evaluations, mean, color=colour, linewidth=2.2 if ours else 1.3, label=name, zorder=3 if ours else 2
            )
            panel.fill_between(evaluations, mean - error, mean + error, color=colour, alpha=0.18, linewidth=0)
    panel.set_title(title, fontsize=11)
    panel.set_xlim(1, budget)
    panel.set_ylim(FLOOR, 100.5)
    panel.grid(alpha=0.25)
