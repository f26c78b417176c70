"""The loop: ask for a batch, build it, judge it, commit every verdict, until the budget is spent; then confirm.

One unit of the budget is one distinct candidate that passed the static gate and was sent to the compiler. Static
rejections, repeats and cubin twins are free. Every verdict is committed before the next batch is asked for, so that
kill -9 loses at most what was in flight.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing

from evoengine import confirm
from evoengine.archive.records import Record
from evoengine.archive.study import Study
from evoengine.build import Builder, BuildRequest
from evoengine.convergence import Converged, converged, timer_noise
from evoengine.devices import Device, TimingDevice
from evoengine.devices.cuda.results import Finals, Setup
from evoengine.errors import TemplateError
from evoengine.progress import Budget, End, Listener, Outcome
from evoengine.question import Question
from evoengine.sampler import Proposal, Seen
from evoengine.sampler.proposer import Proposer
from evoengine.screening import Screening, annotated
from evoengine.space import Point
from evoengine.verdict import Artifact, Candidate, Estimate, Evidence, Measurement, Rejection, Verdict, is_paid

FINALISTS = 8
"""Configs that meet in the final run: as many as Helion re-times (autotuner/base_search.py)."""
FINAL_SEED = 1_000_003
"""Added to the run's seed for the final run, so that it judges on inputs that no search has seen."""


class Interrupted(Exception):
    """The user asked to stop; what is in flight goes back to the queue."""


class Search:
    """One run over one study."""

    def __init__(
        self,
        question: Question,
        study: Study,
        *,
        proposer: Proposer,
        builder: Builder,
        device: Device,
        timing: TimingDevice | None,
        budget: Budget,
        batch: int,
        listener: Listener,
        screening: Screening | None = None,
    ) -> None:
        self._question = question
        self._study = study
        self._proposer = proposer
        self._builder = builder
        self._device = device
        self._timing = timing
        self._budget = budget
        self._batch = batch
        self._listener = listener
        self._screening = screening
        self._seen: dict[int, Seen] = {}
        self._twins: dict[str, tuple[int, Verdict]] = {}
        self._proof: tuple[str, Verdict] | None = None
        self._paid: set[int] = set()
        self._converged: Converged | None = None
        self._stop = False

    def request_stop(self) -> None:
        """Finish the verdict in flight, then stop. Safe to call from a signal handler."""
        self._stop = True

    def run(self) -> Outcome:
        """Search until the budget is spent, nothing is left to try or to gain, or it is stopped; then confirm the best.

        Raises:
            TemplateError: the default config or the reference fails, so the template is broken.
            UserError: the database is gone or somebody else took the study over.
        """
        started = time.monotonic()
        self._study.recover()
        self._remember(self._study.records())
        setup: Setup | None = None
        finals: Finals | None = None
        stopped, interrupted = End.SPENT_BEFORE, False
        try:
            setup = self._prove_default()
            while batch := self._next_batch():
                self._evaluate(batch)
                stopped = End.SPENT
                if self._budget.seconds is not None and time.monotonic() - started >= self._budget.seconds:
                    stopped = self._budget.time_is_over
                    break
            else:
                if self._converged is not None:
                    stopped = f"{End.CONVERGED} after {len(self._paid)} of {self._budget.candidates}: {self._converged}"
                    self._listener.note(stopped)
                elif self._left > 0:
                    stopped = End.ALL_TRIED
            finals = self._confirm()
        except Interrupted:
            stopped, interrupted = End.STOPPED, True
        except TemplateError as error:
            self._study.set_status(str(error))
            raise
        self._study.set_status(stopped)
        return Outcome(stopped, len(self._paid), interrupted, setup, finals)

    @property
    def _left(self) -> int:
        return self._budget.candidates - len(self._paid)

    def _next_batch(self) -> list[Candidate]:
        """What waits to be measured, then what was in flight when a run ended, then what the sampler proposes.

        The first kind has been paid for; the others may not overdraw the budget.
        """
        self._check_stop()
        self._study.renew()
        batch: list[Candidate] = []
        if self._timing is not None:
            batch = self._study.claim_waiting(self._batch, estimated=True)
        affordable = min(self._batch, self._left)
        if not batch and affordable > 0:
            batch = self._study.claim_waiting(affordable, estimated=False)
            if not batch and not self._nothing_to_gain():
                batch = self._claim(affordable)
        return batch

    def _nothing_to_gain(self) -> bool:
        if self._budget.until_converged:
            noise = timer_noise(verdict for _, verdict in self._twins.values())
            self._converged = converged(self._seen.values(), noise)
        return self._converged is not None

    def _remember(self, records: Iterable[Record]) -> None:
        """Counts, twins and the sampler's view, rebuilt from what the database holds."""
        for record in records:
            self._seen[record.number] = record.seen(measures=self._timing is not None)
            if record.verdict is None:
                continue
            self._count(record.number, record.verdict, record.twin_of)
            # An estimate decides nothing where there is a GPU.
            provisional = isinstance(record.verdict, Estimate) and self._timing is not None
            if record.build is not None and record.twin_of is None and not provisional:
                identity = self._question.identity(record.config.values, record.build.cubin_sha256)
                self._twins[identity] = (record.number, record.verdict)
        self._proposer.observe(self._seen.values())

    def _count(self, number: int, verdict: Verdict, twin_of: int | None) -> None:
        """A trial is paid for once: measured after its estimate, it costs nothing more."""
        if is_paid(verdict, twin_of):
            self._paid.add(number)

    def _prove_default(self) -> Setup | None:
        """The default config must build, fit and be right, or nothing this template yields can be trusted."""
        default = self._question.default
        self._listener.phase("proving the default config")
        candidate = Candidate(-1, default, "default")
        (built,) = self._builder.build([self._request(candidate)])
        if isinstance(built, Rejection):
            raise TemplateError(f"the default config {default.label} does not build: {built.reason}")
        if self._timing is not None:
            setup = self._timing.start(default.values, built)
            self._listener.set_up(setup)
            self._study.set_environment(setup.environment)
            for baseline in confirm.baselines_at_start(setup):
                self._study.add_baseline(baseline)
            return setup
        identity = self._question.identity(default.values, built.cubin_sha256)
        if identity in self._twins and not isinstance(self._twins[identity][1], Rejection):
            return None  # proven by an earlier run of this study
        for _, verdict in self._device.judge([(candidate, built)]):
            if isinstance(verdict, Rejection):
                raise TemplateError(f"the default config {default.label} is rejected: {verdict.reason}")
            self._proof = (identity, verdict)
        return None

    def _claim(self, n: int) -> list[Candidate]:
        claimed: list[Candidate] = []
        proposals: dict[Point, Proposal] = {}
        # Other processes on the study may have claimed all of them: what they left out is proposed next.
        while not claimed:
            before = self._proposer.free.copy()
            proposals = {proposal.point: proposal for proposal in self._proposer.propose(n)}
            if not proposals:
                break
            claimed = self._study.claim(proposals.values(), self._proposer.free - before)
        for candidate in claimed:
            point = self._question.space.point(candidate.config.values)
            self._seen[candidate.number] = Seen(
                candidate.number,
                point,
                None,
                "running",
                candidate.operator,
                candidate.generation,
                candidate.parents,
                proposals[point].system_attrs,
                proposals[point].expected_gain,
            )
        self._proposer.observe(self._seen[candidate.number] for candidate in claimed)
        return claimed

    def _request(self, candidate: Candidate) -> BuildRequest:
        return self._question.build_request(candidate.config.values)

    def _built(self, batch: Sequence[Candidate]) -> Generator[tuple[Candidate, Artifact | Rejection], None, None]:
        """Every candidate of the batch as soon as it is built; the others go on being built meanwhile."""
        with closing(self._builder.stream([self._request(candidate) for candidate in batch])) as stream:
            for done, (index, result) in enumerate(stream, start=1):
                self._listener.building(done, len(batch))
                self._check_stop()
                yield batch[index], result

    def _check_stop(self) -> None:
        if self._stop:
            raise Interrupted

    def _evaluate(self, batch: Sequence[Candidate]) -> None:
        """Every candidate of the batch gets exactly one verdict, gate by gate, cheap before dear.

        A device that judges one at a time draws the next candidate when it is ready for it, so that the rest of the
        batch is built while the card is busy.
        """
        fits = []
        for candidate in batch:
            refusal = self._question.static_gate(candidate.config.values)
            if refusal is None:
                fits.append(candidate)
            else:
                self._commit(candidate, refusal, None)
        self._listener.phase(f"judging on {self._device.name}")
        artifacts: dict[int, Artifact] = {}
        followers: dict[str, list[tuple[Candidate, Artifact]]] = {}
        with closing(self._built(fits)) as built:
            for candidate, verdict in self._device.judge(self._passed(built, artifacts, followers)):
                identity = self._settle(candidate, verdict, artifacts[candidate.number])
                for follower, copy in followers.pop(identity):
                    self._commit(follower, verdict, copy, twin_of=candidate.number)
                self._check_stop()

    def _passed(
        self,
        built: Iterable[tuple[Candidate, Artifact | Rejection]],
        artifacts: dict[int, Artifact],
        followers: dict[str, list[tuple[Candidate, Artifact]]],
    ) -> Iterator[tuple[Candidate, Artifact]]:
        """What the device must judge: kept in `artifacts`, its twins that wait for the same verdict in `followers`."""
        for candidate, result in built:
            if isinstance(result, Rejection):
                self._commit(candidate, result, None)
                continue
            refusal = self._question.resource_gate(candidate.config.values, result)
            identity = self._question.identity(candidate.config.values, result.cubin_sha256)
            twin = self._twins.get(identity)
            if refusal is not None:
                self._commit(candidate, refusal, result)
            elif twin is not None:
                self._commit(candidate, twin[1], result, twin_of=twin[0])
            elif self._proof is not None and identity == self._proof[0]:
                self._settle(candidate, self._proof[1], result)
            elif identity in followers:
                followers[identity].append((candidate, result))
            else:
                artifacts[candidate.number], followers[identity] = result, []
                yield candidate, result

    def _settle(self, candidate: Candidate, verdict: Verdict, artifact: Artifact) -> str:
        """Commit what was judged, for the twins still to come too. Returns the identity they share."""
        self._commit(candidate, verdict, artifact)
        identity = self._question.identity(candidate.config.values, artifact.cubin_sha256)
        self._twins[identity] = (candidate.number, verdict)
        return identity

    def _commit(
        self, candidate: Candidate, verdict: Verdict, artifact: Artifact | None, twin_of: int | None = None
    ) -> None:
        self._study.commit(candidate, verdict, artifact, twin_of=twin_of)
        self._count(candidate.number, verdict, twin_of)
        value = None
        if isinstance(verdict, Measurement):
            value = verdict.median_us
        elif isinstance(verdict, Estimate):
            value = verdict.estimated_us
        seen = dataclasses.replace(self._seen[candidate.number], value=value, state="done")
        self._seen[candidate.number] = seen
        self._proposer.observe([seen])
        self._listener.judged(candidate, verdict, artifact, len(self._paid))

    def _confirm(self) -> Finals | None:
        """Time the best against default and baselines, together, in a fresh process; keep what is confirmed."""
        best = self._study.best(FINALISTS)
        if self._timing is None or not best:
            return None
        self._listener.phase(f"confirming {len(best)} finalists")
        candidates = [Candidate(one.number, one.config, one.operator, one.generation, one.parents) for one in best]
        work = [
            (candidate, built)
            for candidate, built in zip(candidates, self._builder.build([*map(self._request, candidates)]), strict=True)
            if isinstance(built, Artifact)
        ]
        notes: dict[int, Evidence] = {}
        if self._screening is not None:
            work, notes = self._screening(work, self._study, self._listener, self._check_stop)
        finals = self._timing.finals(work, self._study.spec.seed + FINAL_SEED)
        artifacts = {candidate.number: artifact for candidate, artifact in work}
        confirmed = confirm.elites(finals, artifacts, self._question.template.digest)
        self._study.replace_elites(annotated(confirmed, notes))
        known = {baseline.name: baseline for baseline in self._study.baselines()}
        for baseline in confirm.baselines_at_end(finals, known):
            self._study.add_baseline(baseline)
        return finals
