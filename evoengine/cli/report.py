"""`evoengine report`: a study as a page, as Markdown or as one figure."""

from __future__ import annotations

import argparse
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from evoengine import __version__
from evoengine.archive.archive import Archive
from evoengine.archive.study import Study
from evoengine.cli.resolve import reopen
from evoengine.cli.result import summary_of
from evoengine.cli.storage import existing_storage
from evoengine.errors import UserError
from evoengine.hardware import CARDS
from evoengine.question import Question
from evoengine.report.facts import Facts
from evoengine.summary import trials

FORMATS = {".html": "html", ".htm": "html", ".md": "md", ".png": "png"}
MISSING = "{what} needs {module}: pip install -c constraints.txt -e '.[report]'"


def run(arguments: argparse.Namespace) -> int:
    kind = _format(arguments.output, arguments.format)
    plotly = _plotly() if kind == "html" else ""
    with closing(Archive.open(existing_storage(arguments.storage))) as archive:
        study = archive.open_study(arguments.study)
        facts = _facts(reopen(study.spec, stale=True), study, arguments.top)
    from evoengine.report.page import render_page

    arguments.output.write_text(render_page(facts, plotly), encoding="utf-8")
    return 0


def _format(path: Path, asked: str | None) -> str:
    if asked is not None:
        return asked
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path}: no format goes by this suffix, give --format html, md or png")
    return FORMATS[path.suffix.lower()]


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise UserError(MISSING.format(what="an HTML report", module="plotly")) from error
    return str(get_plotlyjs())


def _facts(question: Question, study: Study, top: int) -> Facts:
    summary = summary_of(question, study, top)
    records = study.records()
    launches = {record.number: question.launch(record.config.values) for record in records}
    measured = bool(summary["worth"] and summary["worth"]["measured"])
    known = {one.name: one for one in (*CARDS.values(), question.limits)}
    return Facts(
        summary=summary,
        trials=trials(records, launches, question.limits, measured=measured),
        axes=study.spec.axes,
        default=study.spec.default,
        problem=question.problem,
        limits=question.limits,
        ceilings=question.ceilings,
        device=known.get(study.spec.device),
        version=__version__,
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
