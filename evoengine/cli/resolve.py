"""From options, or from a stored study, to the question that is searched."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from evoengine.cli.remedies import OPTIONS, Remedies
from evoengine.cli.trusted import is_trusted, trust
from evoengine.declared import check_arguments, guarded
from evoengine.errors import EvoengineError, UserError, did_you_mean
from evoengine.gates import Ceilings
from evoengine.hardware import DeviceLimits, card, gate_limits
from evoengine.problem import Member, Problem, ProblemSet, make_problem, parse_shapes
from evoengine.question import Question, make_question
from evoengine.space import load_space
from evoengine.template import Template, TemplateModule, load_template, shipped

if TYPE_CHECKING:
    from evoengine.archive.records import StudySpec
    from evoengine.devices.cuda import Gpu

DEFAULT_TEMPLATE = "attention"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Target:
    """The card: what it is, and what a candidate must fit (another card's limits with `--limits`)."""

    device: DeviceLimits
    limits: DeviceLimits
    ordinal: int | None
    """CUDA ordinal of the GPU that measures, the first of several; None where nothing is measured."""
    cards: tuple[Gpu, ...] = ()
    """The cards that share the study, all of one model, where `--devices` named them."""


def find_template(text: str | None) -> Template:
    """A shipped template by name, or any folder, which is trusted from now on: the user names it.

    Raises:
        UserError: neither exists.
    """
    name = text or DEFAULT_TEMPLATE
    known = shipped_templates()
    if name in known:
        return load_template(known[name])
    if not os.path.isdir(name):
        near = did_you_mean(name, known)
        hint = f": {near.rstrip()}" if near else ""
        raise UserError(f"template {name!r} is neither a folder nor a shipped template ({', '.join(known)}){hint}")
    return load_template(trust(Path(name)))


def named_template(name: str, by: str, folder: str | None = None, remedies: Remedies = OPTIONS) -> Template:
    """The template that a file speaks of: a shipped one, or a folder here that the user has named before.

    With `folder`, what the user says it is.

    Raises:
        UserError: it is neither; names the remedy that says which folder is meant.
    """
    if folder is not None:
        return find_template(folder)
    known = shipped_templates()
    if name in known:
        return load_template(known[name])
    if os.path.isdir(name) and is_trusted(Path(name)):
        return load_template(Path(name))
    raise UserError(f"{by} is of template {name!r}, which is not shipped: say where it is with {remedies.template}")


def shipped_templates() -> dict[str, Path]:
    """The templates that travel with evoengine, by name."""
    folders = sorted(shipped("kernel_templates").iterdir())
    return {folder.name: folder for folder in folders if (folder / "template.py").is_file()}


def space_path(text: str | None, template: Template, remedies: Remedies = OPTIONS) -> Path:
    """`--space`, else the shipped space of the template's name, else `space.py` in the template's folder.

    Raises:
        UserError: there is none of them.
    """
    if text is not None:
        return trust(Path(text))
    known = shipped("search_spaces") / f"{template.name}.py"
    if template.folder.parent == shipped("kernel_templates").resolve() and known.is_file():
        return known
    own = template.folder / "space.py"
    if own.is_file():
        return own
    raise UserError(f"template {template.folder} has no space.py: give its search space with {remedies.space}")


def find_target(device: str, target: str, limits: str | None, devices: str | None = None) -> Target:
    """The GPU if there is one and it is wanted, or the `devices` that are, else the card named by `--target`.

    Raises:
        UserError: a GPU was asked for and there is none, `devices` are not of one model, or a card's name is unknown.
    """
    if devices is not None:
        from evoengine.cli.cards import one_model

        check_devices(device, devices)
        return target_of(one_model(devices), limits)
    own = card(target)
    named = card(limits) if limits is not None else None
    gpu = None
    ordinal = 0
    if device != "none":
        kind, _, number = device.partition(":")
        if kind not in ("auto", "cuda") or not re.fullmatch("[0-9]{0,4}", number) or (kind == "auto" and number):
            raise UserError(f"device {device!r}: give auto, cuda, cuda:N or none")
        ordinal = int(number or 0)
        from evoengine.devices.cuda import find_gpu

        gpu = find_gpu(ordinal)
        if gpu is None and kind == "cuda":
            raise UserError(f"device {device!r}: no such GPU here; `evoengine doctor` says what is missing")
    if gpu is None:
        return Target(own, gate_limits(own, named) if named else own, None)
    return Target(gpu, gate_limits(gpu, named) if named else gpu, ordinal)


def target_of(cards: Sequence[Gpu], limits: str | None) -> Target:
    """Cards of one model, for one study."""
    gpu = cards[0].limits
    return Target(gpu, gate_limits(gpu, card(limits)) if limits else gpu, cards[0].ordinal, tuple(cards))


def check_devices(device: str, devices: str) -> None:
    """
    Raises:
        UserError: both options are given.
    """
    if device != "auto":
        raise UserError(f"--device {device} --devices {devices}: give one of them")


def find_question(arguments: argparse.Namespace, target: Target, *shapes: str) -> tuple[Question, Path]:
    """The question that the options ask of a shape, or of several at once (none: the template's own), and the file its
    space came from."""
    template = find_template(arguments.template)
    path = space_path(arguments.space, template)
    problem = parse_shapes(template.module.PROBLEM, shapes or [""])
    ceilings = Ceilings(arguments.max_registers, arguments.max_smem, arguments.max_spill_bytes)
    question = make_question(template, load_space(path), problem, target.limits, ceilings)
    _try_out(question, path)
    return question, path


def _try_out(question: Question, space: Path) -> None:
    """Let template.py and the rules of the space see the default config: both are the user's code, and must agree.

    Raises:
        UserError: they fail on it.
        TemplateError: a tensor or an argument is declared as what does not exist.
    """
    module, values = question.template.module, question.space.default
    try:
        question.static_gate(values)
        for one in question.members:
            macros = module.defines(values, one.problem)
            tensors = guarded(question.template).module.tensors(one.problem)
            check_arguments(question.template, module.arguments(values, one.problem), tensors)
            for name in ("check_problems", "small_problems"):
                for other in getattr(module, name)(values, one.problem):
                    _check_macros(f"{question.template.folder / 'template.py'}: {name}", other, macros, module, values)
    except EvoengineError:
        raise
    except Exception as error:
        raise UserError(
            f"{question.template.folder / 'template.py'} or {space} fails on the default config of the space "
            f"({type(error).__name__}: {error}): template.py and the rules must read axes that the space has"
        ) from error


def _check_macros(
    who: str, other: Problem, macros: Mapping[str, int], module: TemplateModule, values: Mapping[str, int]
) -> None:
    """That `other`, which the cubin of `macros` shall solve too, has the same.

    Raises:
        UserError: it has not.
    """
    for name, value in module.defines(values, other).items():
        if value != macros.get(name):
            raise UserError(
                f"{who} gives {other.label}, for which defines() says {name}={value} and not {macros.get(name)}: that "
                "is another cubin, vary only what is no macro"
            )


def reopen(
    spec: StudySpec,
    *,
    template_folder: str | None = None,
    space_file: str | None = None,
    stale: bool = False,
    remedies: Remedies = OPTIONS,
) -> Question:
    """The question of a study, from its stored paths and digests, or from the paths that the user gives.

    Raises:
        UserError: template or space are gone, are code that the user has never named, or (unless `stale`) have changed.
    """
    if template_folder is not None:
        template = find_template(template_folder)
    else:
        template = load_template(_stored(spec, spec.template_folder, "kernel_templates", remedies.template))
    if space_file is not None or template_folder is not None:
        space = load_space(space_path(space_file, template))
    else:
        space = load_space(_stored(spec, spec.space_path, "search_spaces", remedies.space))
    for what, then, now in (
        ("template", spec.template_digest, template.digest),
        ("search space", spec.space_digest, space.digest),
    ):
        if then != now and not stale:
            raise UserError(
                f"the {what} of study {spec.name} has changed since ({then}, now {now}): start a new search (what was "
                f"built before is still cached){remedies.or_force}"
            )
    if space.axes != spec.axes and not stale:
        raise UserError(
            f"study {spec.name} is damaged, its axes are not those of search space {space.name}: start anew"
        )
    ceilings = _stored_as(Ceilings, spec, spec.ceilings)
    return make_question(template, space, stored_problem(spec, template), stored_limits(spec), ceilings)


def stored_problem(spec: StudySpec, template: Template) -> Problem:
    """What a study is of, as its template has it.

    Raises:
        UserError: it is no problem of the template.
    """
    kind = template.module.PROBLEM
    if not spec.members:
        return make_problem(kind, spec.problem)
    return ProblemSet(tuple(Member(make_problem(kind, one.problem), one.weight) for one in spec.members))


def stored_limits(spec: StudySpec) -> DeviceLimits:
    return _stored_as(DeviceLimits, spec, spec.limits)


def _stored_as(kind: type[T], spec: StudySpec, document: Mapping[str, Any]) -> T:
    from evoengine.archive.documents import Damaged, typed

    try:
        return typed(kind, document)
    except Damaged as error:
        raise UserError(f"study {spec.name} is damaged ({error}): start a new search") from error


def _stored(spec: StudySpec, text: str, kind: Literal["kernel_templates", "search_spaces"], remedy: str) -> Path:
    """A stored path; where it is gone, the shipped file of that name: a study may have come from another machine.

    Raises:
        UserError: it is code that is not shipped and that the user has not named here.
    """
    path = Path(text)
    if not os.path.exists(path):
        path = shipped(kind) / path.name
    if not is_trusted(path):
        raise UserError(
            f"study {spec.name} names {text!r}, which is code that was not used on this machine yet: if you trust it, "
            f"name it yourself with {remedy}"
        )
    return path


def resume_target(spec: StudySpec, device: str, devices: str | None = None) -> tuple[Target, str]:
    """Where a study goes on, and a line for the user if that is not where they may think.

    Raises:
        UserError: the study measures on a card that is not here, or `device` or `devices` contradict it.
    """
    found = find_target(device, "l4", None, devices)
    here = None if found.ordinal is None else found.device
    limits = stored_limits(spec)
    if here is not None and here.name == spec.device:
        return Target(here, limits, found.ordinal, found.cards), ""
    if spec.measures or device.startswith("cuda") or devices is not None:
        what = "no GPU" if here is None else here.name
        raise UserError(
            f"study {spec.name} is for {spec.device}, here is {what}: resume it on a machine with that card, or start "
            "a new search"
        )
    note = "" if here is None else f"{here.name} is not the study's {spec.device}: going on without measuring"
    return Target(limits, limits, None), note
