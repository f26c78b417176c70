"""The JSON of a recorded file, read config by config within bounds, also where it is still being appended to."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evoengine.errors import UserError

MAX_BYTES = 1 << 30
"""Unpacked. The largest public space (hotspot, 350,000 configs, 32 runs each) needs about 0.6 GB."""
MAX_ENTRIES = 2_000_000
MAX_CONTAINERS = 16_000_000
MAX_VALUES = 64_000_000
"""Lists and objects, and values in them: 64 and 32 bytes each once parsed, so about 3 GB at the worst."""

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


@dataclass(slots=True)
class Document:
    """A file's one long member (`bulk` names it, `entries` are its values) and its other members (`head`).

    In a file of JSON lines the first line is the head and every further line an entry; `bulk` is empty. `cut` says that
    the file ends before it is closed.
    """

    head: dict[str, Any]
    bulk: str = ""
    entries: list[Any] = field(default_factory=list)
    cut: bool = False


def read_document(path: Path) -> Document:
    """A T4 file, a cachefile or JSON lines, plain or gzipped (told by its first bytes, not its name).

    Raises:
        UserError: it cannot be read, is too large, is not JSON, or no object of it; one line without the path.
    """
    cursor = _Cursor(_read_text(path))
    document = _read_object(cursor)
    while not document.bulk and cursor.peek():
        start = cursor.at
        try:
            _add(document, cursor.value())
        except UserError:
            if "\n" in cursor.text[start:].strip():
                raise
            document.cut = True
            return document
    if cursor.peek() and not document.cut:
        raise UserError(f"has something after its end, at character {cursor.at}")
    return document


def _read_text(path: Path) -> str:
    if not path.is_file():
        why = "is not a file" if path.exists() else "does not exist"
        raise UserError(f"{why}: give T4 results, a Kernel Tuner cachefile or our own recording")
    try:
        with path.open("rb") as plain:
            packed = plain.peek(2)[:2] == b"\x1f\x8b"
            data = gzip.GzipFile(fileobj=plain).read(MAX_BYTES + 1) if packed else plain.read(MAX_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"is not a whole gzip file ({error}): fetch it again") from error
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise UserError(f"unpacks to more than {MAX_BYTES:,} bytes: too large to replay")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"is not UTF-8 text (byte {error.start})") from error
    if text.count("{") + text.count("[") > MAX_CONTAINERS or text.count(",") > MAX_VALUES:
        raise UserError(f"holds over {MAX_CONTAINERS:,} lists or {MAX_VALUES:,} values: too large to replay")
    return text


class _Cursor:
    """A place in JSON text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        space = _SPACE.match(self.text, self.at)
        assert space is not None, "the pattern matches nothing too"
        self.at = space.end()
        return self.text[self.at : self.at + 1]

    def skip(self, character: str) -> bool:
        """Whether `character` is next; goes past it if so."""
        if self.peek() != character:
            return False
        self.at += 1
        return True

    def expect(self, character: str) -> None:
        if not self.skip(character):
            raise UserError(f"is not JSON: no {character!r} at character {self.at}")

    def value(self) -> Any:
        self.peek()
        try:
            value, self.at = _DECODER.raw_decode(self.text, self.at)
        except (ValueError, RecursionError) as error:  # ValueError alone: an integer of over 4,300 digits
            raise UserError(f"is not JSON: {_what(error, self.at)}") from error
        return value

    def key(self) -> str:
        key = self.value()
        self.expect(":")
        if not isinstance(key, str):
            raise UserError(f"is not JSON: a member's name is not text, before character {self.at}")
        return key


def _what(error: ValueError | RecursionError, begin: int) -> str:
    """What is wrong with the value that begins at `begin`, and where."""
    if not isinstance(error, json.JSONDecodeError):
        return f"too deep or too long, from character {begin} on"
    if error.msg == "Expecting value":
        return f"a value is expected at character {error.pos}"
    return f"{error.msg[:1].lower()}{error.msg[1:].removesuffix(' at')} at character {error.pos}"


def _read_object(cursor: _Cursor) -> Document:
    document = Document({})
    if cursor.peek() != "{":
        cursor.value()
        raise UserError("is no JSON object: give T4 results, a Kernel Tuner cachefile or our own recording")
    cursor.expect("{")
    while not cursor.skip("}"):
        key = cursor.key()
        closing = {("cache", "{"): "}", ("results", "["): "]"}.get((key, cursor.peek()))
        if closing and not document.bulk:
            document.bulk = key
            cursor.at += 1
            _read_bulk(cursor, document, closing)
            if document.cut:
                return document
        else:
            document.head[key] = cursor.value()
        if not cursor.skip(","):
            cursor.expect("}")
            break
    return document


def _read_bulk(cursor: _Cursor, document: Document, closing: str) -> None:
    """The entries. Kernel Tuner appends to a cache that stays open, so its end may be missing, even in an entry."""
    open_ended = closing == "}"
    while not cursor.skip(closing):
        start = cursor.at
        try:
            if open_ended:
                cursor.key()
            _add(document, cursor.value())
        except UserError:
            # What was being written when the file was read has no end yet: a broken entry has one somewhere.
            if not open_ended or "}" in cursor.text[start:]:
                raise
            document.cut = True
            return
        if not cursor.skip(","):
            if open_ended and not cursor.peek():
                break
            cursor.expect(closing)
            break
    document.cut = open_ended and not cursor.peek()


def _add(document: Document, entry: Any) -> None:
    if not isinstance(entry, dict):
        raise UserError(f"entry {len(document.entries) + 1} is not an object")
    if len(document.entries) == MAX_ENTRIES:
        raise UserError(f"holds more than {MAX_ENTRIES:,} configs: too large to replay")
    if "time" in entry or entry.get("measurements"):
        entry.pop("times", None)  # the single runs are nine tenths of a file, and their summary is beside them
    document.entries.append(entry)
