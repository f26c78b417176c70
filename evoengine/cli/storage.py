"""`--storage`: a file name or an SQLAlchemy URL."""

from __future__ import annotations

import os

from evoengine.errors import UserError


def storage_url(text: str) -> str:
    """A plain path is an SQLite file."""
    return text if "://" in text else f"sqlite:///{text}"


def existing_storage(text: str) -> str:
    """The same for a command that only makes sense where there are studies: it must not make an empty database.

    Raises:
        UserError: the SQLite file does not exist.
    """
    url = storage_url(text)
    path = url.removeprefix("sqlite:///")
    if path != url and not os.path.exists(path):
        raise UserError(
            f"no study database at {path}: start one with `evoengine search`, or name another with --storage"
        )
    return url
