"""What the search did: best so far, and what each gate refused."""

from __future__ import annotations

from collections.abc import Mapping

from evoengine.report.facts import Facts, Row
from evoengine.report.style import (
    FAINT,
    INK,
    MUTED,
    NO_TIME,
    OTHER,
    OURS,
    REFUSED,
    Json,
    Plot,
    axis,
    figure,
    log_axis,
    log_ticks,
    side_labels,
    text,
)
from evoengine.report.words import random_search

CURVE_HEIGHT = 380


def curve(facts: Facts) -> Plot:
    """Best so far against random search and the baselines, over the evaluations that were paid for."""
    title = "Best so far"
    worth = facts.summary["worth"]
    if worth is None:
        return Plot("curve", title, NO_TIME, None)
    _, times = facts.best_so_far()
    random = worth["random"]
    lines = dict(facts.baselines)
    if facts.default_us is not None:
        lines["default config"] = facts.default_us
    low, high = _range(facts, [*times, *(us for _, us in random["curve"]), *lines.values()])
    shown = {name: us for name, us in lines.items() if low < us < high}
    last = worth["evaluations"]
    left, right = 0.9, max(last, 2) * 1.05
    whole = [count for count in log_ticks(left, right) if count.is_integer()]
    labels = {f"{name} {us:.2f}": us for name, us in shown.items()} | {f"best {times[-1]:.3f}": times[-1]}
    layout = {
        "margin": {"l": 64, "r": 150, "t": 40, "b": 52},
        "showlegend": True,
        "xaxis": log_axis("evaluations (candidates sent to the compiler)", left, right, whole),
        "yaxis": log_axis(f"{facts.time_name} a launch, µs", low, high),
        "annotations": side_labels(labels, low, high, CURVE_HEIGHT - 92, {f"best {times[-1]:.3f}": OURS}),
    }
    hidden = [f"{name} ({us:.1f} µs)" for name, us in lines.items() if name not in shown]
    reached = worth["evaluations_to_1_percent"]
    caption = (
        f"Within 1 % of its best after {reached} of {last} evaluations. Random search: "
        f"{random_search(random, worth['best_us'], 'µs')}."
    )
    if hidden:
        caption += f" Off the scale: {', '.join(hidden)}."
    return Plot("curve", title, caption, figure(_traces(facts, shown, left, right), CURVE_HEIGHT, **layout))


def funnel(facts: Facts) -> Plot:
    """How many trials met each gate and how many it refused."""
    title = "Verdicts by gate"
    steps = facts.funnel()
    if not steps[0][1]:
        return Plot("funnel", title, "Nothing was judged yet.", None)
    names = [name for name, *_ in steps]
    kept = [met - refused for _, met, refused in steps]
    refused = [count for *_, count in steps]
    common: Json = {"type": "bar", "orientation": "h", "y": names, "cliponaxis": False}
    data = [
        common
        | {
            "name": "passed",
            "x": kept,
            "marker": {"color": OURS},
            "hovertemplate": "%{y}: %{x} passed<extra></extra>",
        },
        common
        | {
            "name": "refused",
            "x": refused,
            "marker": {"color": REFUSED},
            "text": [f"{left}" + (f"  (-{gone})" if gone else "") for left, gone in zip(kept, refused, strict=True)],
            "textposition": "outside",
            "textfont": {"color": INK},
            "hovertemplate": "%{y}: %{x} refused<extra></extra>",
        },
    ]
    layout = {
        "barmode": "stack",
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
        "bargap": 0.35,
        "showlegend": True,
        "margin": {"l": 84, "r": 24, "t": 40, "b": 48},
        "xaxis": axis("trials", range=[0, steps[0][1] * 1.16], dtick=1 if steps[0][1] < 10 else None),
        "yaxis": axis(autorange="reversed", showgrid=False, ticks=""),
    }
    flying = facts.summary["verdicts"].get("in flight", 0)
    free = ", ".join(f"{count} {name}" for name, count in facts.summary["free"].items())
    caption = f"{kept[-1]} of {steps[0][1]} trials passed every gate{f', {flying} are in flight' if flying else ''}."
    if free:
        caption += f" Free of charge, never compiled: {free}."
    return Plot("funnel", title, caption, figure(data, 300, **layout))


def _traces(facts: Facts, lines: Mapping[str, float], left: float, right: float) -> list[Json]:
    """Every evaluation, the best so far, random search, and a level line from `left` to `right` for each baseline."""
    places, times = facts.best_so_far()
    every = [row for row in facts.trials if row["evaluation"] is not None and row["time_us"] is not None]
    random = facts.summary["worth"]["random"]["curve"]
    data: list[Json] = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "each evaluation",
            "x": [row["evaluation"] for row in every],
            "y": [row["time_us"] for row in every],
            "text": [_about(row) for row in every],
            "hovertemplate": "evaluation %{x}: %{y:.3f} µs<br>%{text}<extra></extra>",
            "marker": {"size": 4, "color": FAINT},
        },
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "best so far",
            "x": places,
            "y": times,
            "line": {"color": OURS, "width": 2.5, "shape": "hv"},
            "marker": {"color": OURS, "size": 6},
            "hovertemplate": "best after %{x}: %{y:.3f} µs<extra></extra>",
        },
    ]
    if random:
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "random search, expected",
                "x": [count for count, _ in random],
                "y": [us for _, us in random],
                "line": {"color": OTHER, "width": 2, "dash": "dot"},
                "hovertemplate": "random search after %{x}: %{y:.3f} µs expected<extra></extra>",
            }
        )
    return data + [
        {
            "type": "scatter",
            "mode": "lines",
            "name": text(name),
            "showlegend": False,
            "x": [left, right],
            "y": [us, us],
            "line": {"color": MUTED, "width": 1, "dash": "dash"},
            "hoverinfo": "skip",
        }
        for name, us in lines.items()
    ]


def _range(facts: Facts, values: list[float]) -> tuple[float, float]:
    """Limits of the time axis: all that is drawn, but for the slowest tenth of the configs."""
    typical = facts.typical_us
    ends = [value for value in values if value <= 2 * typical] + [typical]
    return min(ends) * 0.9, max(ends) * 1.12


def _about(row: Row) -> str:
    return text(f"#{row['trial']} {row['operator']}, generation {row['generation']}")
