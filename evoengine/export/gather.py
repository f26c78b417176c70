"""From configs on their way out to wisdom: one row for each problem and card."""

from __future__ import annotations

from collections.abc import Sequence

from evoengine.errors import UserError
from evoengine.export.chosen import Chosen
from evoengine.export.targets import one_kernel
from evoengine.export.wisdom import Row, Wisdom, kept

PROVENANCE = (
    *("study", "trial", "shape", "config", "arch", "driver", "cubin_sha256", "method", "noise", "speedup_over_sdpa"),
    *("speedup_over_default", "date", "command", "evoengine_version"),
)


def wisdom_of(chosen: Sequence[Chosen]) -> Wisdom:
    """One row for each.

    Raises:
        UserError: one was never measured, or they are of several kernels or versions of one.
    """
    one_kernel(chosen)
    first = chosen[0]
    names = tuple(axis.name for axis in first.space)
    default = tuple(first.space.default[name] for name in names)
    return Wisdom(first.facts.entry, first.facts.template, names, default, kept(map(_row, chosen)))


def _row(chosen: Chosen) -> Row:
    facts = chosen.facts
    if facts.median_us is None:
        raise UserError(
            f"{chosen.where} was never measured; load, torch and wisdom take measured configs only: resume its study "
            f"on a machine with the {facts.device}"
        )
    positional = getattr(chosen.template.module.PROBLEM, "POSITIONAL", ())
    return Row(
        size=tuple(int(facts.problem[name]) for name in positional),
        device=facts.device,
        config=tuple(chosen.values[axis.name] for axis in chosen.space),
        time=facts.median_us * 1e-3,
        problem=facts.problem,
        macros=chosen.problem_macros,
        validators={
            "compiler": facts.compiler,
            "template_digest": facts.template_digest,
            "space_digest": facts.space_digest,
        },
        provenance={name: getattr(facts, name) for name in PROVENANCE},
    )
