"""What the card says: finalists with their intervals, and resources against time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evoengine.report.facts import Facts, Row
from evoengine.report.style import (
    INK,
    LABEL,
    MUTED,
    NO_TIME,
    NOT_CONFIRMED,
    OURS,
    REFUSED,
    STEPS,
    Json,
    Plot,
    axis,
    figure,
    line,
    log_axis,
    text,
)

KIB = 1024
FEW = 4
"""CTAs per SM told apart by colour; more are one."""
CHARACTER, NARROW = 6.3, 560
"""Pixels of a letter of a label, and of the plot in the narrowest window that it is laid out for (800 pixels)."""


def finalists(facts: Facts) -> Plot:
    """Speed-up of every finalist over the default config with its 95 % interval, the baselines beside them."""
    title = "Finalists"
    elites: Sequence[Row] = facts.summary["elites"]
    if not elites:
        return Plot("finalists", title, NOT_CONFIRMED, None)
    names = [f"#{row['trial']}" for row in elites]
    ratio = [1 / row["ratio_to_default"] for row in elites]
    bounds = [row["ratio_to_default_95"] for row in elites]
    data: list[Json] = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": ratio,
            "y": names,
            "error_x": {
                "type": "data",
                "symmetric": False,
                "array": [1 / low - at if low else 0 for (low, _), at in zip(bounds, ratio, strict=True)],
                "arrayminus": [at - 1 / high if high else 0 for (_, high), at in zip(bounds, ratio, strict=True)],
                "color": OURS,
                "thickness": 2,
                "width": 5,
            },
            "marker": {"color": OURS, "size": 9},
            "text": [f"{row['median_us']:.3f} µs, {row['verdict']}" for row in elites],
            "hovertemplate": "%{y}: %{x:.3f} times as fast as the default config<br>%{text}<extra></extra>",
        }
    ]
    default_us = elites[0]["median_us"] / elites[0]["ratio_to_default"]
    rivals = {name: default_us / us for name, us in facts.baselines.items()}
    low, high = min(ratio), max(ratio)
    near = {name: at for name, at in rivals.items() if low / 4 < at}
    labels = [
        {
            "text": f"{row['median_us']:.3f} µs",
            "x": 1.0,
            "xref": "paper",
            "xanchor": "left",
            "xshift": 8,
            "y": name,
            "yanchor": "middle",
            "showarrow": False,
            "font": {"color": INK},
        }
        for row, name in zip(elites, names, strict=True)
    ]
    ends = [1.0, low, high, *near.values(), *(1 / end for bound in bounds for end in bound if end)]
    left, right = min(ends), max(ends)
    pad = (right - left) * 0.08 or 0.1
    marks = {"default config": 1.0} | near
    top, storeys = _top_labels(marks, left - pad, right + pad)
    layout = {
        "margin": {"l": 64, "r": 96, "t": 12 + LABEL * storeys, "b": 52},
        "xaxis": axis("times as fast as the default config (95 % interval)", range=[left - pad, right + pad]),
        "yaxis": axis("trial", type="category", autorange="reversed", showgrid=False),
        "shapes": [
            *(line("x", at, MUTED, "dot") for at in near.values()),
            line("x", 1.0, MUTED, "solid", layer="above"),  # below, the grid's line at 1 would hide it
        ],
        "annotations": labels + top,
    }
    faster = sum(row["verdict"] == "FASTER" for row in elites)
    far = [f"{name} ({at:.2f})" for name, at in rivals.items() if name not in near]
    caption = (
        f"{faster} of {len(elites)} finalists are judged FASTER than the default config. All were timed again "
        "together, interleaved, in a fresh process."
    )
    if far:
        caption += f" Off the scale: {', '.join(far)}."
    return Plot("finalists", title, caption, figure(data, 150 + 30 * len(elites), **layout))


def resources(facts: Facts) -> Plot:
    """Registers and shared memory of every timed config against its time, with what the card allows."""
    title = "Resources"
    timed = [row for row in facts.timed if "registers" in row]
    if not timed:
        return Plot("resources", title, NO_TIME, None)
    registers = min(facts.limits.registers_per_thread, facts.ceilings.max_registers or 10**9)
    smem = min(facts.limits.smem_per_block, facts.ceilings.max_smem_bytes or 10**9)
    data: list[Json] = []
    for ctas, colour, name in _by_ctas(timed):
        rows = [row for row in timed if _few(row) == ctas]
        common: Json = {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "legendgroup": name,
            "y": [row["time_us"] for row in rows],
            "text": [f"#{row['trial']}, {row.get('ctas_per_sm', '?')} CTAs/SM" for row in rows],
            "marker": {"color": colour, "size": 5.5, "opacity": 0.8, "line": {"width": 0}},
        }
        data.append(
            common
            | {
                "x": [row["registers"] for row in rows],
                "hovertemplate": "%{x} registers: %{y:.3f} µs<br>%{text}<extra></extra>",
            }
        )
        data.append(
            common
            | {
                "x": [row["smem_bytes"] / KIB for row in rows],
                "xaxis": "x2",
                "yaxis": "y2",
                "showlegend": False,
                "hovertemplate": "%{x:.1f} KiB: %{y:.3f} µs<br>%{text}<extra></extra>",
            }
        )
    low, high = float(timed[-1]["time_us"]) * 0.93, float(timed[0]["time_us"]) * 1.07
    steps = [(n, facts.limits.smem_per_sm / n - facts.limits.smem_reserved_per_block) for n in (2, 3, 4)]
    layout = {
        "margin": {"l": 64, "r": 40, "t": 62, "b": 52},
        "showlegend": True,
        "legend": {"orientation": "h", "x": 0, "y": 1.09, "xanchor": "left", "yanchor": "bottom"},
        "xaxis": axis("registers a thread", domain=[0, 0.46], range=[0, registers * 1.06]),
        "yaxis": log_axis(f"{facts.time_name} a launch, µs", low, high),
        "xaxis2": axis("shared memory a CTA, KiB", domain=[0.54, 1], anchor="y2", range=[0, smem / KIB * 1.06]),
        "yaxis2": log_axis("", low, high) | {"anchor": "x2"},
        "shapes": [
            line("x", registers, REFUSED, "solid"),
            line("x2", smem / KIB, REFUSED, "solid"),
            *(line("x2", at / KIB, MUTED, "dot") for _, at in steps),
        ],
        "annotations": [
            _mark("x", "y", registers, f"limit {registers}", REFUSED),
            _mark("x2", "y2", smem / KIB, f"limit {smem / KIB:g}", REFUSED),
            *(_mark("x2", "y2", at / KIB, "2 CTAs" if n == 2 else str(n), MUTED) for n, at in steps),
        ],
    }
    most = max(timed, key=lambda row: row["registers"])
    caption = (
        f"Limits of {facts.limits.name}, solid; dotted: the shared memory up to which 2, 3 and 4 CTAs fit on an SM. "
        f"The fastest takes {timed[-1]['registers']} registers and {timed[-1]['smem_bytes'] / KIB:.1f} KiB, the "
        f"largest {most['registers']} registers."
    )
    spilled = sum(bool(row["spill_bytes"]) for row in timed)
    caption += f" {spilled} of {len(timed)} spill." if spilled else " None spills."
    return Plot("resources", title, caption, figure(data, 400, **layout))


def _few(row: Row) -> int:
    """CTAs per SM, 0 where they are not known."""
    return min(int(row.get("ctas_per_sm", 0)), FEW)


def _by_ctas(timed: Sequence[Row]) -> list[tuple[int, str, str]]:
    """(CTAs per SM, colour, name) of every group there is."""
    names = {0: "CTAs/SM not known", 1: "1 CTA/SM", FEW: f"{FEW} or more"}
    return [(ctas, STEPS[ctas], names.get(ctas, f"{ctas} CTAs/SM")) for ctas in sorted({_few(row) for row in timed})]


def _mark(x: str, y: str, at: float, words: str, colour: str) -> Json:
    """A word at the upper end of a vertical line."""
    return {
        "text": words,
        "x": at,
        "xref": x,
        "xanchor": "center",
        "y": 1,
        "yref": f"{y} domain",
        "yanchor": "bottom",
        "showarrow": False,
        "font": {"size": 11, "color": colour},
    }


def _top_labels(marks: Mapping[str, float], left: float, right: float) -> tuple[list[Json], int]:
    """Names over vertical lines, on as many storeys as keep them from touching; and how many storeys those are."""
    ends: list[float] = []
    labels = []
    for name, at in sorted(marks.items(), key=lambda mark: mark[1]):
        words = f"{name} {at:.2f}" if at != 1.0 else name
        half = len(words) * CHARACTER / 2
        middle = (at - left) / (right - left) * NARROW
        storey = next((n for n, end in enumerate(ends) if end < middle - half), len(ends))
        ends[storey : storey + 1] = [middle + half + 8]
        labels.append(_mark("x", "y", at, text(words), MUTED) | {"yshift": storey * LABEL})
    return labels, len(ends)
