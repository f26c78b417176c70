"""What tools of the CUDA toolkit said of a study's elites, as `show` and `profile` print it."""

from __future__ import annotations

from typing import Any

from evoengine.bottleneck import columns
from evoengine.cli.tables import console, say, table


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
    cells = [columns(row["profile"]) for row in profiled]
    drawn = table("\nprofiled, % of the peak", ">#", *(f">{head}" for head in cells[0]))
    for row, figures in zip(profiled, cells, strict=True):
        drawn.add_row(str(row["trial"]), *figures.values())
    console().print(drawn)
    for row in profiled:
        say(console(), f"trial {row['trial']}: {row['profile']['diagnosis']}")
