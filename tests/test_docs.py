"""The documentation says what the code does: a reference made from the parser, links that lead somewhere."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from documented import PAGES, ROOT, blocks

from evoengine.archive import tables

sys.path.insert(0, str(ROOT / "docs"))
from draw_result import draw  # scripts beside the pages, not a package
from generate_cli import reference

FORMATS = ROOT / "docs" / "formats.md"
DRAWN = ROOT / "studies" / "h200" / "elites" / "B1_H8_S512_D64_fp16.json"
MESSAGES = [line for _, block in blocks(ROOT / "docs" / "troubleshooting.md", "text") for line in block.splitlines()]
THRESHOLDS = re.findall(r"`([a-z_.]+\.[A-Z_]+)`(?: = | \| )`([^`]+)`", (ROOT / "docs" / "trust.md").read_text())
LEAST = 15
"""Characters of a text in the source, outside its gaps, from which on it is taken for a message and not for glue."""


def test_the_command_reference_is_that_of_the_parser() -> None:
    assert reference() == (ROOT / "docs" / "cli.md").read_text(), "python docs/generate_cli.py > docs/cli.md"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)(?:#[^)]*)?\)", page.read_text())

    assert [] == [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("line", MESSAGES)
def test_messages_are_still_what_the_code_says(line: str) -> None:
    assert any(pattern.search(line) for first, pattern in source_texts() if first in line)


@cache
def source_texts() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Every text of evoengine's source that is long enough for a message, with its longest part that is no gap."""
    texts = []
    for path in sorted((ROOT / "evoengine").rglob("*.py")):
        for parts in _texts(ast.parse(path.read_text())):
            if sum(len(part or "") for part in parts) >= LEAST:
                longest = max((part or "" for part in parts), key=len)
                pattern = "".join(".*?" if part is None else re.escape(part) for part in parts)
                texts.append((longest, re.compile(pattern)))
    return tuple(texts)


def _texts(node: ast.AST) -> Iterator[list[str | None]]:
    """Each string and f-string below `node` as its constant parts; None stands for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        yield [str(part.value) if isinstance(part, ast.Constant) else None for part in node.values]
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield [node.value]
    else:
        for below in ast.iter_child_nodes(node):
            yield from _texts(below)


def test_every_message_is_of_one_line() -> None:
    assert 50 < len(MESSAGES)
    assert [] == [line for line in MESSAGES if not line.strip()]


@pytest.mark.parametrize(("name", "value"), THRESHOLDS)
def test_thresholds_are_those_of_the_code(name: str, value: str) -> None:
    module, _, constant = name.rpartition(".")
    try:
        importlib.import_module("evoengine.devices.cuda.control")
    except ModuleNotFoundError:
        pytest.skip("this evoengine has the timer of before, with other thresholds")

    assert ast.literal_eval(value) == getattr(importlib.import_module(f"evoengine.{module}"), constant)


def test_the_page_of_thresholds_has_them_all() -> None:
    assert 30 < len(THRESHOLDS)


def test_every_proof_that_was_run_is_told() -> None:
    document = ROOT / "studies" / "h200" / "trust.json"
    if not document.exists():
        pytest.skip("no proof was run yet")
    told = set(re.findall(r"^\| `(\w+)`", (ROOT / "docs" / "trust.md").read_text(), re.MULTILINE))

    assert set() == {name for name, one in json.loads(document.read_text()).items() if isinstance(one, dict)} - told


def test_examples_are_json() -> None:
    examples = [block for _, block in blocks(FORMATS, "json")]

    assert 7 < len(examples)
    for example in examples:
        for document in [example] if example.startswith("{\n") else example.splitlines():
            assert json.loads(document)


def test_the_parameters_of_the_attention_kernel_are_its_own() -> None:
    """The scalars word for word, in the prototype; in the launch by name and in order."""
    prototype, launch = (block for _, block in blocks(FORMATS, "cpp"))
    kernel = " ".join((ROOT / "kernel_templates" / "attention" / "kernel.cu").read_text().split())
    scalars = prototype[prototype.index("int seq_q") : prototype.index(")", prototype.index("int seq_q"))]
    names = re.findall(r"(\w+)(?:,|$)", scalars)

    assert f"SPLIT_PARAMETERS {scalars})" in kernel
    assert f"{{&q, &k, &v, &o, {', '.join(f'&{name}' for name in names)}}}" in launch


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc here")
def test_the_launch_of_the_attention_kernel_compiles(tmp_path: Path) -> None:
    [*_, (_, launch)] = blocks(FORMATS, "cpp")
    header = ROOT / "studies" / "elites" / "B1_H8_S512_D64_fp16.h"
    (tmp_path / "attention_config.h").write_text(header.read_text())
    (tmp_path / "launch.cu").write_text(launch)
    command = ["nvcc", "-arch=sm_90a", "-std=c++20", "-I", str(ROOT), "-c", "launch.cu", "-o", "launch.o"]

    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert 0 == ran.returncode, ran.stderr


def test_every_column_of_the_database_is_told() -> None:
    told = {
        name: set(re.findall(r"`(\w+)`", columns))
        for name, columns in re.findall(r"^\| `(evo_\w+)` \| [^|]* \| (.*) \|$", FORMATS.read_text(), re.MULTILINE)
    }
    columns = {table.name: set(table.columns.keys()) for table in tables.metadata.sorted_tables}
    told["evo_baseline"] |= set(tables.VERDICT_COLUMNS)

    assert columns.keys() == told.keys()
    assert {} == {name: differ for name in columns if (differ := columns[name] ^ told[name])}


def test_every_member_of_a_result_is_told() -> None:
    text = FORMATS.read_text()

    assert [] == [member for member in json.loads(DRAWN.read_text()) if f"`{member}`" not in text]


def test_the_picture_is_of_the_recorded_search() -> None:
    document = json.loads(DRAWN.read_text())
    best = document["elites"][0]
    on_disk = (ROOT / "docs" / "search.svg").read_text()

    for picture in (draw(document), on_disk):
        for words in (f"{best['median_us']:.3f}", f"{best['ratio_to_sdpa']:.2f}x", "FASTER", "--budget&#160;400"):
            assert words in picture
        assert "@font-face" not in picture
