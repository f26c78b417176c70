"""One candidate's PTX on every small problem, in every mode, judged by the oracle."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from evoengine import oracle
from evoengine.declared import check_count, guarded, template_code
from evoengine.devices.combine import Judged, estimated, refused
from evoengine.devices.estimate import candidate_us
from evoengine.devices.interpreter.faults import Fault, Hang, Unsupported
from evoengine.devices.interpreter.layout import Array
from evoengine.devices.interpreter.machine import execute
from evoengine.devices.interpreter.modes import MODES
from evoengine.devices.interpreter.program import Program
from evoengine.dtypes import BITS, Arrays, to_bits
from evoengine.errors import TemplateError
from evoengine.hardware import DeviceLimits
from evoengine.problem import Member, Problem
from evoengine.space import Values
from evoengine.template import InputKind, Template, Tensor, full_checks
from evoengine.verdict import Artifact, Check, Estimate, Gate, Rejection, ResourceUsage

SEED = 20_250_101
"""Of every input set; a candidate cannot be tuned to it, because nothing is timed here."""


def poison(tensor: Tensor) -> Array:
    """The initial words of an output or of scratch: `oracle.POISON` in turn, as words of the tensor's own width."""
    count = int(np.prod(tensor.shape))
    halves = np.resize(np.array(oracle.POISON, np.uint16), count * BITS[tensor.dtype].itemsize // 2)
    return halves.view(BITS[tensor.dtype])


def initial_words(tensor: Tensor, inputs: Arrays) -> Array:
    """What a buffer holds before the first launch: its input, zero counters, or poison."""
    if tensor.role == "input":
        return to_bits(inputs[tensor.name], tensor.dtype)
    if tensor.role == "scratch" and tensor.dtype == "int32":
        return np.zeros(tensor.shape, BITS["int32"])
    return poison(tensor)


@dataclass(frozen=True, slots=True)
class Proof:
    """What a candidate has passed, and how many instructions that took."""

    checks: tuple[Check, ...]
    instructions: int


@dataclass(slots=True)
class Prover:
    """Runs candidates of one template, tuned for one problem, on its small problems; keeps the input sets it made.

    With `full`, on every kind of input that the template's full checks know, each on the small problems.
    """

    template: Template
    problem: Problem
    full: bool = False
    _input_sets: dict[tuple[str, Problem], oracle.InputSet] = field(default_factory=dict)
    guarded: Template = field(init=False)
    """The template as it is called here: what it does wrong is a TemplateError."""

    def __post_init__(self) -> None:
        self.guarded = guarded(self.template)

    def prove(self, values: Values, ptx: str, proven: set[tuple[str, Problem]] | None = None) -> Rejection | Proof:
        """Of one candidate. What of its PTX is `proven` already is left out, and what is proven now added.

        A fault is a RUNTIME rejection, a deadlock or a launch without end TIMEOUT (what a GPU's deadline would make of
        it), wrong or mode-dependent numbers CORRECTNESS.

        Raises:
            Unsupported: the PTX holds something the interpreter does not model.
            TemplateError, UserError: template.py fails, or gives what cannot be used.
        """
        module = self.guarded.module
        program = Program(ptx, module.ENTRY)
        checks: list[Check] = []
        proven = set() if proven is None else proven
        executed = 0
        small = module.small_problems(values, self.problem)
        if not small:
            raise TemplateError(
                f"{self.template.name}/template.py: small_problems gives none for this config: without a GPU nothing "
                "would be proven"
            )
        for kind, problem in itertools.product(self._kinds(values), small):
            what = (kind.name if kind else "", problem)
            if what in proven:
                continue
            try:
                check, differing, count = self._check(program, values, problem, kind)
            except Unsupported:
                raise
            except Fault as fault:
                gate = Gate.TIMEOUT if isinstance(fault, Hang) else Gate.RUNTIME
                evidence = {"shape": problem.label, "interpreted": True, **fault.evidence}
                return Rejection(gate, str(fault), evidence, tuple(checks))
            checks.append(check)
            executed += count
            if check.reason:
                evidence = {"shape": problem.label, "interpreted": True, "differing_modes": differing}
                reason = f"{check.reason} ({f'{kind.name} inputs, ' if kind else ''}{problem.label})"
                return Rejection(Gate.CORRECTNESS, reason, evidence, tuple(checks))
            proven.add(what)
        return Proof(tuple(checks), executed)

    def _kinds(self, values: Values) -> list[InputKind | None]:
        """None is the template's own `inputs`."""
        module = self.template.module
        wanted = full_checks(self.guarded.module, values, self.problem) if self.full else ()
        return [None, *{one.kind.name: one.kind for one in wanted if one.kind.draw is not module.inputs}.values()]

    def _check(
        self, program: Program, values: Values, problem: Problem, kind: InputKind | None
    ) -> tuple[Check, list[str], int]:
        """One launch in all modes: the oracle's check, the modes whose output differs, instructions interpreted.

        A kernel with counters is launched once more in the last mode, on the counters that it left there.
        """
        start = time.perf_counter()
        name = f"interpreted {kind.name}" if kind else "interpreted"
        if (name, problem) not in self._input_sets:
            with template_code(self.template, f"{kind.name} of full_checks" if kind else "reference"):
                made = oracle.make_input_set(self.guarded, problem, SEED, name, kind)
            self._input_sets[name, problem] = made
        input_set = self._input_sets[name, problem]
        module = self.guarded.module
        launch, declared = module.launch(values, problem), module.arguments(values, problem)
        check_count(self.template, declared, len(program.entry.parameters))
        arguments = [argument.value for argument in declared]
        # scratch that this config has no use for stays away, and with it the second launch
        tensors = [t for t in module.tensors(problem) if t.role != "scratch" or t.name in arguments]
        initial = {tensor.name: initial_words(tensor, input_set.inputs) for tensor in tensors}
        execution = execute(program, launch, arguments, initial)
        runs = list(zip(map(str, MODES), execution.buffers, strict=True))
        instructions = execution.instructions
        counters = {t.name for t in tensors if t.role == "scratch" and t.dtype == "int32"}
        if counters:
            again = initial | {name: execution.buffers[-1][name] for name in counters}
            second = execute(program, launch, arguments, again, modes=MODES[-1:])
            runs.append(("second launch", second.buffers[0]))
            instructions += second.instructions
        outputs = [tensor for tensor in tensors if tensor.role == "output"]
        seen = [{t.name: left[t.name].view(BITS[t.dtype]) for t in outputs} for _, left in runs]
        unwritten = [sum(int((words == initial[name]).sum()) for name, words in output.items()) for output in seen]
        differing = [
            name
            for (name, _), output in zip(runs, seen, strict=True)
            if any((output[tensor] != seen[0][tensor]).any() for tensor in output)
        ]
        observed = oracle.Observed(
            outputs=seen[0],
            poison_left=max(unwritten),
            inputs_changed=any(
                left[tensor.name].tobytes() != initial[tensor.name].tobytes()
                for _, left in runs
                for tensor in tensors
                if tensor.role == "input"
            ),
            repeats=len(runs),
            repeat_mismatches=len(differing),
            seconds=time.perf_counter() - start,
        )
        return oracle.check(self.template, input_set, observed), differing, instructions


class Trial:
    """Judges candidates of one template on one problem: a proof, and the estimate for a card with these limits."""

    def __init__(self, template: Template, problem: Problem, limits: DeviceLimits, full: bool = False) -> None:
        self._prover = Prover(template, problem, full)
        self._limits = limits

    def judge(
        self, values: Values, ptx: str, resources: ResourceUsage, proven: set[tuple[str, Problem]] | None = None
    ) -> Rejection | Estimate:
        """The verdict on one candidate; `proven` and errors are those of `Prover.prove`."""
        start = time.perf_counter()
        proof = self._prover.prove(values, ptx, proven)
        if isinstance(proof, Rejection):
            return proof
        latency_us = candidate_us(self._prover.guarded.module, values, self._prover.problem, self._limits, resources)
        evidence = {
            "limits": self._limits.name,
            "modes": [str(mode) for mode in MODES],
            "instructions": proof.instructions,
            "interpreter_seconds": time.perf_counter() - start,
        }
        return Estimate(latency_us, evidence, proof.checks)


class SetTrial:
    """Judges candidates on every problem of a set; what their small problems share is proven once a cubin."""

    def __init__(self, template: Template, members: Sequence[Member], limits: DeviceLimits, full: bool) -> None:
        self._trials = [(member, Trial(template, member.problem, limits, full)) for member in members]

    def judge(self, values: Values, artifact: Artifact) -> Rejection | Estimate:
        """The only member's verdict; of several the first rejection, or the mean of the estimates.

        Raises:
            Unsupported: the PTX holds something the interpreter does not model.
        """
        proven: dict[str, set[tuple[str, Problem]]] = {}
        judged: list[Judged[Estimate]] = []
        for (member, trial), part in zip(self._trials, artifact.parts, strict=True):
            known = proven.setdefault(part.cubin_sha256, set())
            verdict = trial.judge(values, part.ptx.read_text(), part.resources, known)
            if len(self._trials) == 1:
                return verdict
            if isinstance(verdict, Rejection):
                return refused(member, verdict)
            judged.append(Judged(member, part, verdict))
        return estimated(judged)
