"""`evoengine studies` and `evoengine show`."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Sequence
from contextlib import closing

from rich.table import Table

from evoengine.archive.archive import Archive
from evoengine.archive.records import StudySummary
from evoengine.cli.resolve import reopen
from evoengine.cli.result import WIDE, show_result, summary_of
from evoengine.cli.storage import existing_storage
from evoengine.cli.tables import console, table
from evoengine.oracle import Factors
from evoengine.progress import End
from evoengine.rejudge import rejudge

STATUS = 40
"""Characters of a status on a line."""


def run(arguments: argparse.Namespace) -> int:
    with closing(Archive.open(existing_storage(arguments.storage))) as archive:
        return _studies(archive, arguments.json) if arguments.verb == "studies" else _show(archive, arguments)


def _studies(archive: Archive, as_json: bool) -> int:
    summaries = archive.studies()
    if as_json:
        rows = [
            {
                "study": one.spec.name,
                "device": one.spec.device,
                "shape": one.spec.problem_label,
                "status": one.status,
                "searched_by": one.searched_by,
                "candidates": one.candidates,
                "rejected": one.rejected,
                "measured": one.measured,
                "waiting": one.waiting,
                "elites": one.elites,
                "best_us": one.best_us,
                "best_unconfirmed_us": one.best_unconfirmed_us,
                "best_estimated_us": one.best_estimated_us,
                "used_at": one.opened_at,
            }
            for one in summaries
        ]
        print(json.dumps(rows, indent=2))
        return 0
    console().print(_table(archive.name, summaries))
    return 0


def _table(storage: str, summaries: Sequence[StudySummary]) -> Table:
    """A row a study; on a narrow terminal without what `--json` has too, and with the first words of its status."""
    wide = console().width >= WIDE
    more = ("used", ">rejected", ">elites") if wide else ()
    drawn = table(f"studies in {storage}", "study", ">trials", ">best us", "which is", *more)
    drawn.add_column(
        "status",
        overflow="fold" if wide else "ellipsis",
        no_wrap=not wide,
        max_width=STATUS if wide else len(End.SPENT),
    )
    for column in drawn.columns[1:-1]:
        column.no_wrap = True
    for one in summaries:
        status = f"searched by {one.searched_by}" if one.searched_by else _in_short(one.status)
        used = one.opened_at[:16].replace("T", " ")
        rest = (used, str(one.rejected), str(one.elites)) if wide else ()
        drawn.add_row(one.spec.name, str(one.candidates), *_best(one), *rest, status)
    return drawn


def _in_short(status: str) -> str:
    """A status begins with what happened; an error's whole sentence is in `--json`."""
    if status == End.SPENT_BEFORE:
        return End.SPENT
    return textwrap.shorten(status.partition(": ")[0], STATUS, placeholder=" ...")


def _best(one: StudySummary) -> tuple[str, str]:
    """The best time there is and what it rests on."""
    known = (
        (one.best_us, "confirmed"),
        (one.best_unconfirmed_us, "unconfirmed"),
        (one.best_estimated_us, "estimated"),
    )
    return next(((f"{us:.3f}", what) for us, what in known if us is not None), ("-", ""))


def _show(archive: Archive, arguments: argparse.Namespace) -> int:
    study = archive.open_study(arguments.study)
    question = reopen(study.spec, template_folder=arguments.template, space_file=arguments.space, stale=True)
    records = study.records()
    summary = summary_of(question, study, records, arguments.top)
    if arguments.factor is not None:
        summary["rejudged"] = rejudge(records, study.elites(), Factors.of(arguments.factor))
    if arguments.json:
        print(json.dumps(summary, indent=2))
    else:
        show_result(summary)
    return 0
