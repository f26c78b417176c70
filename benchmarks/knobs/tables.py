"""What `knob_effects` measured, as a table in the terminal and as the table of the template's README.

The worth of an axis on a shape is read off the neighbours that change nothing else; where rules leave none, off those
that change other axes as well (marked *: their ratio is not the axis's alone). `best` is the smallest time over the
control's among the other choices: what the search would lose without the elite's choice. `worst` is the largest: what a
wrong choice costs. A neighbour with the control's cubin, launch and arguments has the ratio 1.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evoengine.cli.tables import console, table
from evoengine.errors import UserError

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Worth:
    """An axis on one shape: the control's choice against its best and its worst alternative.

    `sign` is 1 where the control's choice is faster than every other, -1 where another one is faster, and 0 where the
    best alternative's 95 % interval meets the interval of the control against itself.
    """

    shape: str
    choice: int
    best: float
    best_choice: int
    worst: float
    worst_choice: int
    sign: int
    dead: bool
    also: bool


def read(path: Path) -> dict[str, Any]:
    """The document that `knob_effects` wrote.

    Raises:
        UserError: it is not there, or something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): measure first, or give the right --output") from error
    if not isinstance(document, dict) or not all(
        "axes" in row or "failed" in row for row in document.get("rows", [{}])
    ):
        raise UserError(f"{path} is not what knob_effects wrote: give the right --output")
    return document


def worth(row: Row, name: str) -> Worth | None:
    """None where no other choice of the axis was timed, or equals the control."""
    axis = row["axes"].get(name, {"others": []})
    usable = [one for one in axis["others"] if one.get("dead") or "ratio" in one]
    alone = [one for one in usable if not one["also"]]
    others = sorted(alone or usable, key=_ratio)
    if not others:
        return None
    best, worst = others[0], others[-1]
    equal_low = min(one["ratio_95"][0] for one in row["again"])
    equal_high = max(one["ratio_95"][1] for one in row["again"])
    low, high = best.get("ratio_95", (1.0, 1.0))
    sign = 1 if low > max(equal_high, 1.0) else -1 if high < min(equal_low, 1.0) else 0
    dead = all(one.get("dead") for one in others)
    return Worth(
        row["label"],
        axis["choice"],
        _ratio(best),
        best["choice"],
        _ratio(worst),
        worst["choice"],
        sign,
        dead,
        not alone,
    )


def show(document: Row) -> None:
    """Axes by shapes: the elite's choice, then best and worst alternative over it."""
    out = console()
    rows = [row for row in document["rows"] if "axes" in row]
    for number, row in enumerate(rows, 1):
        tried = [one for axis in row["axes"].values() for one in axis["others"]]
        rejected = [one for one in tried if "gate" in one and one["gate"] != "static"]
        equal = max(abs(limit - 1) for one in row["again"] for limit in one["ratio_95"])
        dead = sum(bool(one.get("dead")) for one in tried)
        out.print(
            f"({number}) {row['label']}: {row['control']['median_us']:.3f} us, {row['control']['label']}; "
            f"{sum('ratio' in one for one in tried)} neighbours timed, {dead} dead, {len(rejected)} rejected, "
            f"{sum('skipped' in one for one in tried)} skipped; "
            f"equal kernels within {equal:.1%}; {row['seconds']:.0f} s",
            soft_wrap=True,
        )
        for one in rejected:
            out.print(f"    {one['label']}: {one['gate']}: {one['rejected']}", soft_wrap=True)
    for row in document["rows"]:
        if "failed" in row:
            out.print(f"{row['label']}: {row['failed']}", soft_wrap=True)
    drawn = table("", "axis", *(f">({number})" for number in range(1, len(rows) + 1)))
    for name in _axes(rows):
        drawn.add_row(name, *(_cell(worth(row, name)) for row in rows))
    out.print(drawn)
    out.print(
        "elite's choice: time of its best to its worst alternative over its own. = same machine code, ~ no difference "
        "beyond that of equal kernels, - no alternative keeps the rules, * other axes had to change too"
    )


def markdown(document: Row) -> str:
    """The README's table, an axis a line: how much slower the best other choice is, over the shapes.

    Neighbours that change other axes too are counted apart: their ratios are not the axis's alone.
    """
    rows = [row for row in document["rows"] if "axes" in row]
    lines = ["| macro | worth (elite's choice against the other) |", "| --- | --- |"]
    for name in _axes(rows):
        found = [one for row in rows if (one := worth(row, name)) is not None]
        lines.append(f"| `EVO_{name}` | {_sentence(found, len(rows))} |")
    return "\n".join(lines)


def _sentence(found: Sequence[Worth], shapes: int) -> str:
    alone = [one for one in found if not one.also]
    live = [one for one in alone if not one.dead]
    parts = []
    if live:
        most = max(live, key=lambda one: one.best)
        parts.append(
            f"median {statistics.median(one.best for one in live):.2f}x, most {most.best:.2f}x ({most.shape}: "
            f"{most.choice} against {most.best_choice})"
        )
        worst = max(live, key=lambda one: one.worst)
        if worst.worst_choice != worst.best_choice:
            parts.append(f"a wrong choice up to {worst.worst:.2f}x")
        parts.append(f"faster on {sum(one.sign > 0 for one in live)} of {shapes} shapes")
        equal, slower = sum(one.sign == 0 for one in live), [one for one in live if one.sign < 0]
        if equal:
            parts.append(f"no difference on {equal}")
        if slower:
            least = min(slower, key=lambda one: one.best)
            parts.append(f"slower on {len(slower)} (down to {least.best:.2f}x, {least.shape}: {least.best_choice})")
    if len(alone) > len(live):
        parts.append(f"same machine code on {len(alone) - len(live)}")
    if len(found) > len(alone):
        parts.append(f"only along with other axes on {len(found) - len(alone)}")
    if len(found) < shapes:
        parts.append(f"no other choice on {shapes - len(found)}")
    return "; ".join(parts)


def _axes(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row["axes"]))


def _ratio(one: Row) -> float:
    return float(one.get("ratio", 1.0))


def _cell(one: Worth | None) -> str:
    if one is None:
        return "-"
    if one.dead:
        return f"{one.choice}: ="
    mark = "~" if one.sign == 0 else ""
    span = f"{one.best:.2f}" if one.best_choice == one.worst_choice else f"{one.best:.2f} to {one.worst:.2f}"
    return f"{one.choice}: {mark}{span}{'*' if one.also else ''}"
