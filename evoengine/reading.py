"""Files that a user names, read up to a bound."""

from __future__ import annotations

from pathlib import Path

from evoengine.errors import UserError


def read_text(path: Path, most: int, remedy: str) -> str:
    """A text file of at most `most` bytes.

    Raises:
        UserError: it is larger, is not UTF-8, or cannot be read; ends with `remedy`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise UserError(f"{path} has more than {most:,} bytes: {remedy}")
        return data.decode("utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a name that no file can have
        raise UserError(f"{path} cannot be read ({error}): {remedy}") from error
