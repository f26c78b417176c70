"""`evoengine search --devices LIST --per-device`: a study for every model of card, one after the other.

Not side by side: the models would share the cores that build for them, and each would wait for the other's batches.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import Any

from evoengine.cli.cards import chosen_cards, models
from evoengine.cli.early import Early
from evoengine.cli.judges import check_sanitizer
from evoengine.cli.new_study import ask
from evoengine.cli.per_shape import search_all
from evoengine.cli.resolve import Target, check_devices, target_of
from evoengine.cli.tables import Label, console, table
from evoengine.errors import UserError
from evoengine.stopwatch import Stopwatch


def run(arguments: argparse.Namespace, shapes: Sequence[str], early: Early, watch: Stopwatch) -> int:
    """Search the shape, or the shapes together, on every model of the cards that are named, the first one's first."""
    targets = _targets(arguments)
    for target in targets:
        check_sanitizer(arguments, target)
    every = [ask(arguments, target, *shapes) for target in targets]
    labels = [target.device.name for target in targets]
    cards = {target.device.name: [gpu.uuid for gpu in target.cards] for target in targets}

    def document(rows: list[dict[str, Any]]) -> dict[str, Any]:
        devices = [{**row, "cards": cards[row["device"]]} for row in rows]
        return {"template": every[0].question.template.name, "devices": devices}

    return search_all(arguments, early, watch, "device", labels, every, document, _show)


def _targets(arguments: argparse.Namespace) -> list[Target]:
    """
    Raises:
        UserError: options contradict one another, a card is not there, or two models have one name, by which a study is
            known.
    """
    if arguments.devices is None:
        raise UserError("--per-device: say which cards with --devices, such as --devices all")
    if arguments.per_shape:
        raise UserError("--per-device --per-shape: give one of them, the other by a command for each shape or model")
    check_devices(arguments.device, arguments.devices)
    targets = [target_of(cards, arguments.limits) for cards in models(chosen_cards(arguments.devices))]
    name, count = Counter(target.device.name for target in targets).most_common(1)[0]
    if count > 1:
        raise UserError(
            f"--devices {arguments.devices}: {count} unlike models are called {name!r}: search each by a command of "
            "its own, with a --storage of its own"
        )
    return targets


def _show(document: dict[str, Any]) -> None:
    drawn = table("\na config for every model", "device", ">cards", "config", ">us", ">vs default", ">vs SDPA", "ended")
    for row in document["devices"]:
        times = [
            form.format(row[name]) if row.get(name) else "-"
            for name, form in (
                ("median_us", "{:.3f}"),
                ("speedup_over_default", "{:.2f}x"),
                ("speedup_over_sdpa", "{:.2f}x"),
            )
        ]
        drawn.add_row(row["device"], str(len(row["cards"])), Label(row.get("label", "-")), *times, row["state"])
    console().print(drawn)
