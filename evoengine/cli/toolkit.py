"""What tools of the CUDA toolkit said of a study's elites, as `show` and `profile` print it."""

from __future__ import annotations

from typing import Any

from evoengine.cli.tables import console, table

_COUNTED = (
    (">SM", "sm_pct"),
    (">tensor", "tensor_pct"),
    (">issue", "issue_pct"),
    (">L1", "l1_pct"),
    (">L2", "l2_pct"),
    (">DRAM", "dram_pct"),
    (">warps", "occupancy_pct"),
)
"""Heads of columns, and the figures below them."""


def show_sanitized(elites: list[dict[str, Any]]) -> None:
    """What compute-sanitizer said of the elites, where it was asked; what it rejected is among the rejections."""
    out = console()
    told = {row["trial"]: row["sanitizer"] for row in elites if row.get("sanitizer")}
    clean = [str(trial) for trial, tools in told.items() if all(found["clean"] for found in tools.values())]
    if clean:
        out.print(f"compute-sanitizer: nothing found in trials {', '.join(clean)}", soft_wrap=True)
    for trial, tools in told.items():
        for tool, found in tools.items():
            if found["findings"]:
                noted = f"{found['findings'][0]['line']} (noted: {found.get('doubt', 'a warning')})"
                out.print(f"trial {trial}: {tool}: {noted}", soft_wrap=True)
            elif not found["clean"]:
                out.print(f"trial {trial}: {tool} did not come to an end: {found['unfinished']}", soft_wrap=True)


def show_profiles(elites: list[dict[str, Any]]) -> None:
    """What Nsight Compute counted of those elites that were profiled, in percent of a peak, and what bounds them."""
    profiled = [row for row in elites if row.get("profile")]
    if not profiled:
        return
    drawn = table("\nprofiled, % of the peak", ">#", *(head for head, _ in _COUNTED), "what bounds it")
    for row in profiled:
        figures = row["profile"]["figures"]
        cells = ("-" if figures[key] is None else f"{figures[key]:.0f}" for _, key in _COUNTED)
        drawn.add_row(str(row["trial"]), *cells, row["profile"]["diagnosis"])
    console().print(drawn)
