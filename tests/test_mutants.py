"""Bugs planted in the attention template one at a time: the interpreter refuses each, and accepts the original.

A mutant's cubin differs from the original's, which `build` asserts: an edit that changes nothing proves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from benchmarks.trust.false_rejections import SEED, SHAPES, asked, draw
from benchmarks.trust.planted import MUTANTS, TEMPLATE, Mutant
from benchmarks.trust.planted.building import build, request
from benchmarks.trust.planted.interpreting import Interpreted, interpret
from benchmarks.trust.planted.mutant import PLAIN, Edit
from evoengine.build import Builder
from evoengine.devices.interpreter import Unsupported
from evoengine.errors import TemplateError
from evoengine.hardware import card
from evoengine.verdict import Estimate, Rejection

ARCH = "sm_89"
SAMPLED = 2
"""Random configs a shape that are interpreted; the dearest take 4 s each."""


@dataclass(frozen=True)
class Judged:
    """What became of every mutant, and of the original of each."""

    mutants: dict[str, Interpreted]
    originals: dict[str, Interpreted]


@pytest.fixture(scope="module")
def judged(cache_folder: Path) -> Judged:
    built = build(MUTANTS, ARCH)
    distinct = {one.original.cubin_sha256: (one.mutant.values, one.mutant.problem, one.original) for one in built}
    cases = [(one.mutant.values, one.mutant.problem, one.artifact) for one in built]
    verdicts = interpret([*distinct.values(), *cases])
    of_original = dict(zip(distinct, verdicts[: len(distinct)], strict=True))
    return Judged(
        {one.mutant.name: verdict for one, verdict in zip(built, verdicts[len(distinct) :], strict=True)},
        {one.mutant.name: of_original[one.original.cubin_sha256] for one in built},
    )


def test_every_mutant_has_a_name_of_its_own() -> None:
    assert len(MUTANTS) == len({mutant.name for mutant in MUTANTS})
    assert 30 <= len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_interpreter_refuses_a_planted_bug(mutant: Mutant, judged: Judged) -> None:
    original, verdict = judged.originals[mutant.name], judged.mutants[mutant.name]

    assert isinstance(original, Estimate), original
    assert [""] * len(original.checks) == [check.reason for check in original.checks]
    # the four modes; with counters, once more on what the first launch left there
    assert {4 + (mutant.values["SPLIT_KV"] > 1)} == {check.repeats for check in original.checks}
    if mutant.unseen:
        assert isinstance(verdict, Estimate | Unsupported), "it is seen after all"
        return
    assert isinstance(verdict, Rejection)
    assert mutant.gate is verdict.gate, verdict.reason
    assert mutant.reason in verdict.reason


def test_random_configs_are_accepted(cache_folder: Path) -> None:
    limits = card("l4")
    questions = [asked(shape, limits) for shape in SHAPES]
    drawn = [(question.problem, config) for question in questions for config in draw(question, SAMPLED, SEED)]
    with Builder(TEMPLATE, ARCH) as builder:
        built = builder.build([request(config.values, problem) for problem, config in drawn])
    cases = [(config.values, problem, one) for (problem, config), one in zip(drawn, built, strict=True)]

    assert SAMPLED * len(SHAPES) == len(cases)
    assert [] == [one for one in built if isinstance(one, Rejection)]
    for (problem, config), verdict in zip(drawn, interpret(cases), strict=True):
        assert isinstance(verdict, Estimate), f"{config.label} at {problem.label}: {verdict}"


def test_an_edit_must_fit_and_change_the_kernel(tmp_path: Path) -> None:
    harmless = Mutant("harmless", "nothing", (Edit("kernel.cu", "int row_block =", "int  row_block ="),), PLAIN)
    stale = replace(harmless, edits=(Edit("kernel.cu", "int row_block = ", "", 2),))

    with pytest.raises(TemplateError, match="the original's cubin"):
        build([harmless], ARCH)
    with pytest.raises(TemplateError, match="1 times, not 2"):
        stale.plant(tmp_path / "stale")


def test_the_shipped_template_is_never_touched(tmp_path: Path) -> None:
    before = TEMPLATE.digest
    planted = MUTANTS[0].plant(tmp_path / "planted")

    assert before != planted.digest
    assert planted.folder.is_relative_to(tmp_path)
    assert list(TEMPLATE.sources) == list(planted.sources)
