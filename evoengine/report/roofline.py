"""Rates of the measured configs under the roofs of the card (Williams et al. 2009, "Roofline")."""

from __future__ import annotations

import math

from evoengine.comparison import roofline as bound_of
from evoengine.devices.estimate import L2_BYTES_PER_CLOCK
from evoengine.hardware import DeviceLimits
from evoengine.report.facts import Facts
from evoengine.report.style import FAINT, INK, MUTED, OTHER, OURS, SURFACE, Json, Plot, figure, log_axis, side_labels

HEIGHT = 400
COLOURS = {"best": OURS, "default config": MUTED, "SDPA": OTHER}


def roofline(facts: Facts) -> Plot:
    """Under the card's roofs. One problem has one intensity, so its configs are a column."""
    title = "Roofline"
    best, device = facts.best, facts.device
    if not facts.measured or best is None:
        return Plot("roofline", title, "Nothing was measured, and an estimate reaches no rate.", None)
    flops, moved = facts.problem.flops, facts.problem.bytes_moved
    if device is None or not flops or not moved:
        why = "the problem counts no operations" if device else f"the rates of {facts.summary['device']} are not known"
        return Plot("roofline", title, f"Not drawn: {why}.", None)
    peak, roofs, intensity = device.tensor_tflops, _roofs(device), flops / moved
    times = {"best": best["median_us"], "default config": facts.default_us, "SDPA": facts.sdpa_us}
    rates = {name: flops / us / 1e6 for name, us in times.items() if us}
    every = [flops / row["time_us"] / 1e6 for row in facts.timed]
    left = min(intensity, *(peak / rate for rate in roofs.values())) / 8
    right = max(intensity, *(peak / rate for rate in roofs.values())) * 12
    low, high = min([*every, *rates.values()]) / 3, peak * 2
    data = [
        *_roof_lines(roofs, peak, left, right),
        {
            "type": "scatter",
            "mode": "markers",
            "x": [intensity] * len(every),
            "y": every,
            "text": [f"#{row['trial']}: {row['time_us']:.3f} µs" for row in facts.timed],
            "hovertemplate": "%{text}, %{y:.3g} TFLOP/s<extra></extra>",
            "marker": {"color": FAINT, "size": 12, "symbol": "line-ew-open", "line": {"width": 1}},
        },
        *(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [intensity],
                "y": [rate],
                "hovertemplate": f"{name}: %{{y:.3g}} TFLOP/s<extra></extra>",
                "marker": {"color": COLOURS[name], "size": 10, "line": {"color": SURFACE, "width": 1.5}},
            }
            for name, rate in rates.items()
        ),
    ]
    labels = {f"{name} {rate:.3g} TFLOP/s": name for name, rate in rates.items()}
    named = side_labels(
        {label: rates[name] for label, name in labels.items()},
        low,
        high,
        HEIGHT - 68,
        {label: COLOURS[name] for label, name in labels.items()},
    )
    layout = {
        "xaxis": log_axis("arithmetic intensity, FLOP a byte of inputs and outputs", left, right),
        "yaxis": log_axis("TFLOP/s", low, high),
        "annotations": [
            *(label | {"x": math.log10(intensity), "xref": "x", "xshift": 12} for label in named),
            *_roof_names(roofs, peak, left, right, low),
        ],
    }
    least, bound = bound_of(facts.problem, device)
    caption = (
        f"{flops / 1e9:.3g} GFLOP over {moved / 2**20:.3g} MiB: no kernel takes less than {least:.3g} µs at the card's "
        f"nominal {bound}. The best takes {times['best']:.3f} µs, {rates['best'] / peak:.0%} of the tensor cores' rate."
    )
    if members := facts.summary.get("shapes"):
        caption += f" Operations, bytes and times are the geometric means of {len(members)} shapes."
    elif moved <= device.l2_bytes:
        caption += " The data fit into L2 and windows are warm, so the DRAM roof does not bind."
    return Plot("roofline", title, caption, figure(data, HEIGHT, **layout))


def _roofs(device: DeviceLimits) -> dict[str, float]:
    """Bandwidths in TB/s at the card's nominal rates."""
    return {"DRAM": device.dram_gbps / 1e3, "L2": L2_BYTES_PER_CLOCK * device.sms * device.clock_mhz / 1e6}


def _roof_lines(roofs: dict[str, float], peak: float, left: float, right: float) -> list[Json]:
    """One line a memory up to where it meets the tensor cores' rate, and that rate from the first meeting on."""
    ends = {name: ([left, peak / rate], [left * rate, peak]) for name, rate in roofs.items()}
    ends["tensor cores"] = ([min(peak / rate for rate in roofs.values()), right], [peak, peak])
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "x": x,
            "y": y,
            "line": {"color": INK, "width": 1.5, "dash": "dash" if name == "DRAM" else "solid"},
            "hoverinfo": "skip",
        }
        for name, (x, y) in ends.items()
    ]


def _roof_names(roofs: dict[str, float], peak: float, left: float, right: float, low: float) -> list[Json]:
    """What each roof is, along it."""
    plain: Json = {"showarrow": False, "font": {"size": 11, "color": MUTED}}
    names = [
        plain
        | {
            "text": f"{name} {rate:.3g} TB/s",
            "x": math.log10(max(left, low / rate) * 1.15),
            "y": math.log10(max(left * rate, low) * 1.15),
            "xanchor": "left",
            "yanchor": "top",
            "xshift": 12,
        }
        for name, rate in roofs.items()
    ]
    tensor = {"text": f"tensor cores {peak:g} TFLOP/s", "x": math.log10(right), "y": math.log10(peak)}
    return [*names, plain | tensor | {"xanchor": "right", "yanchor": "bottom"}]
