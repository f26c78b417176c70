"""Files and folders that commands write: whole or not at all, and nobody's work is overwritten unasked."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from evoengine.errors import UserError
from evoengine.reading import read_text

LISTING = "evoengine.json"
"""In every exported folder: what kind of folder it is, and the SHA-256 of every file that was written."""
MAX_LISTING_BYTES = 1 << 20
"""Of some 10,000 files."""


def write_whole(path: Path, content: bytes, *, force: bool) -> None:
    """Write the whole file or nothing.

    Raises:
        UserError: the file exists (without `force`), or cannot be written.
    """
    if path.exists() and not force:
        raise UserError(f"{path} exists: give --force to overwrite it, or another --output")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, content)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}): give another --output") from error


def write_folder(path: Path, kind: str, files: Mapping[str, bytes], *, force: bool) -> None:
    """Write a folder of `files` (names with / for folders in it) and its listing. A new one appears in one step.

    With `force` an earlier export is replaced file by file: what it had written goes, what others put beside it stays.

    Raises:
        UserError: it exists and is not empty (without `force`), or no `kind` that we wrote; or it cannot be written.
    """
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    listing = json.dumps({"format": f"evoengine {kind}", "version": 1, "files": sums}, indent=1) + "\n"
    whole = {**files, LISTING: listing.encode()}
    taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
    if taken and not force:
        raise UserError(f"{path} exists: give --force to replace what was exported there, or another --output")
    old = _listed(path, kind) if taken else set()
    try:
        if path.is_dir():
            _fill(path, whole)
            for name in old - whole.keys():
                (path / name).unlink(missing_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.parent / f".{path.name}.draft"
            shutil.rmtree(draft, ignore_errors=True)  # of an export that was killed
            try:
                _fill(draft, whole)
                draft.replace(path)
            except OSError:
                shutil.rmtree(draft, ignore_errors=True)
                raise
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}): give another --output") from error


def _fill(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        _replace(folder / name, content)


def _replace(path: Path, content: bytes) -> None:
    draft = path.parent / f".{path.name}.draft"
    try:
        draft.write_bytes(content)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def _listed(path: Path, kind: str) -> set[str]:
    """The files of an earlier export."""
    remedy = "give another --output"
    try:
        found = json.loads(read_text(path / LISTING, MAX_LISTING_BYTES, remedy))
        names = {str(name) for name in found["files"]}
        inside = not any(".." in PurePosixPath(name).parts or name.startswith("/") for name in names)
        if found["format"] != f"evoengine {kind}" or not inside:
            raise ValueError
        return names
    except (UserError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path} is no {kind} that `evoengine export` wrote: {remedy}") from None
