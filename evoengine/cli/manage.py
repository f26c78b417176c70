"""`evoengine studies rename`, `delete`, `copy`, `merge` and `prune`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from contextlib import closing
from typing import Any

from evoengine.archive.archive import Archive
from evoengine.build import cache_home
from evoengine.build.pruning import prune
from evoengine.cli.go_on import resume_command
from evoengine.cli.storage import existing_storage
from evoengine.errors import UserError

Done = tuple[dict[str, Any], str]
"""What was done, for `--json`, and in words."""


def run(arguments: argparse.Namespace) -> int:
    verbs: dict[str, Callable[[Archive, argparse.Namespace], Done]] = {
        "rename": _rename,
        "delete": _delete,
        "copy": _copy,
        "merge": _merge,
        "prune": _prune,
    }
    # What is merged may be the first study of this machine.
    storage = arguments.storage if arguments.verb == "merge" else existing_storage(arguments.storage)
    with closing(Archive.open(storage)) as archive:
        document, words = verbs[arguments.verb](archive, arguments)
    print(json.dumps(document, indent=2) if arguments.json else words)
    return 0


def _rename(archive: Archive, arguments: argparse.Namespace) -> Done:
    archive.rename_study(arguments.study, arguments.new)
    document = {"study": arguments.new, "renamed_from": arguments.study}
    return document, f"study {arguments.study} is now {arguments.new}"


def _delete(archive: Archive, arguments: argparse.Namespace) -> Done:
    name = arguments.study
    summary = archive.summary(name)
    what = f"study {name} ({summary.candidates} trials, {summary.elites} elites)"
    if not arguments.yes and not _agreed(what, name):
        return {"study": name, "deleted": False}, f"{what} is kept"
    archive.delete_study(name)
    return {"study": name, "deleted": True}, f"{what} is deleted"


def _agreed(what: str, name: str) -> bool:
    """The user's answer to the question.

    Raises:
        UserError: there is no terminal to ask on.
    """
    if not sys.stdin.isatty():
        raise UserError(f"{what} would be lost, and there is no terminal to ask on: give --yes to delete {name}")
    print(f"delete {what} from the database? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _copy(archive: Archive, arguments: argparse.Namespace) -> Done:
    name, new = arguments.study, arguments.new or arguments.study
    if arguments.to_storage is None:
        archive.copy_study(name, archive, new)
        where = archive.name
    else:
        with closing(Archive.open(arguments.to_storage)) as to:
            archive.copy_study(name, to, new)
            where = to.name
    return {"study": new, "copied_from": name, "storage": where}, f"study {name} is copied to {where} as {new}"


def _merge(archive: Archive, arguments: argparse.Namespace) -> Done:
    place, wanted = _source(arguments.source)
    with closing(Archive.open(place)) as source:
        name = source.open_study(wanted).name
        into = arguments.into or name
        merged = archive.merge_study(name, source, into)
        where = source.name
    resume = f"go on with: {resume_command(arguments, into)}"
    document = {"study": into, "merged_from": name, "storage": where, "new_study": merged is None}
    if merged is None:
        return document, f"study {name} of {where} is now study {into} here; {resume}"
    document |= {"estimated": merged.estimated, "rejected": merged.rejected, "known": merged.known}
    words = f"{merged.estimated} estimated and {merged.rejected} rejected configs, {merged.known} known already"
    return document, f"study {into} takes from {name} of {where}: {words}; {resume}"


def _source(text: str) -> tuple[str, str | None]:
    """The database and the study that FILE, URL, FILE#STUDY or URL#STUDY names; None is its last one.

    Raises:
        UserError: it is a file that is not there.
    """
    place, _, study = (text, "", "") if os.path.exists(os.path.expanduser(text)) else text.partition("#")
    return existing_storage(place, "give the file or URL of the other machine's, such as laptop.db"), study or None


def _prune(archive: Archive, arguments: argparse.Namespace) -> Done:
    home = cache_home()
    found = prune(home, archive.builds, arguments.older_than, dry_run=arguments.dry_run)
    document = {
        "cache": str(home),
        "dry_run": arguments.dry_run,
        "removed": found.removed,
        "removed_bytes": found.removed_bytes,
        "kept": found.kept,
        "kept_bytes": found.kept_bytes,
        "abandoned": found.abandoned,
    }
    verb = "would be removed" if arguments.dry_run else "removed"
    left = f", and what {found.abandoned} killed compiles left" if found.abandoned else ""
    return document, (
        f"{home}: {found.removed} builds, {found.removed_bytes / 1e6:.1f} MB, {verb}{left}; {found.kept} kept, "
        f"{found.kept_bytes / 1e6:.1f} MB"
    )
