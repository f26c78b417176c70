"""Errors that are raised again with more to say keep what they are."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any, cast

import pytest

import evoengine
from evoengine.cli.running import _saying
from evoengine.devices.fleet import _of_card
from evoengine.devices.pool import Card
from evoengine.errors import EvoengineError, TemplateError, UnknownStudy


def kinds(kind: type[EvoengineError] = EvoengineError) -> Iterator[type[EvoengineError]]:
    """Every error there is, the packages' own included."""
    yield kind
    for more in kind.__subclasses__():
        yield from kinds(more)


for module in pkgutil.iter_modules(evoengine.__path__, "evoengine."):
    if module.name != "evoengine.__main__":
        importlib.import_module(module.name)
KINDS = sorted(set(kinds()), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_that_says_more_is_the_same_otherwise(kind: type[EvoengineError]) -> None:
    error = kind("measurd", ["measured"]) if kind is UnknownStudy else kind("measurd is gone")
    more = error.saying(f"card 3: {error}")

    assert (kind, f"card 3: {error}", kind.exit_code) == (type(more), str(more), more.exit_code)
    assert getattr(error, "hint", None) == getattr(more, "hint", None)
    assert error is not more


def test_every_error_of_a_run_says_how_to_go_on_but_that_of_a_template() -> None:
    with (
        pytest.raises(UnknownStudy, match=r"^unknown study 'a': see `evoengine studies`; then go on with: c$") as told,
        _saying("c"),
    ):
        raise UnknownStudy("a", ["much else"])
    assert ("", 2) == (told.value.hint, told.value.exit_code)
    with pytest.raises(TemplateError, match=r"^broken$"), _saying("c"):
        raise TemplateError("broken")


def test_an_error_of_a_card_names_it() -> None:
    card = Card("GPU-1", cast(Any, None))
    named = _of_card(UnknownStudy("a", ["aa"]), card)

    assert (UnknownStudy, "card GPU-1: unknown study 'a': did you mean aa? see `evoengine studies`") == (
        type(named),
        str(named),
    )
    assert (own := KeyError("a mistake of ours")) is _of_card(own, card)
