"""How evoengine prints: one console, one look for every table."""

from __future__ import annotations

import sys

from rich import box
from rich.console import Console
from rich.table import Table

PIPE_WIDTH = 176
"""Columns when standard output is not a terminal: wide enough for the longest config label beside its figures."""


def console(*, stderr: bool = False) -> Console:
    """A console without rich's guesses: no number colouring, no emoji, no markup in our texts."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(stderr=stderr, highlight=False, emoji=False, markup=False, width=width, soft_wrap=False)


def table(title: str, *columns: str) -> Table:
    """A table; a column whose name starts with `>` is right-aligned."""
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        made.add_column(column.lstrip(">"), justify="right" if right else "left", overflow="fold")
    return made
