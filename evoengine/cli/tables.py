"""How evoengine prints: one console, one look for every table."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 224
"""Columns when standard output is not a terminal: wide enough for the longest config label beside its figures."""
BESIDE, BELOW = 3, 2
"""Characters between two columns, where a config's label stands beside its figures, and where it stands below them."""


def console(*, stderr: bool = False) -> Console:
    """A console without rich's guesses: no number colouring, no emoji, no markup in our texts."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(stderr=stderr, highlight=False, emoji=False, markup=False, width=width, soft_wrap=False)


class Pieces:
    """Texts one behind the other, broken between them alone where they do not fit on a line."""

    def __init__(self, pieces: Sequence[Text]) -> None:
        self._pieces = pieces

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        widths = [piece.cell_len for piece in self._pieces]
        return Measurement(max(widths, default=0), sum(widths)).with_maximum(options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        line = Text(overflow="fold")
        for piece in self._pieces:
            if line and line.cell_len + cell_len(piece.plain.rstrip()) > options.max_width:
                yield line
                line = Text(overflow="fold")
            line.append_text(piece)
        yield line


class Label(Pieces):
    """A config's label, `wm_4.bn_64...`, which is broken behind a dot."""

    def __init__(self, text: str, style: str = "") -> None:
        *tokens, last = text.split(".")
        super().__init__([Text(token, style) for token in [*(f"{token}." for token in tokens), last]])


def say(out: Console, text: str, style: str = "") -> None:
    """A sentence: on a terminal broken between words, elsewhere one line for whoever searches it."""
    out.print(Text(text, style), soft_wrap=not out.is_terminal)


def table(title: str, *columns: str) -> Table:
    """A table; a column whose name starts with `>` is right-aligned."""
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        made.add_column(column.lstrip(">"), justify="right" if right else "left", overflow="fold")
    return made


def labelled(
    title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], labels: Sequence[str], width: int
) -> RenderableType:
    """A table of configs: the label beside its figures where each fits on one line of `width`, else below them."""
    words = [head.lstrip(">") for head in heads]
    sizes = [max(map(cell_len, column)) for column in zip(words, *rows, strict=True)]
    if 1 + sum(sizes) + BESIDE * len(sizes) + max(map(cell_len, labels)) < width:
        drawn = table(title, heads[0], "config", *heads[1:])
        for row, label in zip(rows, labels, strict=True):
            drawn.add_row(row[0], Label(label), *row[1:])
        return drawn
    rule = f" {'─' * (sum(sizes) + BELOW * (len(sizes) - 1))}"
    parts: list[RenderableType] = [Text(f"{title}\n", "bold"), _figures(heads, sizes, words, "bold"), Text(rule)]
    for row, label in zip(rows, labels, strict=True):
        parts += [_figures(heads, sizes, row), Padding(Label(label, "dim"), (0, 0, 0, 1 + sizes[0] + BELOW))]
    return Group(*parts, "")


def _figures(heads: Sequence[str], sizes: Sequence[int], row: Sequence[str], style: str = "") -> Text:
    """One line, each figure in its column."""
    cells = [
        cell.rjust(size) if head.startswith(">") else cell.ljust(size)
        for head, size, cell in zip(heads, sizes, row, strict=True)
    ]
    return Text(f" {(' ' * BELOW).join(cells)}".rstrip(), style)
