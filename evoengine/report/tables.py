"""The tables of a report, as plain texts; the page and the Markdown differ in how they write them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from evoengine.bottleneck import columns, waits
from evoengine.report.facts import Facts, Row

REASONS = 12
"""Rows of the table of rejections."""


class Table(NamedTuple):
    """`heads` that begin with `>` are of columns to be aligned right."""

    id: str
    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def configs(facts: Facts) -> list[Table]:
    """The finalists, else what the search measured; and the shortlist, which is estimated."""
    summary = facts.summary
    made = []
    if summary["elites"]:
        made.append(_configs(facts, "elites", "Confirmed in the final run", summary["elites"], _CONFIRMED))
    elif summary["measured"]:
        note = "No final run has confirmed these: the fastest of many noisy measurements looks faster than it is."
        made.append(_configs(facts, "measured", "Measured in the search", summary["measured"], _MEASURED, note))
    if summary["shortlist"]:
        note = "ESTIMATED, not measured: these compile, fit and compute the right answer; the order is a model's guess."
        made.append(_configs(facts, "shortlist", "Shortlist", summary["shortlist"], _ESTIMATED, note))
    return made


def shapes(facts: Facts) -> Table:
    """The best config at every shape of a study of several; nothing otherwise."""
    best = facts.best
    rows = best.get("shapes", ()) if best else ()
    columns = [(head, cell) for head, cell in _SHAPE if any(cell(one) != "-" for one in rows)]
    heads = ["shape", ">weight", *(head for head, _ in columns)]
    cells = [[one["shape"], f"{one['weight']:g}", *(cell(one) for _, cell in columns)] for one in rows]
    note = "Times and ratios of a config are the weighted geometric means of what it has at these shapes."
    if best and "worst_shape" in best:
        note += f" At worst it is {1 / best['worst_ratio_to_default']:.2f}x the default config ({best['worst_shape']})."
    return Table("shapes", f"Trial {best['trial']} at every shape" if best else "", heads, cells, note)


def baselines(facts: Facts) -> Table:
    """What the finalists are compared with, timed in the same run."""
    default = facts.default_us
    rows = [["default config", f"{default:.3f}", "-", "1.00x", "-", ""]] if default else []
    for row in facts.summary["baselines"]:
        if "unavailable" in row:
            rows.append([row["name"], "-", "-", "-", "-", f"does not run here: {row['unavailable']}"])
        else:
            ratio = f"{default / row['median_us']:.2f}x" if default else "-"
            rows.append([row["name"], f"{row['median_us']:.3f}", f"{row['noise']:.1%}", ratio, _error(row), ""])
    return Table("baselines", "Baselines", ["baseline", ">µs", ">noise", ">vs default", ">error", ""], rows)


def rejections(facts: Facts) -> Table:
    """Why candidates were refused, the commonest first."""
    found = facts.summary["rejections"]
    rows = [[row["gate"], str(row["count"]), row["example"], str(row["trial"])] for row in found[:REASONS]]
    hidden = sum(row["count"] for row in found[REASONS:])
    note = f"{hidden} more for {len(found) - REASONS} other reasons." if hidden else ""
    return Table("rejections", "Rejected", ["gate", ">configs", "why (an example)", ">trial"], rows, note)


def profiles(facts: Facts) -> Table:
    """What Nsight Compute counted of those finalists that were profiled."""
    profiled = [(str(row["trial"]), row["profile"]) for row in facts.summary["elites"] if row["profile"]]
    counted = [columns(profile) for _, profile in profiled]
    rows = [
        [trial, *figures.values(), waits(profile), profile["diagnosis"]]
        for (trial, profile), figures in zip(profiled, counted, strict=True)
    ]
    heads = [">trial", *(f">{head}" for head in next(iter(counted), ())), "a warp's time waiting", "what bounds it"]
    note = "Percent of the peak; warps: of those that an SM holds; conflicts: of the wavefronts of shared memory."
    return Table("profiles", "Profiled by Nsight Compute", heads, rows, note)


def cards(facts: Facts) -> Table:
    """What each card of a search on several had to do; no rows where there was one."""
    rows = [
        [row["card"], str(row["judged"]), str(row["measured"]), f"{row['control_us']:.3f}", f"{row['noise']:.1%}"]
        for row in facts.summary.get("cards", ())
    ]
    heads = ["card", ">judged", ">measured", ">default µs", ">noise"]
    return Table("cards", "Cards, each with its own control", heads, rows)


def environment(facts: Facts) -> Table:
    """Everything that was recorded of the machine, nested facts as `clocks.power_w`."""
    flat = dict(_flat(facts.summary["environment"]))
    return Table("environment", "Environment", ["", ""], [[name, value] for name, value in flat.items()])


def provenance(facts: Facts) -> Table:
    """What a reader needs to trust a number or to get it again."""
    summary = facts.summary
    sources = "; ".join(f"{one['name']} ({one['known']} configs, {one['digest']})" for one in summary["sources"])
    rows = [
        ["study", summary["study"]],
        ["template", f"{summary['template']}, digest {summary['template_digest']}"],
        ["search space", f"digest {summary['space_digest']}"],
        ["problem", ", ".join(f"{name}={value}" for name, value in summary["problem"].items()) or "see the shapes"],
        *(["shape", f"{one['shape']}, weight {one['weight']:g}"] for one in summary.get("shapes", ())),
        ["device", f"{summary['device']}, {summary['arch']}, limits of {summary['limits']}"],
        ["toolchain", summary["toolchain"]],
        ["sampler", f"{summary['sampler']}, seed {summary['seed']}"],
        ["known beforehand", sources or "nothing"],
        ["budget", f"{summary['spent']} of {summary['budget']} candidates"],
        ["begun", summary["created_at"]],
        ["report", f"evoengine {facts.version}, {facts.made_at}"],
    ]
    return Table("provenance", "Provenance", ["", ""], rows)


def commands(facts: Facts) -> list[str]:
    """How to get the numbers again, and how to use them."""
    name = shlex.quote(facts.summary["study"])
    found = [facts.summary["command"], f"evoengine show {name}"]
    if facts.estimated:
        found.append(f"evoengine resume {name}  # on a machine with the card: measures the shortlist")
    return [*found, f"evoengine export {name} -o config.h"] if facts.best else found


def _configs(
    facts: Facts, id: str, title: str, rows: Sequence[Row], columns: Sequence[tuple[str, Cell]], note: str = ""
) -> Table:
    columns = [column for column in columns if column[0] != ">at worst" or any("worst_shape" in row for row in rows)]
    heads = [">trial", *(head for head, _ in columns), *(head for head, _ in _RESOURCES), "differs from the default in"]
    cells = [
        [
            str(row["trial"]),
            *(cell(row) for _, cell in (*columns, *_RESOURCES)),
            " ".join(f"{name}={value}" for name, value in facts.changed(row).items()) or "nothing",
        ]
        for row in rows
    ]
    return Table(id, title, heads, cells, note)


def _interval(row: Row) -> str:
    low, high = row["ratio_to_default_95"]
    return f"{1 / high:.2f} to {1 / low:.2f}" if low and high else "-"


def _error(row: Row) -> str:
    return "-" if row["error"] is None else f"{row['error']:.1e}"


def _figure(name: str) -> Cell:
    return lambda row: str(row.get(name, "-"))


def _optional(name: str, form: str) -> Cell:
    return lambda row: form.format(row[name]) if row.get(name) is not None else "-"


def _flat(nested: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    flat: list[tuple[str, str]] = []
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat += _flat(value, f"{before}{name}.")
        else:
            flat.append((f"{before}{name}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return flat


Cell = Callable[[Row], str]
_TIME: list[tuple[str, Cell]] = [
    (">µs", lambda row: f"{row['median_us']:.3f}"),
    (">noise", lambda row: f"{row['noise']:.1%}"),
    (">vs default", lambda row: f"{1 / row['ratio_to_default']:.2f}x"),
    (">at worst", lambda row: f"{1 / row['worst_ratio_to_default']:.2f}x" if "worst_shape" in row else "-"),
]
_CONFIRMED: list[tuple[str, Cell]] = [
    *_TIME,
    (">95 %", _interval),
    (">vs SDPA", lambda row: f"{row['ratio_to_sdpa']:.2f}x" if row["ratio_to_sdpa"] else "-"),
    ("verdict", _figure("verdict")),
]
_MEASURED = _TIME

_SHAPE: list[tuple[str, Cell]] = [
    (">µs", _optional("median_us", "{:.3f}")),
    (">estimated µs", _optional("estimated_us", "{:.2f}")),
    (">noise", _optional("noise", "{:.1%}")),
    (">vs default", lambda row: f"{1 / row['ratio_to_default']:.2f}x" if row.get("ratio_to_default") else "-"),
    (">vs SDPA", _optional("ratio_to_sdpa", "{:.2f}x")),
    ("verdict", _figure("verdict")),
]
_ESTIMATED: list[tuple[str, Cell]] = [(">estimated µs", lambda row: f"{row['estimated_us']:.2f}")]
_RESOURCES: list[tuple[str, Cell]] = [
    (">regs", _figure("registers")),
    (">spill B", _figure("spill_bytes")),
    (">smem B", _figure("smem_bytes")),
    (">CTAs/SM", _figure("ctas_per_sm")),
    (">error", _error),
]
