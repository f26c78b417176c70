"""The command that goes on with a study, as a line to paste."""

from __future__ import annotations

import argparse
import shlex

from evoengine.cli.arguments import STORAGE
from evoengine.cli.storage import shown_storage

_FLAGS = ("until_converged", "sanitize")
_VALUES = ("cache", "batch")
"""Options of a search that no study stores. Not --devices: what stopped it may be a card that is gone."""


def resume_command(arguments: argparse.Namespace, study: str) -> str:
    """It searches as this command did, and has no credentials of the storage."""
    given = vars(arguments)
    flags = [f" --{name.replace('_', '-')}" for name in _FLAGS if given.get(name)]
    values = [f" --{name} {shlex.quote(str(given[name]))}" for name in _VALUES if given.get(name) is not None]
    return f"evoengine resume {shlex.quote(study)}{''.join(flags + values)}{storage_option(arguments.storage)}"


def storage_option(storage: str) -> str:
    """What another command must be given to find the same database."""
    return "" if storage == STORAGE else f" --storage {shown_storage(storage)}"
