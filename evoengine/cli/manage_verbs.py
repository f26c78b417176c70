"""Arguments of what `evoengine studies` does to studies: rename, delete, copy, merge, prune."""

from __future__ import annotations

import argparse

from evoengine.cli.arguments import Help, Verbs, name, positive


def add_management(studies: argparse.ArgumentParser) -> None:
    """Verbs below `studies`, which lists without one."""
    verbs = studies.add_subparsers(metavar="VERB", title="what to do with them (default: list)")
    rename = _below(verbs, "rename", "give a study another name")
    rename.add_argument("study", metavar="STUDY", help="name")
    rename.add_argument("new", metavar="NEW", help="new name")

    delete = _below(verbs, "delete", "delete a study with its trials and all that was found; builds stay in the cache")
    delete.add_argument("study", metavar="STUDY", help="name")
    delete.add_argument("--yes", action="store_true", help="do not ask")

    copy = _below(verbs, "copy", "copy a study with all that belongs to it, its trials under the same numbers")
    copy.add_argument("study", metavar="STUDY", help="name")
    copy.add_argument("--to-storage", metavar="URL", help="database to copy into, made if need be (default: the same)")
    copy.add_argument("--as", metavar="NEW", dest="new", type=name, help="name of the copy (default: the same)")

    merge = _below(verbs, "merge", "bring in a study of another machine: `resume` then measures its shortlist first")
    merge.add_argument(
        "source",
        metavar="SOURCE",
        help="file or URL of the other machine's database; FILE#STUDY for a study of it that is not the last",
    )
    merge.add_argument(
        "--into",
        metavar="STUDY",
        type=name,
        help="study of this database that takes what was estimated and refused there and keeps what it knows itself; "
        "a new name takes the whole study (default: the same name)",
    )

    prune = _below(verbs, "prune", "remove builds from the cache that no study of the database refers to")
    prune.add_argument(
        "--older-than", metavar="DAYS", type=_days, help="remove those built longer ago instead, of whatever study"
    )
    prune.add_argument("--dry-run", action="store_true", help="only say what would be removed")


def _below(verbs: Verbs[argparse.ArgumentParser], name: str, help: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=help, description=help, formatter_class=Help)
    parser.set_defaults(module="manage", verb=name)
    # No defaults here: they would undo what was given before the verb.
    parser.add_argument(
        "--json",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print one JSON document on standard output",
    )
    parser.add_argument(
        "--storage", metavar="URL", default=argparse.SUPPRESS, help="study database, as for `evoengine studies`"
    )
    return parser


def _days(text: str) -> float:
    return positive(text, "number of days")
