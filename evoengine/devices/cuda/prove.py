"""The correctness gate on the card: which input sets a kernel must get right, and what it may not touch."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
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
from evoengine.template import Template
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

    def prove(self, kernel: Kernel, values: Values, repeats: int, about: str = "") -> Proof:
        """Run every input set until one fails; `repeats` launches on the timed one.

        Raises:
            CudaError: the driver refuses to launch.
            FatalCudaError: a launch failed on the device.
        """
        with self._template_code("check_problems"):
            others = self._template.module.check_problems(values, self.timed.problem)
        sets = [(self.timed, self.buffers, repeats), *((*self._set(other, "check"), CHECK_REPEATS) for other in others)]
        self._tell(Working("check", about))
        launch = self.bind(kernel, values, self.timed.problem, self.buffers)
        checks: list[Check] = []
        accepted: list[torch.Tensor] = []
        for made, buffers, count in sets:
            started = time.perf_counter()
            run = launch if made is self.timed else self.bind(kernel, values, made.problem, buffers)
            observed, first = observe(run, buffers, count, self._card.scrub, self._card.synchronize)
            accepted = first if made is self.timed else accepted
            check = oracle.check(
                self._template, made, dataclasses.replace(observed, seconds=time.perf_counter() - started)
            )
            checks.append(check)
            if check.reason:
                self.buffers.reset_counters()  # a wrong kernel leaves them anyhow, which is not the next one's fault
                reason = f"{made.name} {check.shape}: {check.reason}"
                evidence = {"input_set": made.name, "shape": check.shape, "seed": made.seed}
                rejection = Rejection(Gate.CORRECTNESS, reason, evidence, tuple(checks))
                return Proof(tuple(checks), rejection, launch, accepted, bool(check.guard_hits or check.inputs_changed))
        return Proof(tuple(checks), None, launch, accepted, False)

    def recheck(self, proof: Proof) -> str:
        """What is wrong with a proven kernel's output now; empty where it is bit for bit as it was."""
        return drifted(proof.launch, self.buffers, proof.accepted, self._card.synchronize)

    def bind(self, kernel: Kernel, values: Values, problem: Problem, buffers: ProblemBuffers | BufferCopy) -> Start:
        """The kernel with this problem's grid and arguments, ready to start on the worker's stream."""
        with self._template_code("launch"):
            launch = self._template.module.launch(values, problem)
            arguments = self._template.module.arguments(values, problem)
        return self._card.bind(kernel, launch, buffers.arguments(arguments))

    def _set(self, problem: Problem, name: str) -> tuple[InputSet, ProblemBuffers]:
        key = f"{name}-{problem_digest(problem)}"
        if key not in self._sets:
            self._tell(Working("reference"))
            with self._template_code("reference"):
                made = input_set(self._template, problem, derive_seed(self._seed, name), name, self._scratch)
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
