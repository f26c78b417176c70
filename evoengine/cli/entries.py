"""What `compare` compares: a config, an exported header, a study's best or the default, as one config on a question."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from evoengine.archive.archive import Archive
from evoengine.archive.study import Study
from evoengine.cli.arguments import SHAPE
from evoengine.cli.headers import open_header
from evoengine.cli.resolve import Target, find_template, reopen, space_path, stored_limits
from evoengine.cli.storage import existing_storage
from evoengine.errors import SeeStudies, UnknownStudy, UserError
from evoengine.export.chosen import no_config
from evoengine.gates import Ceilings
from evoengine.hardware import DeviceLimits, gate_limits
from evoengine.problem import Problem, members_of, parse_shape
from evoengine.question import Question
from evoengine.reading import read_text
from evoengine.space import Config, SearchSpace, Values, load_space
from evoengine.template import Template

MAX_SHAPES_BYTES = 1 << 20


@dataclass(frozen=True)
class Entry:
    """One config on one problem. `recorded_digest` is the template's when the config was exported or confirmed."""

    what: str
    question: Question
    config: Config
    recorded_digest: str | None = None


@dataclass(frozen=True)
class _Found:
    """What one WHAT names; `values` is None for the default config, `problem` None where it has no shape of its own."""

    what: str
    template: Template
    space: SearchSpace
    values: Values | None
    problem: Problem | None = None
    limits: DeviceLimits | None = None
    recorded_digest: str | None = None


def entries(arguments: argparse.Namespace, target: Target) -> list[Entry]:
    """Every WHAT on every shape; without shapes, on the one it was found at.

    Raises:
        UserError: a WHAT, a shape or a file cannot be read.
    """
    shapes = [*(arguments.shape or ()), *(shapes_in(arguments.shapes) if arguments.shapes else ())]
    return [
        entry
        for what in arguments.what or [None]
        for entry in _on_shapes(_find(what, arguments, target), shapes, target)
    ]


def _on_shapes(found: _Found, shapes: list[str], target: Target) -> Iterator[Entry]:
    own = [found.template.module.PROBLEM()]
    if found.problem is not None:  # of a study of several shapes, each of them
        own = [member.problem for member in members_of(found.problem)]
    for problem in [parse_shape(found.template.module.PROBLEM, shape) for shape in shapes] or own:
        question = Question(found.template, found.space, problem, found.limits or target.limits, Ceilings())
        config = question.default if found.values is None else found.space.config(found.values)
        yield Entry(found.what, question, config, found.recorded_digest)


def shapes_in(path: Path) -> list[str]:
    """One shape a line; what follows a `#` is a comment."""
    remedy = "give a text file with one shape a line"
    lines = read_text(path, MAX_SHAPES_BYTES, remedy).splitlines()
    shapes = [shape for line in lines if (shape := line.partition("#")[0].strip())]
    if not shapes:
        raise UserError(f"--shapes {path} holds no shape: write one a line, such as {SHAPE},causal")
    return shapes


def _find(what: str | None, arguments: argparse.Namespace, target: Target) -> _Found:
    if what is not None and os.path.isfile(what):
        return _header(Path(what), arguments)
    template = find_template(arguments.template)
    space = load_space(space_path(arguments.space, template))
    if what is None:
        return _Found("the default config", template, space, None)
    if "=" in what:
        return _Found(what, template, space, _read_list(space, what))
    values = _read_label(space, what)
    if values is not None:
        return _Found(what, template, space, values)
    if Path(what).suffix:
        raise UserError(f"{what!r} is neither a file nor a config label nor a study: see `evoengine studies`")
    return _study(what, arguments, target)


def _header(path: Path, arguments: argparse.Namespace) -> _Found:
    found = open_header(path, arguments.template, arguments.space)
    digest = found.facts.template_digest
    return _Found(str(path), found.template, found.space, found.values, found.problem, recorded_digest=digest)


def _study(name: str, arguments: argparse.Namespace, target: Target) -> _Found:
    with closing(Archive.open(existing_storage(arguments.storage))) as archive:
        try:
            study = archive.open_study(name)
        except UnknownStudy as error:
            what = f"{name!r} is neither a study nor a config's label: {error.hint}"
            raise SeeStudies(what, "evoengine studies") from error
        spec = study.spec
        question = reopen(spec, template_folder=arguments.template, space_file=arguments.space, stale=True)
        values = _best(study)
    limits = None
    if arguments.limits is None and spec.limits["name"] != spec.device:  # it searched within another card's limits
        limits = gate_limits(target.device, stored_limits(spec))
    return _Found(
        name, question.template, question.space, values, question.problem, limits, recorded_digest=spec.template_digest
    )


def _best(study: Study) -> dict[str, int]:
    """The best elite; in a study without a final run the best that it measured, or else estimated."""
    elites = study.elites()
    best = [one for one in study.records() if elites and one.number == elites[0].number]
    best = best or study.best(1) or study.shortlist(1)
    if not best:
        raise no_config(study.name)
    return best[0].config.values


def _read_list(space: SearchSpace, text: str) -> dict[str, int]:
    """`STAGES=2,BLOCK_N=64`, by value or by name; axes that are not named stay as in the default config."""
    values = dict(space.default)
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, raw = (part.strip() for part in item.partition("="))
        axis = space.axis(name)
        choices = {**{str(choice): choice for choice in axis.choices}, **{axis.show(c): c for c in axis.choices}}
        if raw not in choices:
            raise UserError(f"{name}={raw!r} is not among its choices {', '.join(axis.show(c) for c in axis.choices)}")
        values[name] = choices[raw]
    return values


def _read_label(space: SearchSpace, text: str) -> dict[str, int] | None:
    """`wm_4.bn_64.ov_1...`, as tables show configs; None where it is no label of this space.

    Axes that are not named stay as in the default config.
    """
    words = {f"{axis.short}_{axis.show(choice)}": (axis.name, choice) for axis in space for choice in axis.choices}
    parts = text.split(".")
    if any(part not in words for part in parts):
        return None
    return {**space.default, **dict(words[part] for part in parts)}
