"""`evoengine studies` and `evoengine show`."""

from __future__ import annotations

import argparse
import json
from contextlib import closing

from evoengine.archive.archive import Archive
from evoengine.cli.resolve import reopen
from evoengine.cli.result import show_result, summary_of
from evoengine.cli.storage import existing_storage
from evoengine.cli.tables import console, table
from evoengine.oracle import Factors
from evoengine.rejudge import rejudge


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
    drawn = table(
        f"studies in {archive.name}",
        "study",
        "used",
        ">trials",
        ">rejected",
        ">elites",
        ">best us",
        ">unconfirmed us",
        ">estimated us",
        "status",
    )
    for one in summaries:
        status = f"searched by {one.searched_by}" if one.searched_by else one.status
        unconfirmed_us = one.best_unconfirmed_us if one.best_us is None else None
        times = ["-" if us is None else f"{us:.3f}" for us in (one.best_us, unconfirmed_us, one.best_estimated_us)]
        numbers = [str(number) for number in (one.candidates, one.rejected, one.elites)]
        drawn.add_row(one.spec.name, one.opened_at[:16].replace("T", " "), *numbers, *times, status)
    console().print(drawn)
    return 0


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
