"""What the documentation tells its readers to type: the commands of its `sh` blocks, made small enough for a test."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
NAMES = {"STUDY": "tuned", "FILE": "studies/h200/spaces/mission.jsonl.gz"}
"""What stands in the pages for a reader's own study and recording, and what the tests have in their place."""
FEWER = {
    "search": {"--budget": "1", "--device": "none", "--jobs": "2"},
    "resume": {"--budget": "2", "--device": "none", "--jobs": "2"},
    "knobs": {"--pairs": "1", "--device": "none", "--jobs": "2"},
    "space": {"--device": "none"},
    "replay": {"--budget": "5", "--runs": "1"},
    "verify": {"--device": "none"},
}
"""Options that the tests set, whatever the page says: no GPU, and a candidate or two instead of hundreds."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a page, as words; `line` is where its block begins."""

    page: Path
    line: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line} {shlex.join(self.words)}"

    @property
    def arguments(self) -> list[str] | None:
        """What evoengine is told; None where it is another program."""
        if self.words[0] == "evoengine":
            return list(self.words[1:])
        return list(self.words[3:]) if self.words[:3] == ("python", "-m", "evoengine") else None


def blocks(page: Path, language: str) -> Iterator[tuple[int, str]]:
    """Every fenced block in that language, with the number of its first line."""
    text = page.read_text()
    for found in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, found.start(1)) + 1, found[1]


def commands(page: Path) -> Iterator[Command]:
    """Every command of a page's `sh` blocks, in order. `&&` joins two, a backslash joins lines; `>` is cut."""
    for line, block in blocks(page, "sh"):
        for text in re.split(r"\n|&&", block.replace("\\\n", " ")):
            words = shlex.split(text, comments=True)
            if words:
                yield Command(page, line, tuple(words[: words.index(">")] if ">" in words else words))


def reduced(command: Command) -> list[str]:
    """The same arguments for little work. Away from the README, what names no template or shape is of rmsnorm."""
    words = [NAMES.get(word, word) for word in command.arguments or ()]
    fewer = dict(FEWER.get(words[0], {}))
    if words[0] in ("search", "knobs") and command.page != README and not {"--template", "--shape"} & set(words):
        fewer["--template"] = "rmsnorm"
    if "--devices" in words:
        fewer.pop("--device", None)  # one of them
    for name, value in fewer.items():
        if name in words:
            words[words.index(name) + 1] = value
        else:
            words += [name, value]
    return words
