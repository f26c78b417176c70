"""`evoengine report`: a study as a page, as Markdown or as one figure."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

from evoengine import __version__
from evoengine.archive.archive import Archive
from evoengine.archive.study import Study
from evoengine.cli.output import write_whole
from evoengine.cli.resolve import reopen
from evoengine.cli.result import summary_of
from evoengine.cli.storage import existing_storage
from evoengine.cli.tables import console
from evoengine.errors import UserError
from evoengine.hardware import CARDS
from evoengine.question import Question
from evoengine.report.facts import Facts
from evoengine.report.markdown import render_markdown
from evoengine.report.page import render_page
from evoengine.report.paper import draw_figure
from evoengine.report.words import answer
from evoengine.summary import trials

FORMATS = {".html": "html", ".htm": "html", ".md": "md", ".markdown": "md", ".png": "png"}


def run(arguments: argparse.Namespace) -> int:
    path: Path = arguments.output
    kind = _format(path, arguments.format)
    render = _renderer(kind)
    with closing(Archive.open(existing_storage(arguments.storage))) as archive:
        study = archive.open_study(arguments.study)
        question = reopen(study.spec, template_folder=arguments.template, space_file=arguments.space, stale=True)
        facts = _facts(question, study, arguments.top)
    content = render(facts)
    write_whole(path, content, force=arguments.force)
    if arguments.json:
        document = {"report": str(path), "format": kind, "bytes": len(content), "study": study.name}
        print(json.dumps(document, indent=2))
    else:
        console().print(f"{path}: {answer(facts.summary)}", soft_wrap=True)
    return 0


def _format(path: Path, asked: str | None) -> str:
    kind = asked or FORMATS.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"{path}: its suffix names no format, give --format html, md or png")
    return kind


def _renderer(kind: str) -> Callable[[Facts], bytes]:
    """What makes a report of this format; imports what that needs before the study is read.

    Raises:
        UserError: a package of the `report` extra is missing.
    """
    if kind == "md":
        return lambda facts: render_markdown(facts).encode()
    try:
        if kind == "png":
            import_module("matplotlib.figure")
            return draw_figure
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise UserError(
            f"a report as {kind} needs {str(error.name).partition('.')[0]}: pip install -c constraints.txt "
            "-e '.[report]', or give --format md, which needs nothing"
        ) from error
    return lambda facts: render_page(facts, get_plotlyjs()).encode()


def _facts(question: Question, study: Study, top: int) -> Facts:
    records = study.records()
    summary = summary_of(question, study, records, top)
    measured = bool(summary["worth"] and summary["worth"]["measured"])
    known = {one.name: one for one in (*CARDS.values(), question.limits)}
    return Facts(
        summary=summary,
        trials=trials(records, question.launches(records), question.limits, measured=measured),
        axes=study.spec.axes,
        default=study.spec.default,
        problem=question.problem,
        limits=question.limits,
        ceilings=question.ceilings,
        device=known.get(study.spec.device),
        version=__version__,
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
