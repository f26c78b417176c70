"""What a search was worth, as a table."""

from __future__ import annotations

from typing import Any

from evoengine.cli.tables import console, table
from evoengine.report.words import worth_in_words


def show_worth(found: dict[str, Any]) -> None:
    """Print the document of `worth.worth`."""
    drawn = table("\nwhat the search was worth" + ("" if found["measured"] else ": ESTIMATED, not measured"), "", "")
    drawn.show_header = False
    for name, text in worth_in_words(found):
        drawn.add_row(name, text)
    console().print(drawn)
