"""`--storage`: a file name or an SQLAlchemy URL, and what must not be shown of it; `--cache`: builds for others."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from evoengine.cli.remedies import OPTIONS
from evoengine.errors import UserError

if TYPE_CHECKING:
    from evoengine.archive.study import Study
    from evoengine.build.shared import Store

DATABASE = "database"
_SECRETS = re.compile(r"(?<=://)(?P<user>[^:/@\s]*):[^@\s]*@|(?P<key>[?&](?:ssl)?password=)[^&\s]*")
"""A password before the host, as SQLAlchemy reads a URL, or among libpq's parameters."""


def existing_storage(text: str, remedy: str = OPTIONS.begin) -> str:
    """The same text, for a command that only makes sense where there are studies: it must not make an empty database.

    Raises:
        UserError: the SQLite file does not exist; ends with `remedy`.
    """
    from evoengine.archive.database import file_of

    path = file_of(text)
    if path is not None and not os.path.exists(path):  # also where the name is too long for a file
        raise UserError(f"no study database at {path}: {remedy}")
    return text


def without_secrets(text: str) -> str:
    """A word of the command line with three stars for each password in it."""
    return _SECRETS.sub(lambda m: f"{m['key']}***" if m["key"] else f"{m['user']}:***@", text)


def shown_storage(text: str) -> str:
    """The storage as a word of a command to paste; URL stands for one with a password."""
    return shlex.quote(text) if without_secrets(text) == text else "URL"


def shared_store(cache: str | None, study: Study) -> Store | None:
    """Where machines on one study leave builds for each other: the folder that --cache names, or the study's database.

    The latter by default: whoever works on the study reaches it. A file of SQLite is used on one machine, which has its
    cache.

    Raises:
        UserError: it is no folder that can be written to.
    """
    if cache is None:
        return study.store() if study.on_server else None
    if cache == DATABASE:
        return study.store()
    from evoengine.build.shared import FolderStore

    scheme, rest = urlsplit(cache).scheme, cache
    if "://" in cache:
        if scheme != "file" or urlsplit(cache).netloc not in ("", "localhost"):
            raise UserError(f"--cache {without_secrets(cache)}: give a folder, file:///FOLDER, or {DATABASE}")
        rest = unquote(urlsplit(cache).path)
    return FolderStore(Path(rest).expanduser().absolute())
