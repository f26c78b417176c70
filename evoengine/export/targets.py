"""Configs for several shapes and cards as one C header: an `#if` block each, chosen as Kernel Tuner's users choose.

`-DTARGET_NVIDIA_L4` names the card, `-DSHAPE_B1_H8_S512_D64_fp16` the shape. A block serves another shape or card than
its own only where that is the same kernel: where all candidates for the block have the same macros of the problem. If
they differ, guessing would silently compute something else, and the header is an `#error` that lists the shapes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from evoengine.errors import UserError
from evoengine.export.chosen import Chosen, better
from evoengine.export.header import body, provenance, signed

TITLE = "// evoengine header for several targets, format 1"


def render_targets(chosen: Sequence[Chosen]) -> str:
    """The header's text. Of two configs for one shape on one card the faster stays.

    Raises:
        UserError: they are of several kernels or versions of one, or names that differ make one macro.
    """
    best = unique(chosen)
    one_kernel(best)
    _check_macros(best)
    return signed(_lines(best))


def unique(chosen: Sequence[Chosen]) -> list[Chosen]:
    """The fastest for every card and shape, in order of their names."""
    best: dict[tuple[str, str], Chosen] = {}
    for one in chosen:
        key = one.facts.device, one.facts.shape
        best[key] = better(best[key], one) if key in best else one
    return [best[key] for key in sorted(best)]


def one_kernel(chosen: Sequence[Chosen]) -> None:
    """Refuse what is not all of the same sources.

    Raises:
        UserError: two differ in template or its digest.
    """
    first = chosen[0]
    for one in chosen[1:]:
        if (one.facts.entry, one.facts.template_digest) != (first.facts.entry, first.facts.template_digest):
            raise UserError(
                f"{one.where} is of {one.facts.template} {one.facts.template_digest}, {first.where} of "
                f"{first.facts.template} {first.facts.template_digest}: one file is for one version of one template"
            )


def target_macro(one: Chosen) -> str:
    return f"TARGET_{_word(one.facts.device)}"


def shape_macro(one: Chosen) -> str:
    return f"SHAPE_{_word(one.facts.shape)}"


def default_of(chosen: Sequence[Chosen]) -> Chosen | None:
    """The config that is most often the best one, of several the fastest; None where they are not the same kernel."""
    if len({tuple(sorted(one.problem_macros.items())) for one in chosen}) > 1:
        return None
    often = Counter(one.facts.config for one in chosen)
    usual = [one for one in chosen if often[one.facts.config] == max(often.values())]
    best = usual[0]
    for one in usual[1:]:
        best = better(best, one)
    return best


def _word(text: str) -> str:
    return re.sub(r"\W", "_", text, flags=re.ASCII)


def _check_macros(chosen: Sequence[Chosen]) -> None:
    names: dict[str, str] = {}
    for one in chosen:
        for macro, name in ((target_macro(one), one.facts.device), (shape_macro(one), one.facts.shape)):
            if names.setdefault(macro, name) != name:
                raise UserError(f"{name} and {names[macro]} would both be {macro}: export them to two headers")


def _lines(chosen: Sequence[Chosen]) -> Iterator[str]:
    yield TITLE
    yield "//"
    yield "// Define a card and a shape, as in -DTARGET_NVIDIA_L4 -DSHAPE_B1_H8_S512_D64_fp16; here are:"
    for macro in sorted({target_macro(one) for one in chosen}) + sorted({shape_macro(one) for one in chosen}):
        yield f"//   {macro}"
    yield "// Without these macros the last block counts, the default configuration or, of several problems, an #error."
    yield ""
    yield "#pragma once"
    yield "#ifndef kernel_tuner"
    word = "#if"
    for condition, about, one in _blocks(chosen):
        yield ""
        yield f"{word} {condition}" if condition else "#else"
        yield f"// {about}"
        if one is None:
            shapes = " ".join(sorted({shape_macro(other) for other in chosen}))
            yield f'#error "kernels of several problems are in this header: define one of {shapes}"'
        else:
            yield from provenance(one.facts)
            yield from body(one.facts)
        word = "#elif"
    yield "#endif"
    yield "#endif"


def _blocks(chosen: Sequence[Chosen]) -> Iterator[tuple[str, str, Chosen | None]]:
    """Condition, comment and config of each block, the most particular first; the last has no condition."""
    for macro in dict.fromkeys(map(shape_macro, chosen)):
        own = [one for one in chosen if shape_macro(one) == macro]
        for one in own if len(own) > 1 else ():
            condition = f"defined({target_macro(one)}) && defined({macro})"
            yield condition, f"{one.facts.shape} on {one.facts.device}", one
        cards = " and ".join(one.facts.device for one in own)
        yield (
            f"defined({macro})",
            f"{own[0].facts.shape} tuned on {cards}; on any other card this is a guess",
            default_of(own),
        )
    for macro in dict.fromkeys(map(target_macro, chosen)):
        own = [one for one in chosen if target_macro(one) == macro]
        yield f"defined({macro})", f"default for other shapes on {own[0].facts.device}", default_of(own)
    yield "", "default configuration", default_of(chosen)
