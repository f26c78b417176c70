"""An exported header as a command takes it: its facts, the template and space it speaks of, and its config there."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from evoengine.cli.remedies import OPTIONS, Remedies
from evoengine.cli.resolve import named_template, space_path
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

    An axis younger than the header is taken at its default, as it is for a recording.

    Raises:
        UserError: it cannot be read, is too large, `export` did not write it as it is, or there is no such template.
    """
    facts = parse_header(read_text(path, MAX_BYTES, "give a header that `evoengine export` wrote"))
    template = named_template(facts.template, str(path), folder, remedies)
    space = load_space(space_path(space_file, template, remedies))
    younger = {f"EVO_{name}": value for name, value in space.default.items() if f"EVO_{name}" not in facts.defines}
    facts = dataclasses.replace(facts, defines={**facts.defines, **younger})
    return Header(path, facts, template, space, {axis.name: facts.defines[f"EVO_{axis.name}"] for axis in space})
