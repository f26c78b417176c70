"""What `export` and `evoengine.load` take a config from: a study of a database, or a header that was exported."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from evoengine.archive.archive import Archive
from evoengine.cli.resolve import find_template, reopen, space_path
from evoengine.cli.storage import existing_storage
from evoengine.errors import UserError
from evoengine.export.chosen import Chosen, choose
from evoengine.export.header import parse_header
from evoengine.space import load_space


def find_chosen(
    source: str | None, storage: str, *, trial: int | None = None, template: str | None = None, stale: bool = False
) -> Chosen:
    """The config of one source: an exported header where that is a file, else a study (None: the last one).

    Raises:
        UserError: there is neither, it holds nothing to export, or (unless `stale`) its template has changed since.
    """
    if source is not None and Path(source).is_file():
        if trial is not None:
            raise UserError(f"--trial {trial} with {source}: a header is of one trial; name the study instead")
        return from_header(Path(source), template, stale=stale)
    with closing(Archive.open(existing_storage(storage))) as archive:
        study = archive.open_study(source)
        return choose(study, reopen(study.spec, stale=stale), trial)


def from_header(path: Path, folder: str | None = None, space_file: str | None = None, *, stale: bool = False) -> Chosen:
    """What a header says, with the template of its name, or that in `folder`, and its space, or that in `space_file`.

    Raises:
        UserError: it cannot be read, or (unless `stale`) the template has changed since.
    """
    try:
        facts = parse_header(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): give a header that `evoengine export` wrote") from error
    template = find_template(folder or facts.template)
    if template.digest != facts.template_digest and not stale:
        raise UserError(
            f"the template of {path} has changed since ({facts.template_digest}, now {template.digest}): search again, "
            "or name the folder that it was exported from with --template"
        )
    space = load_space(space_path(space_file, template))
    missing = [axis.name for axis in space if f"EVO_{axis.name}" not in facts.defines]
    if missing:
        raise UserError(f"{path} lacks EVO_{missing[0]}, which template {template.name} now has: export it again")
    values = {axis.name: facts.defines[f"EVO_{axis.name}"] for axis in space}
    us = {"median_us": facts.median_us} if facts.median_us is not None else {"estimated_us": facts.estimated_us}
    row = {"trial": facts.trial, "label": facts.config, "config": values, "exported": facts.date, **us}
    return Chosen(str(path), facts, values, space, template, row)
