"""From options, or from a stored study, to the question that is searched."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from evoengine.errors import UserError
from evoengine.gates import Ceilings
from evoengine.hardware import DeviceLimits, card, gate_limits
from evoengine.problem import parse_shape
from evoengine.question import Question
from evoengine.space import load_space
from evoengine.template import Template, load_template, shipped

if TYPE_CHECKING:
    from evoengine.archive.records import StudySpec

DEFAULT_TEMPLATE = "attention"


@dataclass(frozen=True, slots=True)
class Target:
    """The card: what it is, and what a candidate must fit (another card's limits with `--limits`)."""

    device: DeviceLimits
    limits: DeviceLimits
    ordinal: int | None
    """CUDA ordinal of the GPU that measures; None where nothing is measured."""


def find_template(text: str | None) -> Template:
    """A shipped template by name, or any folder.

    Raises:
        UserError: neither exists.
    """
    name = text or DEFAULT_TEMPLATE
    known = shipped("kernel_templates") / name
    if "/" not in name and known.is_dir():
        return load_template(known)
    if not Path(name).is_dir():
        names = sorted(path.name for path in shipped("kernel_templates").iterdir() if path.is_dir())
        raise UserError(f"template {name!r} is neither a folder nor a shipped template ({', '.join(names)})")
    return load_template(Path(name))


def space_path(text: str | None, template: Template) -> Path:
    """`--space`, else the shipped space of the template's name, else `space.py` in the template's folder."""
    if text is not None:
        return Path(text).resolve()
    known = shipped("search_spaces") / f"{template.name}.py"
    if template.folder.parent == shipped("kernel_templates").resolve() and known.is_file():
        return known
    own = template.folder / "space.py"
    if own.is_file():
        return own
    raise UserError(f"template {template.folder} has no space.py: give its search space with --space FILE")


def find_target(device: str, target: str, limits: str | None) -> Target:
    """The GPU if there is one and it is wanted, else the card named by `--target`.

    Raises:
        UserError: a GPU was asked for and there is none, or a card's name is unknown.
    """
    own = card(target)
    named = card(limits) if limits is not None else None
    gpu = None
    ordinal = 0
    if device != "none":
        kind, _, number = device.partition(":")
        if kind not in ("auto", "cuda") or (number and not number.isdigit()) or (kind == "auto" and number):
            raise UserError(f"device {device!r}: give auto, cuda, cuda:N or none")
        ordinal = int(number or 0)
        from evoengine.devices.cuda import find_gpu

        gpu = find_gpu(ordinal)
        if gpu is None and kind == "cuda":
            raise UserError(f"device {device!r}: no such GPU here; `evoengine doctor` says what is missing")
    if gpu is None:
        return Target(own, gate_limits(own, named) if named else own, None)
    return Target(gpu, gate_limits(gpu, named) if named else gpu, ordinal)


def find_question(arguments: argparse.Namespace, target: Target) -> tuple[Question, Path]:
    """The question that the options ask, and the file its space came from."""
    template = find_template(arguments.template)
    path = space_path(arguments.space, template)
    problem = parse_shape(template.module.PROBLEM, arguments.shape or "")
    ceilings = Ceilings(arguments.max_registers, arguments.max_smem, arguments.max_spill_bytes)
    question = Question(template, load_space(path), problem, target.limits, ceilings)
    _try_out(question, path)
    return question, path


def _try_out(question: Question, space: Path) -> None:
    """Let template.py and the rules of the space see the default config: both are the user's code, and must agree.

    Raises:
        UserError: they fail on it.
    """
    module, values = question.template.module, question.space.default
    try:
        question.static_gate(values)
        module.defines(values, question.problem)
        module.arguments(values, question.problem)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{question.template.folder / 'template.py'} or {space} fails on the default config of the space "
            f"({type(error).__name__}: {error}): template.py and the rules must read axes that the space has"
        ) from error


def reopen(spec: StudySpec, *, stale: bool = False) -> Question:
    """The question of a study, from its stored paths and digests.

    Raises:
        UserError: template or space are gone, or (unless `stale`) have changed since.
    """
    template = load_template(_moved(Path(spec.template_folder), "kernel_templates"))
    space = load_space(_moved(Path(spec.space_path), "search_spaces"))
    for what, then, now in (
        ("template", spec.template_digest, template.digest),
        ("search space", spec.space_digest, space.digest),
    ):
        if then != now and not stale:
            raise UserError(
                f"the {what} of study {spec.name} has changed since ({then}, now {now}): start a new search; what was "
                "built before is still cached"
            )
    limits = stored_limits(spec)
    problem = template.module.PROBLEM(**spec.problem)
    return Question(template, space, problem, limits, Ceilings(**spec.ceilings))


def stored_limits(spec: StudySpec) -> DeviceLimits:
    return DeviceLimits(**{**spec.limits, "compute_capability": tuple(spec.limits["compute_capability"])})


def _moved(path: Path, kind: Literal["kernel_templates", "search_spaces"]) -> Path:
    """A stored path; where it is gone, the shipped file of that name: a study may have come from another machine."""
    return path if path.exists() else shipped(kind) / path.name


def resume_target(spec: StudySpec, device: str) -> tuple[Target, str]:
    """Where a study goes on, and a line for the user if that is not where they may think.

    Raises:
        UserError: the study measures on a card that is not here, or `device` contradicts it.
    """
    found = find_target(device, "l4", None)
    here = None if found.ordinal is None else found.device
    limits = stored_limits(spec)
    if here is not None and here.name == spec.device:
        return Target(here, limits, found.ordinal), ""
    if spec.measures or device.startswith("cuda"):
        what = "no GPU" if here is None else here.name
        raise UserError(
            f"study {spec.name} is for {spec.device}, here is {what}: resume it on a machine with that card, or start "
            "a new search"
        )
    note = "" if here is None else f"{here.name} is not the study's {spec.device}: going on without measuring"
    return Target(limits, limits, None), note
