"""Which knobs matter, and where their fast values lie."""

from __future__ import annotations

import math

from evoengine.report.facts import Facts, Row
from evoengine.report.style import (
    GRID,
    INK,
    MUTED,
    NO_TIME,
    OURS,
    SLOW_TO_FAST,
    SURFACE,
    Json,
    Plot,
    axis,
    figure,
    log_axis,
    log_ticks,
    text,
)
from evoengine.report.words import what_weight_is
from evoengine.space import Axis
from evoengine.verdict import quantile

COORDINATES = 12
"""Axes of the parallel coordinates: more have no room for their names at 1,180 pixels."""
COLUMNS, ROW, BETWEEN = 3, 118, 58
"""Slices in a row, and the height in pixels of a row and of what is between two."""
BOX = {"lowerfence": 0.1, "q1": 0.25, "median": 0.5, "q3": 0.75, "upperfence": 0.9}
"""Quantiles that a box of times shows."""
GOLDEN = 0.618034
SPREAD = 0.36
"""Width over which the configs of a choice are spread, so that many do not look like one."""


def weights(facts: Facts) -> Plot:
    """Which knobs matter."""
    title = "Which knobs matter"
    found = facts.summary["worth"]
    if found is None:
        return Plot("weights", title, NO_TIME, None)
    knobs = found["knobs"]
    if not knobs["importance"]:
        return Plot("weights", title, f"Not known: {knobs['reason']}.", None)
    rows = knobs["importance"]
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "y": [text(row["knob"]) for row in rows],
            "x": [100 * row["weight"] for row in rows],
            "text": [f"{row['weight']:.0%}" if row["weight"] >= 0.005 else "<1%" for row in rows],
            "textposition": "outside",
            "textfont": {"color": INK},
            "cliponaxis": False,
            "marker": {"color": OURS},
            "hovertemplate": "%{y}: %{x:.1f} %<extra></extra>",
        }
    ]
    layout = {
        "bargap": 0.3,
        "margin": {"l": 64, "r": 24, "t": 28, "b": 52},
        "xaxis": axis("weight, %", range=[0, 112 * rows[0]["weight"]]),
        "yaxis": axis(autorange="reversed", showgrid=False, ticks=""),
    }
    caption = f"{what_weight_is(knobs)[0].upper()}{what_weight_is(knobs)[1:]}."
    return Plot("weights", title, caption, figure(data, max(180, 92 + 19 * len(rows)), **layout))


def coordinates(facts: Facts) -> Plot:
    """Parallel coordinates of the heaviest knobs, coloured by time; the reader narrows them down by dragging."""
    title = "Parallel coordinates"
    knobs = facts.knobs[:COORDINATES]
    if len(facts.timed) < 2 or not knobs:
        return Plot("coordinates", title, "Fewer than two configs have a time.", None)
    times = [float(row["time_us"]) for row in facts.timed]
    low, high = times[-1], times[0]
    steps = log_ticks(low * 0.999, high * 1.001, most=7)
    data = [
        {
            "type": "parcoords",
            "dimensions": [
                *(
                    {
                        "label": text(knob.name),
                        "values": [_place(row, knob, _band(knob)) for row in facts.timed],
                        "range": [-_band(knob) / 2, len(knob.choices) - 1 + _band(knob) / 2],
                        "tickvals": list(range(len(knob.choices))),
                        "ticktext": [text(knob.show(choice)) for choice in knob.choices],
                    }
                    for knob in knobs
                ),
                {
                    "label": "µs" if facts.measured else "est. µs",
                    "values": [_log(us) for us in times],
                    "range": [_log(low), _log(high)],
                    "tickvals": [_log(us) for us in steps],
                    "ticktext": [f"{us:g}" for us in steps],
                },
            ],
            "line": {
                "color": [round(at / (len(times) - 1), 4) for at in range(len(times))],  # the highest is drawn on top
                "colorscale": SLOW_TO_FAST,
                "showscale": False,
            },
            "unselected": {"line": {"color": GRID, "opacity": 0.15}},
            "labelangle": -28,
            "labelside": "top",
            "labelfont": {"color": INK, "size": 11},
            "tickfont": {"color": MUTED, "size": 11},
            "rangefont": {"color": "rgba(0,0,0,0)", "size": 1},
        }
    ]
    omitted = len(facts.knobs) - len(knobs)
    caption = "A line is a config; the fastest tenth is coloured and on top. Drag along an axis to keep a range of it."
    if omitted:
        caption += f" The {len(knobs)} heaviest of {len(facts.knobs)} knobs that vary."
    return Plot("coordinates", title, caption, figure(data, 420, margin={"l": 56, "r": 76, "t": 96, "b": 24}))


def slices(facts: Facts) -> Plot:
    """Knob by knob: times at every choice, and where the fastest configs lie."""
    title = "Knob by knob"
    if len(facts.timed) < 2 or not facts.knobs:
        return Plot("slices", title, "Fewer than two configs have a time.", None)
    rows = -(-len(facts.knobs) // COLUMNS)
    inner = rows * ROW + (rows - 1) * BETWEEN
    times = [float(row["time_us"]) for row in facts.timed]
    low, high = times[-1] * 0.93, times[0] * 1.07
    ticks = log_ticks(low, high, most=4)
    data: list[Json] = []
    layout: Json = {"annotations": [], "boxgap": 0.3, "margin": {"l": 56, "r": 12, "t": 28, "b": 36}}
    for at, knob in enumerate(facts.knobs):
        row, column = divmod(at, COLUMNS)
        number = "" if at == 0 else str(at + 1)
        left, top = column / COLUMNS, 1 - row * (ROW + BETWEEN) / inner
        data += _slice(facts, knob, number)
        layout[f"xaxis{number}"] = axis(
            domain=[left, left + 1 / COLUMNS - 0.035],
            anchor=f"y{number}",
            range=[-0.6, len(knob.choices) - 0.4],
            tickmode="array",
            tickvals=list(range(len(knob.choices))),
            ticktext=[text(knob.show(choice)) for choice in knob.choices],
            showgrid=False,
            tickangle=0,
            tickfont={"color": MUTED, "size": 10},
        )
        layout[f"yaxis{number}"] = log_axis("µs" if column == 0 else "", low, high, ticks) | {
            "domain": [max(top - ROW / inner, 0), top],
            "anchor": f"x{number}",
            "showticklabels": column == 0,
        }
        layout["annotations"].append(
            {
                "text": text(knob.name),
                "x": left,
                "xref": "paper",
                "xanchor": "left",
                "y": top,
                "yref": "paper",
                "yanchor": "bottom",
                "yshift": 3,
                "showarrow": False,
                "font": {"size": 11, "color": INK},
            }
        )
    caption = (
        f"Boxes hold the middle half of the configs at a choice, whiskers all but the outer tenths; dots are the "
        f"fastest {len(facts.fast)} of {len(times)}. Times in µs, {'measured' if facts.measured else 'ESTIMATED'}."
    )
    return Plot("slices", title, caption, figure(data, inner + 28 + 36, **layout))


def _slice(facts: Facts, knob: Axis, number: str) -> list[Json]:
    """A box a choice and a dot for each of the fastest configs, on the subplot of this number."""
    at: dict[int, list[float]] = {}
    for row in reversed(facts.timed):  # ascending
        at.setdefault(knob.choices.index(row["config"][knob.name]), []).append(float(row["time_us"]))
    places = sorted(at)
    where: Json = {"xaxis": f"x{number}", "yaxis": f"y{number}"}
    box: Json = {
        "type": "box",
        "x": places,
        **{name: [quantile(at[place], share) for place in places] for name, share in BOX.items()},
        "line": {"color": MUTED, "width": 1},
        "fillcolor": SURFACE,
        "hoverinfo": "y",
        "width": 0.5,
        **where,
    }
    fast = [row for row in facts.timed if row["trial"] in facts.fast]
    dots: Json = {
        "type": "scatter",
        "mode": "markers",
        "x": [_place(row, knob, SPREAD) for row in fast],
        "y": [row["time_us"] for row in fast],
        "text": [text(f"#{row['trial']}, {knob.name} {knob.show(row['config'][knob.name])}") for row in fast],
        "hovertemplate": "%{text}: %{y:.3f} µs<extra></extra>",
        "marker": {"size": 4, "color": OURS, "opacity": 0.75},
        **where,
    }
    return [box, dots]


def _place(row: Row, knob: Axis, spread: float) -> float:
    """The index of a config's choice, moved by golden-ratio steps of its number: evenly, the same in every report."""
    choice = knob.choices.index(row["config"][knob.name])
    return float(round(choice + spread * ((row["trial"] * GOLDEN) % 1 - 0.5), 3))


def _band(knob: Axis) -> float:
    """The spread that is a tenth of an axis from its first choice to its last, and no wider than a slice's."""
    return min(0.1 * max(len(knob.choices) - 1, 1), SPREAD)


def _log(us: float) -> float:
    return round(math.log10(us), 5)
