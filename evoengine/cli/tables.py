"""How evoengine prints: one console, one look for every table."""

from __future__ import annotations

import sys

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 176
"""Columns when standard output is not a terminal: wide enough for the longest config label beside its figures."""


def console(*, stderr: bool = False) -> Console:
    """A console without rich's guesses: no number colouring, no emoji, no markup in our texts."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(stderr=stderr, highlight=False, emoji=False, markup=False, width=width, soft_wrap=False)


class Label:
    """A config's label, `wm_4.bn_64...`, which is broken behind a dot where it does not fit on a line."""

    def __init__(self, text: str, style: str = "") -> None:
        *tokens, last = text.split(".")
        self._tokens = [*(f"{token}." for token in tokens), last]
        self._style = style

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        widths = [cell_len(token) for token in self._tokens]
        return Measurement(max(widths), sum(widths)).with_maximum(options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = [""]
        for token in self._tokens:
            if lines[-1] and cell_len(lines[-1] + token) > options.max_width:
                lines.append("")
            lines[-1] += token
        yield Text("\n".join(lines), self._style, overflow="fold")


def table(title: str, *columns: str) -> Table:
    """A table; a column whose name starts with `>` is right-aligned."""
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        made.add_column(column.lstrip(">"), justify="right" if right else "left", overflow="fold")
    return made
