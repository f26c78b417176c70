"""The loop: ask for a batch, build it, judge it, commit every verdict, until the budget is spent; then confirm.

One unit of the budget is one distinct candidate that passed the static gate and was sent to the compiler. Static
rejections, repeats and cubin twins are free. Every verdict is committed before the next batch is asked for, so that
kill -9 loses at most what was in flight.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from evoengine.archive import Record, Study
from evoengine.build import Builder, BuildRequest
from evoengine.devices import Device, TimingDevice
from evoengine.devices.cuda.results import Final, Finals, Setup
from evoengine.errors import TemplateError
from evoengine.gates import Ceilings, hardware_rules, resource_gate, static_gate
from evoengine.hardware import DeviceLimits
from evoengine.problem import Problem
from evoengine.sampler import Seen
from evoengine.sampler.proposer import Proposer
from evoengine.space import FeasibleSet, SearchSpace
from evoengine.template import Template
from evoengine.verdict import Artifact, Candidate, Estimate, Gate, Measurement, Rejection, Verdict

FINALISTS = 8
"""Configs that meet in the final run: as many as Helion re-times (autotuner/base_search.py)."""


@dataclass(frozen=True, slots=True)
class Budget:
    """When to stop: candidates sent to the compiler over the life of the study, and seconds of this run."""

    candidates: int
    seconds: float | None = None


class Listener(Protocol):
    """Whoever shows progress. Called from the engine's thread, between steps."""

    def phase(self, text: str) -> None: ...
    def set_up(self, setup: Setup) -> None: ...
    def building(self, done: int, of: int) -> None: ...
    def judged(self, candidate: Candidate, verdict: Verdict, artifact: Artifact | None, spent: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Question:
    """What is searched: everything that decides a verdict but the config."""

    template: Template
    space: SearchSpace
    problem: Problem
    limits: DeviceLimits
    ceilings: Ceilings


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. `finals` is None where nothing was confirmed."""

    stopped: str
    spent: int
    interrupted: bool
    setup: Setup | None
    finals: Finals | None


class Interrupted(Exception):
    """The user asked to stop; what is in flight goes back to the queue."""


class Search:
    """One run over one study."""

    def __init__(
        self,
        question: Question,
        study: Study,
        *,
        feasible: FeasibleSet,
        proposer: Proposer,
        builder: Builder,
        device: Device,
        timing: TimingDevice | None,
        budget: Budget,
        batch: int,
        listener: Listener,
    ) -> None:
        self._question = question
        self._study = study
        self._feasible = feasible
        self._proposer = proposer
        self._builder = builder
        self._device = device
        self._timing = timing
        self._budget = budget
        self._batch = batch
        self._listener = listener
        axes = tuple(axis.name for axis in question.space)
        self._hardware = hardware_rules(question.template, axes, question.ceilings)
        self._seen: dict[int, Seen] = {}
        self._twins: dict[str, tuple[int, Verdict]] = {}
        self._spent = 0
        self._stop = False

    def request_stop(self) -> None:
        """Finish the verdict in flight, then stop. Safe to call from a signal handler."""
        self._stop = True

    def run(self) -> Outcome:
        """Search until the budget is spent, the space is exhausted or somebody stops it; then confirm the best.

        Raises:
            TemplateError: the default config or the reference fails, so the template is broken.
        """
        started = time.monotonic()
        self._study.recover()
        self._remember(self._study.records())
        setup = None
        stopped = "budget spent"
        interrupted = False
        finals = None
        try:
            setup = self._prove_default()
            waiting = self._study.claim_waiting() if self._timing is not None or not self._seen else []
            while True:
                if self._budget.seconds is not None and time.monotonic() - started >= self._budget.seconds:
                    stopped = f"{self._budget.seconds:g} s are over"
                    break
                if waiting:
                    batch, waiting = waiting[: self._batch], waiting[self._batch :]
                else:
                    left = self._budget.candidates - self._spent
                    if left <= 0:
                        break
                    batch = self._claim(min(self._batch, left))
                    if not batch:
                        stopped = "every feasible config has been tried"
                        break
                self._evaluate(batch)
            finals = self._confirm()
        except Interrupted:
            stopped, interrupted = "stopped by the user", True
        return Outcome(stopped, self._spent, interrupted, setup, finals)

    def _remember(self, records: Iterable[Record]) -> None:
        """Counts, twins and the sampler's view, rebuilt from what the database holds."""
        for record in records:
            self._note(record.candidate, record.verdict, record.system_attrs)
            if record.verdict is None:
                continue
            self._count(record.verdict, record.twin_of)
            if record.cubin_sha256 and record.twin_of is None:
                self._twins[record.cubin_sha256] = (record.candidate.number, record.verdict)
        self._proposer.observe(self._seen.values())

    def _note(self, candidate: Candidate, verdict: Verdict | None, system_attrs: dict[str, int]) -> None:
        """What the sampler may know: estimates guide where nothing is measured, and nowhere else."""
        value = None
        if isinstance(verdict, Measurement):
            value = verdict.median_us
        elif isinstance(verdict, Estimate) and self._timing is None:
            value = verdict.estimated_us
        pending = verdict is None or (isinstance(verdict, Estimate) and self._timing is not None)
        self._seen[candidate.number] = Seen(
            number=candidate.number,
            point=self._question.space.point(candidate.config.values),
            value=value,
            state="running" if pending else "done",
            operator=candidate.operator,
            generation=candidate.generation,
            parents=candidate.parents,
            system_attrs=system_attrs,
        )

    def _count(self, verdict: Verdict, twin_of: int | None) -> None:
        static = isinstance(verdict, Rejection) and verdict.gate is Gate.STATIC
        self._spent += not static and twin_of is None

    def _prove_default(self) -> Setup | None:
        """The default config must build, fit and be right, or nothing this template yields can be trusted."""
        question = self._question
        default = question.space.nearest(question.space.default, self._feasible)
        self._listener.phase("proving the default config")
        candidate = Candidate(-1, default, "default")
        (built,) = self._build([candidate])
        if isinstance(built, Rejection):
            raise TemplateError(f"the default config {default.label} does not build: {built.reason}")
        if self._timing is not None:
            setup = self._timing.start(default.values, built)
            self._listener.set_up(setup)
            self._study.add_setup(setup.control, setup.baselines, setup.environment)
            return setup
        for _, verdict in self._device.judge([(candidate, built)]):
            if isinstance(verdict, Rejection):
                raise TemplateError(f"the default config {default.label} is rejected: {verdict.reason}")
        return None

    def _claim(self, n: int) -> list[Candidate]:
        before = self._proposer.free.copy()
        proposals = self._proposer.propose(n)
        self._study.add_free(self._proposer.free - before)
        claimed = self._study.claim(proposals)
        for candidate, proposal in claimed:
            self._note(candidate, None, dict(proposal.system_attrs))
        return [candidate for candidate, _ in claimed]

    def _build(self, batch: Sequence[Candidate]) -> list[Artifact | Rejection]:
        question = self._question
        requests = []
        for candidate in batch:
            values = candidate.config.values
            defines = question.template.module.defines(values, question.problem)
            requests.append(BuildRequest(defines, question.template.module.launch(values, question.problem).smem_bytes))
        done = 0

        def on_done(index: int, result: Artifact | Rejection) -> None:
            nonlocal done
            done += 1
            self._listener.building(done, len(requests))
            if self._stop:
                raise Interrupted

        return self._builder.build(requests, on_done)

    def _evaluate(self, batch: Sequence[Candidate]) -> None:
        """Every candidate of the batch gets exactly one verdict, gate by gate, cheap before dear."""
        question = self._question
        fits = []
        for candidate in batch:
            refusal = static_gate(
                question.space, self._hardware, candidate.config.values, question.problem, question.limits
            )
            if refusal is None:
                fits.append(candidate)
            else:
                self._commit(candidate, refusal, None)
        self._listener.phase(f"building {len(fits)} candidates")
        work: list[tuple[Candidate, Artifact]] = []
        followers: dict[str, list[tuple[Candidate, Artifact]]] = {}
        for candidate, built in zip(fits, self._build(fits), strict=True):
            if isinstance(built, Rejection):
                self._commit(candidate, built, None)
                continue
            launch = question.template.module.launch(candidate.config.values, question.problem)
            refusal = resource_gate(built.resources, launch, question.limits, question.ceilings)
            twin = self._twins.get(built.cubin_sha256)
            if refusal is not None:
                self._commit(candidate, refusal, built)
            elif twin is not None and twin[0] != candidate.number and not self._is_estimate(twin[1]):
                self._commit(candidate, twin[1], built, twin_of=twin[0])
            elif built.cubin_sha256 in followers:
                followers[built.cubin_sha256].append((candidate, built))
            else:
                followers[built.cubin_sha256] = []
                work.append((candidate, built))
        if work:
            self._listener.phase("judging on " + self._device.name)
        artifacts = {candidate.number: artifact for candidate, artifact in work}
        for candidate, verdict in self._device.judge(work):
            artifact = artifacts[candidate.number]
            self._commit(candidate, verdict, artifact)
            self._twins[artifact.cubin_sha256] = (candidate.number, verdict)
            for follower, copy in followers[artifact.cubin_sha256]:
                self._commit(follower, verdict, copy, twin_of=candidate.number)
            if self._stop:
                raise Interrupted

    def _is_estimate(self, verdict: Verdict) -> bool:
        """An estimate of an earlier run without a GPU decides nothing where there is one."""
        return isinstance(verdict, Estimate) and self._timing is not None

    def _commit(
        self, candidate: Candidate, verdict: Verdict, artifact: Artifact | None, twin_of: int | None = None
    ) -> None:
        self._study.commit(candidate, verdict, artifact, twin_of=twin_of)
        self._count(verdict, twin_of)
        self._note(candidate, verdict, dict(self._seen[candidate.number].system_attrs))
        self._proposer.observe([self._seen[candidate.number]])
        self._listener.judged(candidate, verdict, artifact, self._spent)

    def _confirm(self) -> Finals | None:
        """Time the best against the default and the baselines, together, in a fresh process; keep what is confirmed."""
        if self._timing is None:
            return None
        best = [record for record in self._study.best(FINALISTS) if record.candidate.number >= 0]
        if not best:
            return None
        self._listener.phase(f"confirming {len(best)} finalists")
        built = self._build([record.candidate for record in best])
        work = [
            (record.candidate, artifact)
            for record, artifact in zip(best, built, strict=True)
            if isinstance(artifact, Artifact)
        ]
        finals = self._timing.finals(work, seed=self._study.spec.seed)
        artifacts = {candidate.number: artifact for candidate, artifact in work}
        self._study.clear_elites()
        for candidate, final in finals.finalists:
            if isinstance(final, Final):
                self._study.add_elite(candidate, final, artifacts[candidate.number], self._question.template.digest)
        self._study.add_finals(finals.control, finals.baselines, finals.environment)
        return finals
