"""A search's result as a picture of a terminal: python docs/draw_result.py docs/search.svg DOCUMENT.json

DOCUMENT.json is what `evoengine search --json` printed. The picture in README.md is of
studies/h200/elites/B1_H8_S512_D64_fp16.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console
from rich.text import Text

from evoengine.cli.result import show_result

ROWS = 3
"""Elites in the picture."""
COLUMNS = 112


class Terminal(io.StringIO):
    """Takes what is printed as a terminal does: in colours, at its own width."""

    def isatty(self) -> bool:
        return True


def draw(document: Mapping[str, Any]) -> str:
    """The picture as SVG, without anything that a browser would have to fetch."""
    shown = {**document, "elites": document["elites"][:ROWS]}
    screen = Terminal()
    wide = {"COLUMNS": str(COLUMNS), "TERM": "xterm-256color", "NO_COLOR": ""}
    with patch.dict("os.environ", wide), contextlib.redirect_stdout(screen):
        show_result(shown)
    picture = Console(record=True, width=COLUMNS, file=io.StringIO())
    picture.print(Text.from_ansi(f"$ {document['command']}\n{screen.getvalue()}"))
    svg = picture.export_svg(title=f"{document['device']}, {document['created_at'][:10]}", unique_id="result")
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, help="SVG to write")
    parser.add_argument("document", type=Path, help="output of `evoengine search --json`")
    arguments = parser.parse_args()
    arguments.picture.write_text(draw(json.loads(arguments.document.read_text())))


if __name__ == "__main__":
    main()
