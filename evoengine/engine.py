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

from evoengine.archive.sessions import Turn
from evoengine.archive.study import Study
from evoengine.build import Builder, BuildRequest
from evoengine.company import POLL_SECONDS, Company
from evoengine.confirm import baselines_at_start
from evoengine.convergence import Converged
from evoengine.devices import Device, TimingDevice
from evoengine.devices.cuda.results import Finals, Setup
from evoengine.errors import TemplateError
from evoengine.final_run import confirm_best
from evoengine.knowledge import Knowledge
from evoengine.progress import Budget, End, Listener, Outcome
from evoengine.question import Question
from evoengine.sampler import Proposal
from evoengine.sampler.proposer import Proposer
from evoengine.screening import Screening
from evoengine.space import Point
from evoengine.verdict import Artifact, Candidate, Measurement, Rejection, Verdict


class Interrupted(Exception):
    """The user asked to stop; what is in flight goes back to the queue."""


class Search:
    """One run over one study, which other processes may be at too; `ahead` is `Company`'s."""

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
        ahead: int | None = None,
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
        self._company = Company(study, budget.candidates, ahead)
        self._known = Knowledge(question, measures=timing is not None or self._company.helps)
        self._proof: tuple[str, Verdict] | None = None
        self._reference_us: float | None = None
        self._deadline = float("inf")
        self._time_is_over = False
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
        if self._budget.seconds is not None:
            self._deadline = time.monotonic() + self._budget.seconds
        self._catch_up()
        setup: Setup | None = None
        finals: Finals | None = None
        stopped, interrupted = End.SPENT_BEFORE, False
        turn: Turn = "another's"
        try:
            setup = self._prove_default()
            while batch := self._next_batch():
                self._evaluate(batch)
                stopped = End.SPENT
                self._time_is_over = time.monotonic() >= self._deadline
                if self._time_is_over:
                    break
            if self._time_is_over:
                stopped = self._budget.time_is_over
            elif self._converged is not None:
                stopped = f"{End.CONVERGED} after {self._known.paid} of {self._budget.candidates}: {self._converged}"
                self._listener.note(stopped)
            elif self._left > 0:
                stopped = End.AHEAD if self._company.helps else End.ALL_TRIED
            idle = stopped == End.SPENT_BEFORE
            turn = self._company.turn(self._wait, early=self._time_is_over, idle=idle)
            if turn == "mine" and self._timing is not None:
                finals = self._confirm(self._timing)
        except Interrupted:
            stopped, interrupted = End.STOPPED, True
        except TemplateError as error:
            if not self._company.helps:
                self._study.set_status(str(error))
            raise
        self._company.end(turn, stopped, confirmed=self._timing is not None and not interrupted)
        return Outcome(stopped, self._known.paid, interrupted, setup, finals)

    @property
    def _left(self) -> int:
        return self._budget.candidates - self._known.paid

    def _catch_up(self) -> None:
        """What is in the database is known, and what dead processes had in flight waits again."""
        self._study.recover()
        self._known.remember(self._study.records())
        self._proposer.observe(self._known.seen)

    def _wait(self) -> None:
        self._listener.phase("waiting for the other processes on the study")
        time.sleep(POLL_SECONDS)
        self._check_stop()

    def _next_batch(self) -> list[Candidate]:
        """What is to be judged next; nothing once no other process has anything in flight, either."""
        self._check_stop()
        self._study.renew()
        while not (batch := self._to_do()) and not self._time_is_over and self._company.may_leave_work():
            self._wait()
            self._time_is_over = time.monotonic() >= self._deadline
        return batch

    def _to_do(self) -> list[Candidate]:
        """What waits to be measured, then what was in flight when a run ended, then what the sampler proposes.

        The first kind has been paid for; the others may not overdraw the budget.
        """
        if self._study.fellows.shared:
            self._catch_up()
        batch: list[Candidate] = []
        if self._timing is not None:
            batch = self._study.claim_waiting(self._batch, estimated=True)
        affordable = min(self._batch, self._left)
        if self._company.helps:
            affordable = self._company.room(affordable)
        if not batch and affordable > 0:
            batch = self._study.claim_waiting(affordable, estimated=False)
            if not batch and not self._nothing_to_gain():
                batch = self._claim(affordable)
        return batch

    def _nothing_to_gain(self) -> bool:
        if self._budget.until_converged:
            self._converged = self._known.converged()
        return self._converged is not None

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
            self._reference_us = self._study.fellows.agree_on_reference(setup.control_us)
            for baseline in baselines_at_start(setup):
                self._study.add_baseline(baseline)
            return setup
        identity = self._question.identity(default.values, built.cubin_sha256)
        twin = self._known.twin(identity)
        if twin is not None and not isinstance(twin[1], Rejection):
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
            room = self._company.room(n)
            proposals = {proposal.point: proposal for proposal in self._proposer.propose(room)}
            if not proposals:
                break
            claimed = self._study.claim(proposals.values(), self._proposer.free - before, self._company.bounds)
        self._known.claimed(claimed, proposals)
        self._proposer.observe(self._known.seen)
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
        """Between any two steps: heed a stop, and say in time that this process is alive."""
        if self._stop:
            raise Interrupted
        self._study.keep()

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
            twin = self._known.twin(identity)
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
        self._known.settled(identity, candidate.number, verdict)
        return identity

    def _commit(
        self, candidate: Candidate, verdict: Verdict, artifact: Artifact | None, twin_of: int | None = None
    ) -> None:
        if isinstance(verdict, Measurement) and self._reference_us is not None:
            # Ratios are this card's, the scale is the first one's: times of all that share the study can be compared.
            verdict = dataclasses.replace(verdict, control_reference_us=self._reference_us)
        self._study.commit(candidate, verdict, artifact, twin_of=twin_of)
        self._proposer.observe([self._known.judged(candidate, verdict, twin_of)])
        self._listener.judged(candidate, verdict, artifact, self._known.paid)

    def _confirm(self, timing: TimingDevice) -> Finals | None:
        return confirm_best(
            self._question,
            self._study,
            self._builder,
            timing,
            self._listener,
            screening=self._screening,
            check_stop=self._check_stop,
        )
