"""The ablation replaces parts of the sampler by name: a renamed part must not pass for one that is worth nothing."""

from __future__ import annotations

from importlib import import_module

import pytest

from benchmarks.sampler_ablation import VARIANTS


@pytest.mark.parametrize("name", sorted({part for variant in VARIANTS.values() for part in variant.replaced}))
def test_every_replaced_part_exists(name: str) -> None:
    module, attribute = name.split(".")

    assert attribute in vars(import_module(f"evoengine.sampler.{module}"))


def test_no_two_variants_are_the_same() -> None:
    described = [repr(variant) for variant in VARIANTS.values()]

    assert len(described) == len(set(described))
