"""The dispatch table of several shapes: which config is for which, how much that gains, and how it is exported."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Callable
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from evoengine.archive.study import Study
from evoengine.cli.result import WIDE
from evoengine.cli.tables import Label, console, table
from evoengine.errors import UserError
from evoengine.export.chosen import choose
from evoengine.problem import AttentionProblem, problem_fields
from evoengine.question import Question
from evoengine.template import Template


def dispatch_row(question: Question, study: Study | None, state: str) -> dict[str, Any]:
    """What is found for a shape: the config that `export` takes from its study, or `why` there is none.

    Times are microseconds a launch; speed-ups are the other's time over the config's.
    """
    problem = question.problem
    row = {"shape": problem.label, "problem": problem_fields(problem), "study": study and study.name, "state": state}
    if study is None:
        return row
    try:
        [chosen] = choose(study, question)
    except UserError as error:
        return {**row, "why": str(error)}
    facts = chosen.facts
    return {
        **row,
        "trial": facts.trial,
        "label": facts.config,
        "config": dict(chosen.values),
        "median_us": facts.median_us,
        "estimated_us": facts.estimated_us,
        "noise": facts.noise,
        "speedup_over_default": facts.speedup_over_default,
        "speedup_over_sdpa": facts.speedup_over_sdpa,
        "verdict": chosen.row.get("verdict"),
    }


def dispatch_table(template: Template, rows: list[dict[str, Any]], storage: str) -> dict[str, Any]:
    """The rows with the geometric mean of the speed-ups over the default config, the worst of them, and the commands
    that export it; `storage` is the option that they need."""
    speedups = [row["speedup_over_default"] for row in rows if row.get("speedup_over_default")]
    return {
        "template": template.name,
        "shapes": rows,
        "geometric_mean_over_default": statistics.geometric_mean(speedups) if speedups else None,
        "worst_over_default": min(speedups, default=None),
        "exports": _exports(template, [row for row in rows if "trial" in row], storage),
    }


def _exports(template: Template, rows: list[dict[str, Any]], storage: str) -> list[str]:
    """One C header with a block a shape, wisdom, a package for PyTorch: the last two hold nothing but measured times,
    and `evoengine.load` calls attention alone."""
    if not rows:
        return []
    forms = [("header", ".h")]
    if all(row["median_us"] is not None for row in rows):
        forms.append(("wisdom", ".wisdom"))
        if template.module.PROBLEM is AttentionProblem:
            forms.append(("torch", "_kernels"))
    command = f"evoengine export {shlex.join(row['study'] for row in rows)}{storage}"
    return [f"{command} --format {form} -o {shlex.quote(template.name + ending)}" for form, ending in forms]


def show_dispatch(document: dict[str, Any]) -> None:
    """Print the table; on a narrow terminal without what the study's own table has."""
    out = console()
    rows = document["shapes"]
    columns = _COLUMNS if out.width >= WIDE else [column for column in _COLUMNS if column[0] not in _WIDE_ONLY]
    shown = [column for column in columns if column[0] in ("shape", "config") or any(column[1](row) for row in rows)]
    drawn = table("\na config for every shape", *(head for head, _ in shown))
    for row in rows:
        drawn.add_row(*(cell(row) or "-" for _, cell in shown))
    out.print(drawn)
    if any(row.get("estimated_us") for row in rows):
        out.print(
            Text("ESTIMATED, not measured: resume the studies on a machine with the card to measure them", "magenta")
        )
    worst, mean = document["worst_over_default"], document["geometric_mean_over_default"]
    if worst is not None:
        where = next(row["shape"] for row in rows if row.get("speedup_over_default") == worst)
        out.print(
            f"over the default config: {mean:.2f}x in the geometric mean, {worst:.2f}x at worst ({where})",
            soft_wrap=True,
        )
    for command in document["exports"]:
        out.print(command, soft_wrap=True)


def _number(name: str, form: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: form.format(row[name]) if row.get(name) is not None else ""


def _text(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: str(row.get(name) or "")


_COLUMNS: list[tuple[str, Callable[[dict[str, Any]], RenderableType]]] = [
    ("shape", _text("shape")),
    ("config", lambda row: Label(row.get("label") or "-")),
    (">us", _number("median_us", "{:.3f}")),
    (">estimated us", _number("estimated_us", "{:.3f}")),
    (">noise", _number("noise", "{:.1%}")),
    (">vs default", _number("speedup_over_default", "{:.2f}x")),
    (">vs SDPA", _number("speedup_over_sdpa", "{:.2f}x")),
    ("verdict", _text("verdict")),
    ("study", _text("study")),
    ("ended", _text("state")),
]
_WIDE_ONLY = {">noise", "verdict", "study", "ended"}
