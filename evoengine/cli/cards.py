"""`--devices`: which cards are meant, and which of them are of one model, so that they may share a study."""

from __future__ import annotations

from collections.abc import Sequence

from evoengine.devices.cuda import Gpu, find_gpus
from evoengine.errors import UserError

MEMORY_TOLERANCE = 1 / 64
"""Total memory of two cards of one model may differ by what the driver has set aside; the nearest models (H100 with 80
and 94 GB, A100 with 40 and 80) are 17 % apart."""


def chosen_cards(text: str) -> list[Gpu]:
    """The cards that `--devices` names, in its order: all, or CUDA ordinals and UUIDs (their beginnings will do).

    Raises:
        UserError: there is no such card, or one is named twice.
    """
    here = find_gpus()
    if not here:
        raise UserError(f"--devices {text}: no GPU here; `evoengine doctor` says what is missing")
    if text == "all":
        return here
    named = [_named(word.strip(), here, text) for word in text.split(",")]
    for index, gpu in enumerate(named):
        if gpu in named[:index]:
            raise UserError(f"--devices {text}: GPU {gpu.ordinal} ({gpu.uuid}) is named twice: name it once")
    return named


def models(cards: Sequence[Gpu]) -> list[list[Gpu]]:
    """The cards by model, each in the order given: values of unlike cards are not on one scale."""
    found: list[list[Gpu]] = []
    for gpu in cards:
        same = next((group for group in found if _alike(group[0], gpu)), None)
        if same is None:
            found.append([gpu])
        else:
            same.append(gpu)
    return found


def one_model(text: str) -> list[Gpu]:
    """The cards that `--devices` names, for one study.

    Raises:
        UserError: there is no such card, or they are not of one model.
    """
    cards = chosen_cards(text)
    different = [group[0] for group in models(cards)]
    if len(different) > 1:
        what = ", ".join(f"GPU {gpu.ordinal} is {_about(gpu)}" for gpu in different)
        raise UserError(
            f"--devices {text}: {what}: a study is of one model; name cards of one, or add --per-device for a study of "
            "each"
        )
    return cards


def _named(word: str, here: Sequence[Gpu], text: str) -> Gpu:
    if word.isdecimal():
        found = [gpu for gpu in here if gpu.ordinal == int(word)]
    else:
        # CUDA tells a slice of a card (MIG-...) by the same sixteen bytes as a card (GPU-...)
        kind, _, digits = word.partition("-")
        known = kind in ("GPU", "MIG") and digits
        found = [gpu for gpu in here if known and gpu.uuid.partition("-")[2].startswith(digits)]
    if len(found) != 1:
        there = ", ".join(f"{gpu.ordinal} ({gpu.uuid}, {gpu.limits.name})" for gpu in here)
        several = "several cards begin with" if found else "no card"
        raise UserError(f"--devices {text}: {several} {word!r}: give all, or some of {there}")
    return found[0]


def _alike(one: Gpu, other: Gpu) -> bool:
    a, b = one.limits, other.limits
    same = (a.name, a.compute_capability, a.sms) == (b.name, b.compute_capability, b.sms)
    return same and abs(one.memory_bytes - other.memory_bytes) <= MEMORY_TOLERANCE * one.memory_bytes


def _about(gpu: Gpu) -> str:
    limits = gpu.limits
    return f"{limits.name} ({limits.sms} SMs, {limits.arch}, {gpu.memory_bytes / 2**30:.0f} GiB)"
