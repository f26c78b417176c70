"""What plots share: colours by role, axes, ticks, labels that do not overlap. Figures are plain plotly JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

Json = dict[str, Any]

INK, MUTED, GRID, SURFACE = "var(--ink)", "var(--muted)", "var(--grid)", "var(--surface)"
OURS, OTHER, REFUSED, FAINT = "var(--ours)", "var(--other)", "var(--refused)", "var(--faint)"
STEPS = ("var(--step-1)", "var(--step-2)", "var(--step-3)", "var(--step-4)", "var(--step-5)")
"""Colours are roles: the page replaces them by those of the reader's light or dark scheme."""
SLOW_TO_FAST = [[0.0, "var(--grid)"], [0.9, "var(--step-1)"], [0.9, "var(--step-3)"], [1.0, "var(--step-5)"]]
"""Over the share of configs that are slower: the fastest tenth stands out."""
NO_TIME = "No config has a time yet."
NOT_CONFIRMED = "No final run has confirmed a config."
LABEL = 15
"""Pixels from one line of text to the next."""
LADDER = (
    (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0),
    (1.0, 1.5, 2.0, 3.0, 5.0, 7.0),
    (1.0, 2.0, 5.0),
    (1.0, 3.0),
    (1.0,),
)
"""Ticks in a decade of a logarithmic axis, the closest first."""
FEWEST_TICKS = 3


def text(plain: str) -> str:
    """`plain` as plotly shows it literally: its labels know tags, entities and, between dollars, formulas."""
    return escape(plain, quote=False).replace("$", "&#36;")


class Plot(NamedTuple):
    """One picture with what it says. `figure` is None where there is nothing to draw; `caption` then says why."""

    id: str
    title: str
    caption: str
    figure: Json | None


def figure(data: list[Json], height: int, **layout: Any) -> Json:
    """A figure on the page's background, its hover labels and legend in the page's colours."""
    base: Json = {
        "height": height,
        "margin": {"l": 64, "r": 24, "t": 16, "b": 52},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12, "color": INK},
        "hoverlabel": {"bgcolor": SURFACE, "bordercolor": GRID, "font": {"color": INK, "size": 12}, "align": "left"},
        "hovermode": "closest",
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": MUTED, "activecolor": INK},
        "showlegend": False,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"},
        "dragmode": "zoom",
    }
    return {"data": data, "layout": base | layout}


def axis(title: str = "", **more: Any) -> Json:
    """An axis with a quiet grid."""
    plain: Json = {
        "title": {"text": text(title), "standoff": 8},
        "gridcolor": GRID,
        "linecolor": MUTED,
        "tickcolor": MUTED,
        "tickfont": {"color": MUTED},
        "zeroline": False,
        "showline": True,
        "ticks": "outside",
        "automargin": True,
    }
    return plain | more


def log_axis(title: str, low: float, high: float, ticks: Sequence[float] = (), **more: Any) -> Json:
    """A logarithmic axis from `low` to `high`, with `ticks` or with some that a reader can say aloud."""
    values = list(ticks) or log_ticks(low, high)
    span = [math.log10(low), math.log10(high)]
    texts = [f"{value:g}" for value in values]
    return axis(title, type="log", range=span, tickmode="array", tickvals=values, ticktext=texts) | more


def log_ticks(low: float, high: float, most: int = 9) -> list[float]:
    """The most round numbers from `low` to `high` that are no more than `most`."""
    places = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in LADDER:
        values = [float(f"{step * 10.0**place:g}") for place in places for step in steps]
        shown = [value for value in values if low <= value <= high]
        if FEWEST_TICKS <= len(shown) <= most:
            return shown
    if len(shown) > most:
        return shown[:: -(-len(shown) // most)]
    return _even_ticks(low, high)


def _even_ticks(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, for a range so narrow that no ladder has a rung in it."""
    rough = (high - low) / FEWEST_TICKS
    unit = 10.0 ** math.floor(math.log10(rough))
    step = max(unit * factor for factor in (1, 2, 5) if unit * factor <= rough)
    return [float(f"{at * step:.10g}") for at in range(math.ceil(low / step), math.floor(high / step) + 1)]


def apart(places: Mapping[str, float], gap: float) -> dict[str, float]:
    """Positions at least `gap` apart, in the same order, with the least sum of squared moves.

    Isotonic regression of the positions less their rank times the gap (pool adjacent violators: Barlow et al. 1972).
    """
    names = sorted(places, key=lambda name: places[name])
    pools: list[tuple[float, int]] = []
    for rank, name in enumerate(names):
        pools.append((places[name] - rank * gap, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (left, n), (right, m) = pools[-2:]
            pools[-2:] = [((left * n + right * m) / (n + m), n + m)]
    moved = [mean for mean, count in pools for _ in range(count)]
    return {name: mean + rank * gap for rank, (name, mean) in enumerate(zip(names, moved, strict=True))}


def side_labels(
    lines: Mapping[str, float], low: float, high: float, height: float, colours: Mapping[str, str]
) -> list[Json]:
    """Labels right of a logarithmic y axis of `height` pixels, one a line at its height, none over another."""
    per_pixel = math.log10(high / low) / height
    places = apart({name: math.log10(value) for name, value in lines.items()}, LABEL * per_pixel)
    return [
        {
            "text": text(name),
            "x": 1.0,
            "xref": "paper",
            "xanchor": "left",
            "xshift": 6,
            "y": place,
            "yref": "y",
            "yanchor": "middle",
            "showarrow": False,
            "align": "left",
            "font": {"size": 11, "color": colours.get(name, MUTED)},
        }
        for name, place in places.items()
    ]


def line(axis_name: str, value: float, colour: str, dash: str = "dash", **more: Any) -> Json:
    """A line across the whole plot at `value` of its x or y axis."""
    other = "y" if axis_name.startswith("x") else "x"
    ends = {f"{axis_name[0]}0": value, f"{axis_name[0]}1": value, f"{other}0": 0, f"{other}1": 1}
    refs = {f"{axis_name[0]}ref": axis_name, f"{other}ref": f"{other}{axis_name[1:]} domain"}
    return {
        "type": "line",
        **refs,
        **ends,
        "line": {"color": colour, "width": 1, "dash": dash},
        "layer": "below",
    } | more
