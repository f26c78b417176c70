"""An exported header as a command takes it: its facts, the template and space it speaks of, and its config there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from evoengine.cli.remedies import OPTIONS, Remedies
from evoengine.cli.resolve import named_template, space_path
from evoengine.errors import UserError
from evoengine.export.header import MAX_BYTES, HeaderFacts, parse_header
from evoengine.problem import Problem, make_problem
from evoengine.reading import read_text
from evoengine.space import SearchSpace, Values, load_space
from evoengine.template import Template


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says, of a template and a space that may have changed since."""

    path: Path
    facts: HeaderFacts
    template: Template
    space: SearchSpace
    values: Values

    @property
    def problem(self) -> Problem:
        """
        Raises:
            UserError: the template has other fields now.
        """
        return make_problem(self.template.module.PROBLEM, self.facts.problem)


def open_header(
    path: Path, folder: str | None = None, space_file: str | None = None, remedies: Remedies = OPTIONS
) -> Header:
    """A header with the template of its name, or that in `folder`, and its space, or that in `space_file`.

    Raises:
        UserError: it cannot be read, is too large, `export` did not write it as it is, its template is not to be had,
            or the space has an axis that the header does not know.
    """
    facts = parse_header(read_text(path, MAX_BYTES, "give a header that `evoengine export` wrote"))
    template = named_template(facts.template, str(path), folder, remedies)
    space = load_space(space_path(space_file, template, remedies))
    missing = [axis.name for axis in space if f"EVO_{axis.name}" not in facts.defines]
    if missing:
        raise UserError(f"{path} lacks EVO_{missing[0]}, which template {facts.template} now has: export it again")
    return Header(path, facts, template, space, {axis.name: facts.defines[f"EVO_{axis.name}"] for axis in space})
