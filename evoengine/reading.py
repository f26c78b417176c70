"""Files that a user names, read up to a bound."""

from __future__ import annotations

from pathlib import Path

from evoengine.errors import UserError


def read_bytes(path: Path, most: int, remedy: str) -> bytes:
    """A file of at most `most` bytes.

    Raises:
        UserError: it is larger, or cannot be read; ends with `remedy`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} cannot be read ({why}): {remedy}") from error
    if len(data) > most:
        raise UserError(f"{path} has more than {most:,} bytes: {remedy}")
    return data


def read_text(path: Path, most: int, remedy: str) -> str:
    """A text file of at most `most` bytes.

    Raises:
        UserError: as of `read_bytes`, or it is not UTF-8.
    """
    try:
        return read_bytes(path, most, remedy).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read ({error}): {remedy}") from error
