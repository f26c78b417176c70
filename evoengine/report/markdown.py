"""The tables of a report as Markdown for a pull request."""

from __future__ import annotations

import re
from html import escape

from evoengine.report import tables
from evoengine.report.facts import Facts
from evoengine.report.tables import Table
from evoengine.report.words import answer, worth_in_words


def render_markdown(facts: Facts) -> str:
    """The whole document. Texts of the study are shown literally, whatever Markdown or HTML they hold."""
    summary = facts.summary
    parts = [f"## {_text(summary['study'])}"]
    where = f"{summary['template']} {summary['shape']} on {summary['device']}, limits of {summary['limits']}"
    parts.append(_text(where))
    parts.append(f"**{_text(answer(summary))}**")
    counts = ", ".join(f"{count} {name}" for name, count in summary["verdicts"].items()) or "none"
    parts.append(f"{summary['spent']} of {summary['budget']} candidates: {_text(counts)}.")
    shown = (tables.shapes, tables.baselines, tables.profiles, tables.rejections)
    parts += [_table(table) for table in (*tables.configs(facts), *(of(facts) for of in shown))]
    if summary["worth"]:
        title = "What the search was worth" + ("" if facts.measured else ": ESTIMATED, not measured")
        parts.append(_table(Table("worth", title, ["", ""], worth_in_words(summary["worth"], "µs"))))
    parts.append("### How to reproduce")
    parts.append("\n".join(f"    {command}" for command in _lines(tables.commands(facts))))
    parts += [_folded(table) for table in (tables.provenance(facts), tables.cards(facts), tables.environment(facts))]
    return "\n\n".join(filter(None, parts)) + "\n"


def _table(table: Table) -> str:
    if not table.rows:
        return ""
    note = f"\n\n{_text(table.note)}" if table.note else ""
    return f"### {_text(table.title)}\n\n{_grid(table)}{note}"


def _folded(table: Table) -> str:
    """A table that is opened by a click."""
    if not table.rows:
        return ""
    return f"<details><summary>{escape(table.title)}</summary>\n\n{_grid(table)}\n\n</details>"


def _grid(table: Table) -> str:
    sides = ["---:" if head.startswith(">") else "---" for head in table.heads]
    rows = [[head.lstrip(">") for head in table.heads], *table.rows]
    head, *body = [f"| {' | '.join(map(_text, row))} |" for row in rows]
    return "\n".join([head, f"| {' | '.join(sides)} |", *body])


def _text(plain: str) -> str:
    """One line, with every sign that Markdown or HTML could take for its own made harmless.

    A predicate in a compiler's message (`@p0`) must not call for the user of that name: an invisible space parts them.
    """
    escaped = re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", escape(" ".join(plain.split()), quote=False))
    return escaped.replace("@", "@&#8203;")


def _lines(commands: list[str]) -> list[str]:
    """Commands for an indented code block, in which nothing is special but the end of a line."""
    return [" ".join(command.split()) for command in commands]
