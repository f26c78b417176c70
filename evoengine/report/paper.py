"""One figure for a paper: the search, its finalists, the knobs, the resources."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from evoengine.report.facts import Facts
from evoengine.report.style import NO_TIME, NOT_CONFIRMED, log_ticks

MEASURED, ESTIMATED, OTHER, INK, FAINT = "#0b62a8", "#9a3a8c", "#b35900", "#444c55", "#b8c0c9"
SIZE, DPI = (7.2, 5.6), 220
"""Inches: the width of two columns; dots an inch."""
KNOBS = 10
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e8ebee",
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "text.parse_math": False,  # a name with a dollar sign is a name
}


def draw_figure(facts: Facts) -> bytes:
    """The figure as PNG. Raises ImportError where matplotlib is not installed."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(2, 2)
        summary = facts.summary
        kind = "" if facts.measured or not facts.timed else "  (ESTIMATED, not measured)"
        figure.suptitle(f"{summary['template']} {summary['shape']} on {summary['device']}{kind}", fontsize=10)
        drawers: tuple[Callable[[Facts, Any], str], ...] = (_curve, _finalists, _weights, _resources)
        titles = ("Best so far", "Finalists", "Which knobs matter", "Shared memory")
        for panel, title, draw in zip(panels.flat, titles, drawers, strict=True):
            panel.set_title(title)
            if why_not := draw(facts, panel):
                panel.set_axis_off()
                middle = {"ha": "center", "va": "center", "transform": panel.transAxes, "color": INK, "wrap": True}
                panel.text(0.5, 0.5, why_not, **middle)
        made = io.BytesIO()
        figure.savefig(made, dpi=DPI, format="png")
    return made.getvalue()


# Each of these draws its panel and returns nothing, or says why there is nothing to draw.


def _curve(facts: Facts, panel: Any) -> str:
    places, times = facts.best_so_far()
    if not times:
        return NO_TIME
    every = [(row["evaluation"], row["time_us"]) for row in facts.trials if row["evaluation"] and row["time_us"]]
    panel.scatter(*zip(*every, strict=True), s=3, color=FAINT, linewidths=0)
    random = facts.summary["worth"]["random"]["curve"]
    if random:
        panel.plot(*zip(*random, strict=True), color=OTHER, linestyle=":", label="random search, expected")
    panel.step(places, times, where="post", color=_ours(facts), linewidth=1.8)
    lines = {"default": facts.default_us, "SDPA": facts.sdpa_us}
    for name, us in lines.items():
        if us:
            panel.axhline(us, color=INK, linewidth=0.7, linestyle="--")
            panel.annotate(f" {name}", (1, us), xycoords=("axes fraction", "data"), va="center", fontsize=7, color=INK)
    low = min([*times, *filter(None, lines.values())]) * 0.92
    high = max([facts.typical_us, *times, *filter(None, lines.values())]) * 1.1
    _log(panel, "x", 1, max(places[-1], 2))
    _log(panel, "y", low, high)
    panel.set_xlabel("evaluations")
    panel.set_ylabel(f"{facts.time_name} a launch, µs")
    if random:
        panel.legend(loc="lower right", bbox_to_anchor=(1.02, 0.99), borderpad=0, handlelength=1.6)
    return ""


def _finalists(facts: Facts, panel: Any) -> str:
    elites = facts.summary["elites"]
    if not elites:
        return NOT_CONFIRMED
    for at, row in enumerate(elites):
        ratio = 1 / row["ratio_to_default"]
        low, high = row["ratio_to_default_95"]
        bars = [[ratio - 1 / high], [1 / low - ratio]] if low and high else None
        panel.errorbar(ratio, at, xerr=bars, color=MEASURED, marker="o", markersize=2.5, elinewidth=1.2, capsize=2.5)
    panel.set_yticks(range(len(elites)), [f"#{row['trial']}  {row['median_us']:.2f} µs" for row in elites])
    panel.invert_yaxis()
    marks = {"default": 1.0}
    if facts.sdpa_us and facts.default_us:
        marks["SDPA"] = facts.default_us / facts.sdpa_us
    for name, ratio in marks.items():
        panel.axvline(ratio, color=INK, linewidth=0.8, linestyle="--" if name == "SDPA" else "-")
        upright = {"rotation": 90, "ha": "left", "va": "center", "fontsize": 7, "color": INK}
        panel.annotate(f" {name}", (ratio, 0.5), xycoords=("data", "axes fraction"), **upright)
    panel.margins(x=0.12)
    panel.set_xlabel("times as fast as the default config")
    return ""


def _weights(facts: Facts, panel: Any) -> str:
    rows = (facts.summary["worth"] or {"knobs": {"importance": []}})["knobs"]["importance"][:KNOBS]
    if not rows:
        return NO_TIME if facts.summary["worth"] is None else f"Not known: {facts.summary['worth']['knobs']['reason']}."
    panel.barh([row["knob"] for row in rows], [100 * row["weight"] for row in rows], color=_ours(facts), height=0.65)
    panel.invert_yaxis()
    panel.grid(visible=False, axis="y")
    panel.set_xlabel("weight, %")
    return ""


def _resources(facts: Facts, panel: Any) -> str:
    rows = [row for row in facts.timed if "smem_bytes" in row]
    if not rows:
        return NO_TIME
    times = [row["time_us"] for row in rows]
    panel.scatter([row["smem_bytes"] / 1024 for row in rows], times, s=4, color=_ours(facts), alpha=0.6, linewidths=0)
    limit = facts.limits.smem_per_block / 1024
    panel.axvline(limit, color=OTHER, linewidth=1)
    panel.annotate(
        f"limit {limit:g} ", (limit, 1), xycoords=("data", "axes fraction"), ha="right", va="top", fontsize=7
    )
    panel.set_xlim(0, limit * 1.04)
    _log(panel, "y", min(times) * 0.92, max(times) * 1.08)
    panel.set_xlabel("shared memory a CTA, KiB")
    panel.set_ylabel(f"{facts.time_name} a launch, µs")
    return ""


def _ours(facts: Facts) -> str:
    return MEASURED if facts.measured else ESTIMATED


def _log(panel: Any, name: str, low: float, high: float) -> None:
    """A logarithmic axis with the page's ticks."""
    ticks = log_ticks(low, high, most=7)
    getattr(panel, f"set_{name}scale")("log")
    getattr(panel, f"set_{name}lim")(low, high)
    getattr(panel, f"set_{name}ticks")(ticks, [f"{tick:g}" for tick in ticks])
    getattr(panel, f"set_{name}ticks")([], minor=True)
