"""The picture of growth: proposals by space, the database's share by kind, and what a user waits for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = ("#023e8a", "#0096c7", "#c1121f", "#f77f00", "#2d6a4f")


def draw(document: dict[str, Any], path: Path) -> None:
    """Four panels over trials; dotted lines are the limits: 100 ms a proposal, 20 ms a verdict, 1 GB."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 2, figsize=(10.4, 7.2), sharex=True)
    proposals, tells, waits, memory = panels.flat
    spaces = sorted({(row["size"], row["tied"], row["feasible"]) for row in document["proposals"]})
    for colour, (size, tied, feasible) in zip(COLOURS, spaces, strict=False):
        rows = [row for row in document["proposals"] if (row["size"], row["tied"]) == (size, tied)]
        label = f"{feasible:,} configs{', listed as a whole' if tied else ''}"
        _line(proposals, rows, "propose_ms", label, colour)
        _line(memory, rows, "peak_mb", f"search, {label}", colour)
    databases = sorted({row["database"] for row in document["studies"]}, reverse=True)
    for style, database in zip(("o-", "s--"), databases, strict=False):
        rows = [row for row in document["studies"] if row["database"] == database]
        _line(tells, rows, "tell_ms", f"verdict, {database}", COLOURS[0], style)
        _line(tells, rows, "claim_ms", f"claim, {database}", COLOURS[2], style)
        _line(memory, rows, "resume_peak_mb", f"resume, {database}", "0.35", style)
        for colour, (key, label) in zip(
            COLOURS, {"resume_s": "resume", "show_s": "show", "report_s": "report"}.items(), strict=False
        ):
            _line(waits, rows, key, f"{label}, {database}", colour, style)
    for panel, title, unit, limit in (
        (proposals, "a proposal, median", "ms", 100),
        (tells, "the database's share of a trial", "ms", 20),
        (waits, "a user waits, from the start of the process", "s", None),
        (memory, "peak memory of a process", "MB", 1000),
    ):
        panel.set(xscale="log", title=title, ylabel=unit)
        panel.grid(alpha=0.25)
        if limit is not None:
            panel.axhline(limit, color="0.4", linestyle=":", linewidth=1.2)
        panel.set_ylim(bottom=0)
        panel.legend(fontsize=7.5)
    for panel in panels[-1]:
        panel.set_xlabel("trials in the study")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _line(panel: Any, rows: list[dict[str, Any]], key: str, label: str, colour: str, style: str = "o-") -> None:
    rows = sorted(rows, key=lambda row: row["trials"])
    panel.plot([row["trials"] for row in rows], [row[key] for row in rows], style, label=label, color=colour)
