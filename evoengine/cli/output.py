"""Files that a command writes for the user: whole or not at all, and nobody's work is overwritten unasked."""

from __future__ import annotations

from pathlib import Path

from evoengine.errors import UserError


def write_whole(path: Path, content: bytes, *, force: bool) -> None:
    """Write the whole file or nothing.

    Raises:
        UserError: the file exists (without `force`), or cannot be written.
    """
    if path.exists() and not force:
        raise UserError(f"{path} exists: give --force to overwrite it, or another --output")
    draft = path.with_name(f".{path.name}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(content)
        draft.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}): give another --output") from error
