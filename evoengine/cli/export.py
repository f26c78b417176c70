"""`evoengine export`: the best config, or all that a study measured, in a form that other programs use."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from itertools import compress
from pathlib import Path
from typing import Any

from evoengine.archive.archive import Archive
from evoengine.archive.records import Record
from evoengine.archive.study import Study
from evoengine.cli.output import write_folder, write_whole
from evoengine.cli.resolve import reopen
from evoengine.cli.result import summary_of
from evoengine.cli.sources import find_chosen
from evoengine.cli.storage import existing_storage
from evoengine.cli.tables import console
from evoengine.errors import UserError
from evoengine.export.bundle import bundle_files
from evoengine.export.cachefile import render_cachefile
from evoengine.export.chosen import Chosen
from evoengine.export.document import render_document
from evoengine.export.gather import wisdom_of
from evoengine.export.header import render_header
from evoengine.export.package import package_files
from evoengine.export.t4 import render_t4
from evoengine.export.targets import render_targets, unique
from evoengine.export.wisdom import MAX_BYTES, PACKAGE, Wisdom, merge, parse_wisdom, render_wisdom
from evoengine.question import Question
from evoengine.reading import read_text

Render = Callable[[Question, Study, list[Record]], str]
"""From a study and its trials to the text of a file."""


def run(arguments: argparse.Namespace) -> int:
    whole = _WHOLE.get(arguments.format)
    if whole is not None:
        return _study(arguments, whole)
    return _configs(arguments)


def _configs(arguments: argparse.Namespace) -> int:
    """The formats that hold configs: one or, but for the bundle, several."""
    sources, passed_over = arguments.study or [None], ""
    if not arguments.study and arguments.trial is None:
        sources[0], passed_over = _last_with_config(arguments.storage)
    if len(sources) > 1 and arguments.trial is not None:
        raise UserError(f"--trial {arguments.trial} of {len(sources)} studies: name one study")
    if len(sources) > 1 and arguments.format == "bundle":
        raise UserError(f"{len(sources)} studies: a bundle is of one config, export them one by one")
    chosen = [
        one
        for source in sources
        for one in find_chosen(
            source,
            arguments.storage,
            trial=arguments.trial,
            template=arguments.template,
            space=arguments.space,
            stale=arguments.force and arguments.format != "torch",
            rebuild=not arguments.force,
        )
    ]
    if len(chosen) > 1 and arguments.format == "bundle":
        raise UserError(f"study {chosen[0].where} is of {len(chosen)} shapes, a bundle of one: give --format header")
    if passed_over:
        chosen = [dataclasses.replace(one, note="; ".join(filter(None, (passed_over, one.note)))) for one in chosen]
    path, force = arguments.output, arguments.force
    match arguments.format:
        case "header":
            text = render_header(chosen[0].facts) if len(chosen) == 1 else render_targets(chosen)
            write_whole(path, text.encode(), force=force)
        case "wisdom":
            text = render_wisdom(_merged(path, wisdom_of(chosen), force=force))
            write_whole(path, text.encode(), force=True)
        case "bundle":
            write_folder(path, "bundle", bundle_files(chosen[0]), force=force)
        case "torch":
            write_folder(path, PACKAGE, package_files(chosen), force=force)
    _say(arguments, *_parted(arguments.format, chosen))
    return 0


def _last_with_config(storage: str) -> tuple[str | None, str]:
    """The last study that holds a config, and what to say of a later one that holds none.

    None, which stands for the last study, where that holds one or none does.
    """
    with closing(Archive.open(existing_storage(storage))) as archive:
        last = archive.open_study()
        if last.holds_config():
            return None, ""
        for summary in archive.studies():
            if summary.spec.name != last.name and archive.open_study(summary.spec.name).holds_config():
                return summary.spec.name, f"the last study, {last.name}, holds no config that passed every gate"
    return None, ""


def _parted(form: str, chosen: Sequence[Chosen]) -> tuple[list[Chosen], list[Chosen]]:
    """Those that a file of this format has, and those that another of the same shape and card has made needless."""
    if form == "header":
        there = {id(one) for one in unique(chosen)}
        inside = [id(one) in there for one in chosen]
    elif form == "bundle":
        inside = [True]
    else:
        rows = {(row.device, *map(row.provenance.get, ("shape", "study", "trial"))) for row in wisdom_of(chosen).rows}
        facts = [one.facts for one in chosen]
        inside = [(one.device, one.shape, one.study, one.trial) in rows for one in facts]
    return list(compress(chosen, inside)), list(compress(chosen, (not taken for taken in inside)))


def _merged(path: Path, new: Wisdom, *, force: bool) -> Wisdom:
    """`new` and what the file holds already; with `force` it begins anew."""
    if force or not path.exists():
        return new
    text = read_text(path, MAX_BYTES, "give another --output")
    try:
        return merge(parse_wisdom(text), new)
    except UserError as error:
        raise UserError(f"{path} {error}") from error


def _say(arguments: argparse.Namespace, chosen: list[Chosen], needless: list[Chosen]) -> None:
    if arguments.json:
        rows = [{"from": one.where, "shape": one.facts.shape, "device": one.facts.device, **one.row} for one in chosen]
        document = {"output": str(arguments.output), "format": arguments.format, "configs": rows}
        print(json.dumps(document, indent=2))
        return
    for one in chosen:
        what = f"trial {one.row['trial']} of {one.where}, {one.row['label']}, {_worth(one.row)}"
        shape = f"{one.facts.shape}: " if len(chosen) > 1 else ""
        console().print(f"{arguments.output}: {shape}{what}", soft_wrap=True)
    for one in needless:
        console().print(
            f"left out: trial {one.row['trial']} of {one.where}, {_worth(one.row)}: {one.facts.shape} on "
            f"{one.facts.device} has a better one",
            soft_wrap=True,
        )
    for note in dict.fromkeys(one.note for one in chosen if one.note):
        console().print(note, soft_wrap=True)


def _worth(row: Mapping[str, Any]) -> str:
    if "estimated_us" in row:
        return f"estimated {row['estimated_us']:.2f} us, not measured"
    if "exported" in row:
        return f"{row['median_us']:.3f} us, as measured before it was exported on {row['exported']}"
    if "verdict" in row:
        return f"{row['median_us']:.3f} us in the final run ({row['verdict']} against the default config)"
    return f"{row['median_us']:.3f} us in the search, not confirmed by a final run"


def _study(arguments: argparse.Namespace, render: Render) -> int:
    """The formats that hold every trial of one study."""
    if len(arguments.study) > 1 or arguments.trial is not None:
        raise UserError(f"--format {arguments.format} is for all trials of one study: name one, without --trial")
    if arguments.study and Path(arguments.study[0]).is_file():
        raise UserError(
            f"--format {arguments.format} with {arguments.study[0]}: a header is of one trial; name the study instead"
        )
    with closing(Archive.open(existing_storage(arguments.storage))) as archive:
        study = archive.open_study(arguments.study[0] if arguments.study else None)
        question = reopen(
            study.spec, template_folder=arguments.template, space_file=arguments.space, stale=arguments.force
        )
        records = study.records()
        text = render(question, study, records)
    write_whole(arguments.output, text.encode(), force=arguments.force)
    if arguments.json:
        document = {"output": str(arguments.output), "format": arguments.format, "study": study.name}
        document["trials"] = len(records)
        print(json.dumps(document, indent=2))
    else:
        console().print(f"{arguments.output}: {len(records)} trials of {study.name}", soft_wrap=True)
    return 0


def _t4(question: Question, study: Study, records: list[Record]) -> str:
    return render_t4(study.spec, records, study.elites())


def _cachefile(question: Question, study: Study, records: list[Record]) -> str:
    if study.spec.members:
        raise UserError(
            f"study {study.name} is of {len(study.spec.members)} shapes, a cachefile of one: give --format t4 or json"
        )
    size = [getattr(question.problem, name) for name in question.problem.POSITIONAL]
    return render_cachefile(study.spec, question.template.module.ENTRY, size, records)


def _document(question: Question, study: Study, records: list[Record]) -> str:
    summary = summary_of(question, study, records, top=study.spec.budget)
    return render_document(summary, records, study.elites())


_WHOLE: dict[str, Render] = {"t4": _t4, "cachefile": _cachefile, "json": _document}
