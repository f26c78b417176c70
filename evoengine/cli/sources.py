"""What `export` and `evoengine.load` take a config from: a study of a database, or a header that was exported."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from pathlib import Path

from evoengine.archive.archive import Archive
from evoengine.cli.headers import open_header
from evoengine.cli.remedies import OPTIONS, Remedies
from evoengine.cli.resolve import reopen
from evoengine.cli.stale import check_trial, moved_on
from evoengine.cli.storage import existing_storage
from evoengine.errors import UserError
from evoengine.export.chosen import Chosen, choose

MOVED = (
    "a header's template has changed since and its kernel has not: rebuilt here and proven in the interpreter; on a "
    "card: evoengine verify HEADER"
)


def find_chosen(
    source: str | None,
    storage: str,
    *,
    trial: int | None = None,
    template: str | None = None,
    space: str | None = None,
    stale: bool = False,
    rebuild: bool = False,
    remedies: Remedies = OPTIONS,
) -> list[Chosen]:
    """The config of one source: an exported header where that is a file, else a study (None: the last one).

    One for each problem that the study is of.

    Raises:
        UserError: there is neither, it holds nothing to export, or (unless `stale`) its template has changed since and
            a header's kernel with it, or (with `rebuild`) a study's compiler makes another cubin of it now.
    """
    if source is not None and Path(source).is_file():
        if trial is not None:
            raise UserError(f"--trial {trial} with {source}: a header is of one trial; name the study instead")
        return [from_header(Path(source), template, space, stale=stale, remedies=remedies)]
    with closing(Archive.open(existing_storage(storage, remedies.begin))) as archive:
        study = archive.open_study(source)
        question = reopen(study.spec, template_folder=template, space_file=space, stale=stale, remedies=remedies)
        chosen = choose(study, question, trial)
        if rebuild:
            check_trial(study, question, chosen[0].row["trial"])
        return chosen


def from_header(
    path: Path,
    folder: str | None = None,
    space_file: str | None = None,
    *,
    stale: bool = False,
    remedies: Remedies = OPTIONS,
) -> Chosen:
    """What a header says, with the template of its name, or that in `folder`, and its space, or that in `space_file`.

    Raises:
        UserError: it cannot be read, or (unless `stale`) the template has changed since and the kernel with it.
    """
    header = open_header(path, folder, space_file, remedies)
    facts, now = header.facts, header.template.digest
    note = ""
    if facts.template_digest != now and not stale:
        if why := moved_on(header):
            raise UserError(
                f"the template of {path} has changed since ({facts.template_digest}, now {now}), and {why}: search "
                f"again, or name the folder that it was exported from with {remedies.template}"
            )
        facts = dataclasses.replace(facts, template_digest=now)
        note = MOVED
    us = {"median_us": facts.median_us} if facts.median_us is not None else {"estimated_us": facts.estimated_us}
    row = {"trial": facts.trial, "label": facts.config, "config": header.values, "exported": facts.date, **us}
    return Chosen(str(path), facts, header.values, header.space, header.template, row, note=note)
