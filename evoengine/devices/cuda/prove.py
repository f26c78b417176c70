"""The correctness gate on the card: which input sets a kernel must get right, and what it may not touch."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from evoengine import oracle
from evoengine.devices.cuda.buffers import BufferCopy, ProblemBuffers, drifted, observe
from evoengine.devices.cuda.card import Card, Start
from evoengine.devices.cuda.driver import Kernel
from evoengine.devices.cuda.messages import Working
from evoengine.devices.cuda.references import derive_seed, input_set
from evoengine.devices.cuda.serve import Tell
from evoengine.errors import EvoengineError, TemplateError
from evoengine.oracle import InputSet
from evoengine.problem import Problem, problem_digest
from evoengine.space import Values
from evoengine.template import InputKind, Template, full_checks
from evoengine.verdict import Check, Gate, Rejection

CHECK_REPEATS = 5
"""Repeats on the problems that are not timed: they look for wrong indices, the timed shape's repeats for races."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What the gate found. `launch` starts the kernel on the timed problem, `accepted` is its proven output there.

    `stray` means that the kernel wrote outside its outputs.
    """

    checks: tuple[Check, ...]
    rejection: Rejection | None
    launch: Start
    accepted: list[torch.Tensor]
    stray: bool


@dataclass(frozen=True, slots=True)
class _Case:
    """An input set in its buffers, and how often to launch on it.

    `like` is the place of an earlier case that must have had the same output; `borrowed_from` is whose the buffers are.
    """

    made: InputSet
    buffers: ProblemBuffers
    repeats: int
    like: int | None = None
    borrowed_from: InputSet | None = None


class Prover:
    """Judges kernels of one template on one problem; input sets and device buffers are made once and kept."""

    def __init__(self, template: Template, problem: Problem, seed: int, scratch: Path, card: Card, tell: Tell) -> None:
        self._template = template
        self._seed = seed
        self._scratch = scratch
        self._card = card
        self._tell = tell
        self._sets: dict[str, tuple[InputSet, ProblemBuffers]] = {}
        self.timed, self.buffers = self._set(problem, "timed")

    def prove(self, kernel: Kernel, values: Values, repeats: int, about: str = "", *, full: bool = False) -> Proof:
        """Run every input set until one fails; `repeats` launches on the timed one. With `full`, the full gate's too.

        Raises:
            CudaError: the driver refuses to launch.
            FatalCudaError: a launch failed on the device.
        """
        cases = self._quick(values, repeats)
        cases += self._full(values, repeats, cases) if full else []
        self._tell(Working("check", about))
        launch = self.bind(kernel, values, self.timed.problem, self.buffers)
        checks: list[Check] = []
        outputs: list[list[torch.Tensor]] = []
        for case in cases:
            self._tell(Working("check", about))  # each set has the whole deadline
            check, first = self._check(kernel, values, case, None if case.like is None else outputs[case.like])
            checks.append(check)
            outputs.append(first)
            if check.reason:
                self.buffers.reset_counters()  # a wrong kernel leaves them anyhow, which is not the next one's fault
                reason = f"{check.input_set} {check.shape}: {check.reason}"
                evidence = {"input_set": check.input_set, "shape": check.shape, "seed": check.seed}
                rejection = Rejection(Gate.CORRECTNESS, reason, evidence, tuple(checks))
                stray = bool(check.guard_hits or check.inputs_changed)
                return Proof(tuple(checks), rejection, launch, outputs[0], stray)
        return Proof(tuple(checks), None, launch, outputs[0], False)

    def _quick(self, values: Values, repeats: int) -> list[_Case]:
        """The timed problem, and those that the same cubin must solve too."""
        with self._template_code("check_problems"):
            others = self._template.module.check_problems(values, self.timed.problem)
        timed = _Case(self.timed, self.buffers, repeats)
        return [timed, *(_Case(*self._set(other, "check"), CHECK_REPEATS) for other in others)]

    def _full(self, values: Values, repeats: int, quick: Sequence[_Case]) -> list[_Case]:
        """What a finalist must pass besides: the data of a quick case in other buffers, other data in that case's own
        (a kernel may remember either), and the template's own input sets."""
        like = min(1, len(quick) - 1)  # the first that is not timed: its reference is cheap at any timed shape
        known = quick[like]
        moved, elsewhere = self._set(known.made.problem, "moved", like=known.made)
        renewed, _ = self._set(known.made.problem, "renewed")
        cases = [
            _Case(moved, elsewhere, CHECK_REPEATS, like=like),
            _Case(renewed, known.buffers, CHECK_REPEATS, borrowed_from=known.made),
        ]
        with self._template_code("full_checks"):
            wanted = full_checks(self._template.module, values, self.timed.problem)
        for one in wanted:
            made, buffers = self._set(one.problem, one.kind.name, one.kind)
            cases.append(_Case(made, buffers, repeats if one.races else CHECK_REPEATS))
        return cases

    def _check(
        self, kernel: Kernel, values: Values, case: _Case, like: list[torch.Tensor] | None
    ) -> tuple[Check, list[torch.Tensor]]:
        """Launch one case; with `like`, its output must be that one bit for bit."""
        started = time.perf_counter()
        run = self.bind(kernel, values, case.made.problem, case.buffers)
        if case.borrowed_from is not None:
            case.buffers.load(case.made.inputs)
        observed, first = observe(run, case.buffers, case.repeats, self._card.scrub, self._card.synchronize)
        if like is not None:
            mismatches = observed.repeat_mismatches + int(case.buffers.differs(like))
            observed = dataclasses.replace(observed, repeats=case.repeats + 1, repeat_mismatches=mismatches)
        if case.borrowed_from is not None:
            case.buffers.load(case.borrowed_from.inputs)
        observed = dataclasses.replace(observed, seconds=time.perf_counter() - started)
        return oracle.check(self._template, case.made, observed), first

    def recheck(self, proof: Proof) -> str:
        """What is wrong with a proven kernel's output now; empty where it is bit for bit as it was."""
        return drifted(proof.launch, self.buffers, proof.accepted, self._card.synchronize)

    def bind(self, kernel: Kernel, values: Values, problem: Problem, buffers: ProblemBuffers | BufferCopy) -> Start:
        """The kernel with this problem's grid and arguments, ready to start on the worker's stream."""
        with self._template_code("launch"):
            launch = self._template.module.launch(values, problem)
            arguments = self._template.module.arguments(values, problem)
        return self._card.bind(kernel, launch, buffers.arguments(arguments))

    def _set(
        self, problem: Problem, name: str, kind: InputKind | None = None, like: InputSet | None = None
    ) -> tuple[InputSet, ProblemBuffers]:
        """An input set in buffers of its own; with `like`, that one's numbers under this name."""
        purpose = f"full {name}" if kind else name  # a template may name its kinds as we name our own sets
        key = f"{purpose}-{problem_digest(problem)}"
        if key not in self._sets:
            self._tell(Working("reference"))
            with self._template_code("reference"):
                made = (
                    dataclasses.replace(like, name=name)
                    if like
                    else input_set(self._template, problem, derive_seed(self._seed, purpose), name, self._scratch, kind)
                )
            self._sets[key] = made, ProblemBuffers(self._template, problem, made.inputs, self._card.device)
        return self._sets[key]

    @contextmanager
    def _template_code(self, what: str) -> Iterator[None]:
        """The template's own Python: what fails there is the template's fault."""
        try:
            yield
        except EvoengineError:
            raise
        except Exception as error:
            text = f"{self._template.name}/template.py: {what} fails: {type(error).__name__}: {error}"
            raise TemplateError(text) from error
