"""From options to the question that is searched."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from evoengine.errors import UserError
from evoengine.gates import Ceilings, hardware_rules
from evoengine.hardware import DeviceLimits, card, gate_limits
from evoengine.problem import Problem, parse_shape
from evoengine.space import FeasibleSet, SearchSpace, load_space
from evoengine.template import Template, load_template, shipped

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


def make_problem(template: Template, shape: str) -> Problem:
    return parse_shape(template.module.PROBLEM, shape)


def find_target(device: str, target: str, limits: str | None) -> Target:
    """The GPU if there is one and it is wanted, else the card named by `--target`.

    Raises:
        UserError: a GPU was asked for and there is none, or a card's name is unknown.
    """
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
        own = card(target)
        return Target(own, gate_limits(own, named) if named else own, None)
    return Target(gpu, gate_limits(gpu, named) if named else gpu, ordinal)


def ceilings(arguments: argparse.Namespace) -> Ceilings:
    return Ceilings(arguments.max_registers, arguments.max_smem, arguments.max_spill_bytes)


def enumerate_space(
    template: Template, space: SearchSpace, problem: Problem, limits: DeviceLimits, ceilings: Ceilings
) -> FeasibleSet:
    """The feasible set under the space's rules and the device's limits."""
    names = tuple(axis.name for axis in space)
    return space.feasible(problem, limits, hardware_rules(template, names, ceilings))
