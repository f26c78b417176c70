"""Bugs planted in the attention template, on a real card: the gate refuses each, and accepts the original."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import pytest

from benchmarks.trust.mutants import Jury, Row, runs_on
from benchmarks.trust.planted import MUTANTS, Mutant
from benchmarks.trust.planted.building import build
from evoengine.devices.cuda import find_gpu

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def verdicts(request: pytest.FixtureRequest, cache_folder: Path) -> dict[str, Row]:
    """The rows of the mutants that were selected.

    Originals, alone and after each mutant that took the worker down, have been measured.
    """
    limits = find_gpu()
    assert limits is not None, "marked gpu: skipped where there is none"
    rows = {}
    ours = [item for item in request.session.items if item.path == request.path and isinstance(item, pytest.Function)]
    selected: list[Mutant] = [item.callspec.params["mutant"] for item in ours]
    ordered = sorted((one for one in selected if runs_on(one, limits)), key=lambda mutant: mutant.problem.label)
    for problem, group in groupby(build(ordered, limits.arch), key=lambda built: built.mutant.problem):
        rows |= {built.mutant.name: row for built, row in Jury(problem, limits).judge(list(group))}
    return rows


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_gate_refuses_a_planted_bug(mutant: Mutant, verdicts: dict[str, Row]) -> None:
    if mutant.name not in verdicts:
        pytest.skip("needs Hopper")
    assert verdicts[mutant.name]["caught"] or mutant.hidden
