"""The documentation says what the code does: a reference made from the parser, links that lead somewhere."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

sys.path.insert(0, str(ROOT / "docs"))
from generate_cli import reference  # noqa: E402  # a script beside the pages, not a package


def test_the_command_reference_is_that_of_the_parser() -> None:
    assert reference() == (ROOT / "docs" / "cli.md").read_text(), "python docs/generate_cli.py > docs/cli.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)(?:#[^)]*)?\)", page.read_text())

    assert [] == [link for link in links if not (page.parent / link).exists()]
