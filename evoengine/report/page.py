"""One self-contained page: no network, no fonts, every script by its hash, every text escaped."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from evoengine.report import tables
from evoengine.report.device_plots import finalists, resources
from evoengine.report.facts import Facts
from evoengine.report.knob_plots import coordinates, slices, weights
from evoengine.report.roofline import roofline
from evoengine.report.search_plots import curve, funnel
from evoengine.report.style import Plot
from evoengine.report.tables import Table
from evoengine.report.words import answer, worth_in_words

HERE = Path(__file__).parent


def render_page(facts: Facts, plotly: str) -> str:
    """The whole HTML document. `plotly` is plotly.js, which is inlined.

    A content security policy lets the page's own two scripts run and nothing else, and forbids every request: a text
    that slipped through escaping could not run. ('unsafe-eval': the parallel coordinates compile their shaders' calls.)
    """
    plots = [
        finalists(facts),
        curve(facts),
        funnel(facts),
        weights(facts),
        slices(facts),
        coordinates(facts),
        resources(facts),
        roofline(facts),
    ]
    at = {plot.id: _figure(plot) for plot in plots}
    script = (HERE / "page.js").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {_hash(plotly)} {_hash(script)} 'unsafe-eval'; style-src 'unsafe-inline'; "
        "img-src data: blob:; form-action 'none'; base-uri 'none'"
    )
    figures = [{"id": plot.id, "figure": plot.figure} for plot in plots if plot.figure]
    return f"""<!DOCTYPE html>
<html lang="en"{' class="estimated"' if facts.estimated else ""}>
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="evoengine {escape(facts.version)}">
<title>{escape(facts.summary["study"])}: evoengine</title>
<style>
{(HERE / "page.css").read_text(encoding="utf-8")}</style>
</head>
<body>
{_head(facts)}
<h2>Result</h2>
{at["finalists"]}
{"".join(map(_table, tables.configs(facts)))}
{_table(tables.shapes(facts))}
{_table(tables.baselines(facts))}
<h2>Search</h2>
{at["curve"]}
{_worth(facts)}
{at["funnel"]}
{_table(tables.rejections(facts))}
<h2>Knobs</h2>
{at["weights"]}
{at["slices"]}
{at["coordinates"]}
<h2>Card</h2>
{at["resources"]}
{at["roofline"]}
{_table(tables.profiles(facts))}
<h2>Provenance</h2>
<h3>How to reproduce</h3>
<pre>{escape(chr(10).join(tables.commands(facts)))}</pre>
{_table(tables.provenance(facts))}
{_table(tables.cards(facts))}
{_table(tables.environment(facts))}
<script type="application/json" id="summary">{_json(facts.summary)}</script>
<script type="application/json" id="figures">{_json(figures)}</script>
<script>{plotly}</script>
<script>{script}</script>
</body>
</html>
"""


def _head(facts: Facts) -> str:
    summary = facts.summary
    where = f"{summary['template']} · {summary['shape']} · {summary['device']}"
    limits = f" · limits of {summary['limits']}" if summary["limits"] != summary["device"] else ""
    banner = (
        '<p class="banner"><strong>ESTIMATED.</strong> Nothing here was timed. These configs compile, fit and compute '
        "the right answer in the PTX interpreter; the order is a model's guess.</p>"
        if facts.estimated
        else ""
    )
    tiles = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)} <small>{escape(unit)}</small></dd></div>"
        for name, value, unit in _tiles(facts)
    )
    return f"""<header>
<h1>{escape(summary["study"])}</h1>
<p class="about">{escape(where + limits)}</p>
{banner}
<p class="answer">{escape(answer(summary))}</p>
<dl class="tiles{" timed" if facts.best else ""}">{tiles}</dl>
</header>"""


def _tiles(facts: Facts) -> list[tuple[str, str, str]]:
    """(name, value, unit) of the numbers that come first."""
    best, summary = facts.best, facts.summary
    tiles: list[tuple[str, str, str]] = []
    if best and "estimated_us" in best:
        tiles.append(("best, ESTIMATED", f"{best['estimated_us']:.2f}", "µs"))
    elif best:
        verdict = best.get("verdict", "not confirmed")
        kind = "best, confirmed" if verdict == "FASTER" else f"fastest, {verdict}"
        tiles.append((kind, f"{best['median_us']:.3f}", f"µs ±{best['noise']:.1%}"))
        tiles.append(("vs the default config", f"{1 / best['ratio_to_default']:.2f}", "x"))
        if "worst_shape" in best:
            tiles.append(("at worst", f"{1 / best['worst_ratio_to_default']:.2f}", f"x, {best['worst_shape']}"))
        if best.get("ratio_to_sdpa"):
            tiles.append(("vs PyTorch SDPA", f"{best['ratio_to_sdpa']:.2f}", "x"))
    tiles.append(("candidates", str(summary["spent"]), f"of {summary['budget']}"))
    if summary["worth"]:
        tiles.append(("within 1 % after", str(summary["worth"]["evaluations_to_1_percent"]), "evaluations"))
    return tiles


def _figure(plot: Plot) -> str:
    drawn = (
        f'<div class="scroll"><div class="plot" id="{plot.id}" style="height:{plot.figure["layout"]["height"]}px">'
        "</div></div>"
        if plot.figure
        else ""
    )
    return f"<figure><h3>{escape(plot.title)}</h3>{drawn}<figcaption>{escape(plot.caption)}</figcaption></figure>"


def _worth(facts: Facts) -> str:
    if not facts.summary["worth"]:
        return ""
    return _table(Table("worth", "What the search was worth", ["", ""], worth_in_words(facts.summary["worth"], "µs")))


def _table(table: Table) -> str:
    """A table with heads, or, where they are empty, facts: a name and what is known of it."""
    if not table.rows:
        return ""
    caption = f"<caption>{escape(table.title)}</caption>"
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    if not any(table.heads):
        rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in table.rows)
        return f'<table class="facts" id="table-{table.id}">{caption}{rows}</table>{note}\n'
    sides = [' class="right"' if head.startswith(">") else "" for head in table.heads]
    heads = "".join(f"<th{side}>{escape(head.lstrip('>'))}</th>" for side, head in zip(sides, table.heads, strict=True))
    rows = "".join(f"<tr>{_cells(sides, row)}</tr>" for row in table.rows)
    return (
        f'<div class="scroll"><table id="table-{table.id}">{caption}<thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{note}\n"
    )


def _cells(sides: Sequence[str], row: Sequence[str]) -> str:
    return "".join(f"<td{side}>{escape(cell)}</td>" for side, cell in zip(sides, row, strict=True))


def _json(document: Any) -> str:
    """JSON that can hold no end tag."""
    return json.dumps(document).replace("<", "\\u003c")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
