"""Scratch that CTAs share, in the interpreter and on a device: poisoned parts, and counters that a kernel puts back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from interpreted import compile_ptx

from evoengine.devices.cuda.buffers import FILLS, ProblemBuffers, drifted, observe
from evoengine.devices.interpreter.modes import MODES, Mode
from evoengine.devices.interpreter.trial import Trial
from evoengine.hardware import card
from evoengine.template import load_template
from evoengine.verdict import Estimate, Gate, Rejection, ResourceUsage

TEMPLATE = load_template(Path(__file__).parent / "templates" / "merge")
MODULE = TEMPLATE.module
BUGS: tuple[str, ...] = MODULE.BUGS  # type: ignore[attr-defined]
PROBLEM = MODULE.PROBLEM()
DESCENDING = [str(mode) for mode in MODES if mode.order == "descending"]
SECOND = "second launch"


def judge(bug: str) -> Rejection | Estimate:
    values = {"BUG": BUGS.index(bug)}
    ptx = compile_ptx(TEMPLATE, values, PROBLEM)
    return Trial(TEMPLATE, PROBLEM, card("l4")).judge(values, ptx, ResourceUsage(32, 0, 0, 0, 0, 0))


def test_a_kernel_that_puts_its_counter_back_is_launched_twice_and_accepted() -> None:
    verdict = judge("none")

    assert isinstance(verdict, Estimate), verdict.reason
    assert [len(MODES) + 1] * 2 == [check.repeats for check in verdict.checks]


@pytest.mark.parametrize(
    ("bug", "reason", "differing"),
    [
        ("leaves its counter", "64 output words were never written", [SECOND]),
        ("a part is never written", "NaN", []),
        ("counts before all has been written", "a race", [*DESCENDING, SECOND]),
        ("one CTA is always the last", "a race", [str(Mode("eager", "descending")), SECOND]),
    ],
)
def test_a_planted_bug_is_caught(bug: str, reason: str, differing: list[str]) -> None:
    verdict = judge(bug)

    assert isinstance(verdict, Rejection)
    assert Gate.CORRECTNESS is verdict.gate
    assert reason in verdict.reason
    assert differing == verdict.evidence["differing_modes"]


class HostMerge:
    """What the kernel does, on host memory; `resets` is whether it puts its counter back."""

    def __init__(self, buffers: ProblemBuffers, *, resets: bool = True) -> None:
        self.counts: list[int] = []
        self.parts_were: list[torch.Tensor] = []
        self._buffers, self._resets = buffers, resets

    def __call__(self) -> None:
        named = {name: buffer.words for name, buffer in self._buffers._buffers.items()}
        count, parts, x, y = (named[name] for name in ("count", "parts", "x", "y"))
        self.counts.append(int(count.view(torch.int32)[0]))
        self.parts_were.append(parts.clone())
        parts.zero_()
        if self.counts[-1] == 0:
            y.view(torch.float32).copy_(x.view(torch.float32).view(-1, 64).sum(dim=0))
        count.view(torch.int32).fill_(0 if self._resets else 4)


def buffers() -> ProblemBuffers:
    return ProblemBuffers(TEMPLATE, PROBLEM, MODULE.inputs(PROBLEM, 1), torch.device("cpu"))


def nothing() -> None:
    """A host needs neither scrubbing nor waiting for."""


def test_counters_start_at_zero_and_parts_are_poisoned_before_every_checked_launch() -> None:
    held = buffers()
    launch = HostMerge(held)
    observed, first = observe(launch, held, 3, nothing, nothing)

    assert (0, 0, 0, False) == (
        observed.repeat_mismatches,
        observed.poison_left,
        observed.guard_hits,
        observed.inputs_changed,
    )
    assert ["y"] == list(observed.outputs)
    assert "" == drifted(launch, held, first, nothing)
    assert [0] * 4 == launch.counts
    words = [np.unique(parts.numpy().view(np.uint16)).tolist() for parts in launch.parts_were]
    assert [[FILLS[turn]] for turn in (0, 1, 2, 1)] == words


def test_a_counter_that_is_not_put_back_shows_in_the_second_launch() -> None:
    held = buffers()
    launch = HostMerge(held, resets=False)
    observed, _ = observe(launch, held, 3, nothing, nothing)

    assert [0, 4, 4] == launch.counts
    assert 2 == observed.repeat_mismatches
    held.reset_counters()
    assert [0, 0] == held._buffers["count"].words.tolist()


def test_guards_surround_scratch_too() -> None:
    held = buffers()
    for name in ("count", "parts"):
        held._buffers[name]._all[3] = 0

    assert 2 == int(held.guard_hits())
