"""The loop: propose a few candidates, build them while those before them are judged, commit every verdict, until the
budget is spent; then confirm.

One unit of the budget is a distinct candidate that was sent to the compiler: static rejections, repeats and cubin twins
are free. A verdict is committed before a proposal may know it (`pace`): kill -9 loses at most what was in flight.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

from evoengine.archive.heartbeat import kept
from evoengine.archive.sessions import Turn
from evoengine.archive.study import Study
from evoengine.aside import Aside
from evoengine.build import Builder
from evoengine.build.builder import Building
from evoengine.confirm import baselines_at_start
from evoengine.devices import Device, TimingDevice
from evoengine.devices.cuda.results import Finals, Setup
from evoengine.errors import TemplateError
from evoengine.final_run import confirm_best, confirmed
from evoengine.observations import Observations
from evoengine.pace import Pace
from evoengine.peers import POLL_SECONDS, Peers
from evoengine.progress import Budget, End, Listener, Outcome
from evoengine.question import Question
from evoengine.sampler import Proposing
from evoengine.scheduler import Scheduler
from evoengine.screening import Screening
from evoengine.stopwatch import Stopwatch
from evoengine.verdict import Artifact, Candidate, Measurement, Rejection, Verdict


class Interrupted(Exception):
    """The user asked to stop; what is in flight goes back to the queue."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Claimed candidates that passed the static gate, and their builds, which have begun."""

    candidates: Sequence[Candidate]
    building: Building


class Search:
    """One run over one study, at a `pace`; other processes may be at it too. `ahead` is `Peers`'s; `meanwhile` is
    called while a final run goes on, which takes a card seconds and this process none.
    """

    def __init__(
        self,
        question: Question,
        study: Study,
        *,
        proposer: Proposing,
        builder: Builder,
        device: Device,
        timing: TimingDevice | None,
        budget: Budget,
        pace: Pace,
        listener: Listener,
        screening: Screening | None = None,
        stopwatch: Stopwatch | None = None,
        ahead: int | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        self._question = question
        self._study = study
        self._builder = builder
        self._device = device
        self._timing = timing
        self._budget = budget
        self._listener = listener
        self._screening = screening
        self._meanwhile = meanwhile
        self._watch = stopwatch or Stopwatch()
        self._peers = Peers(study, budget.candidates, ahead)
        self._known = Observations(question, measures=timing is not None or self._peers.helps)
        self._scheduler = Scheduler(
            study, self._peers, proposer, self._known, budget, pace, self._watch, measures=timing is not None
        )
        self._pace = pace
        self._begun: deque[_Group] = deque()
        self._flying: set[int] = set()
        self._proof: tuple[str, Verdict] | None = None
        self._reference_us: float | None = None
        self._deadline = float("inf")
        self._time_is_over = False
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
        self._scheduler.catch_up()
        setup: Setup | None = None
        finals: Finals | None = None
        stopped, interrupted = End.SPENT_BEFORE, False
        turn: Turn = "another's"
        try:
            with ExitStack() as builds:
                builds.callback(self._abandon)
                setup = self._set_off()
                while self._more():
                    self._judge()
                    stopped = End.SPENT
            if self._time_is_over:
                stopped = self._budget.time_is_over
            elif (converged := self._scheduler.converged) is not None:
                stopped = f"{End.CONVERGED} after {self._known.paid} of {self._budget.candidates}: {converged}"
                self._listener.note(stopped)
            elif self._peers.helps:
                stopped = End.AHEAD if self._scheduler.left > 0 else stopped
            elif self._scheduler.exhausted:
                stopped = End.ALL_TRIED
            turn = self._peers.turn(self._wait, early=self._time_is_over)
            raced = stopped == End.SPENT_BEFORE and self._screening is None and confirmed(self._study)
            if turn == "mine" and self._timing is not None and not raced:
                finals = self._confirm(self._timing)
        except Interrupted:
            stopped, interrupted = End.STOPPED, True
        except TemplateError as error:
            if not self._peers.helps:
                self._study.set_status(str(error))
            raise
        self._peers.end(turn, stopped, confirmed=self._timing is not None and not interrupted)
        return Outcome(stopped, self._known.paid, interrupted, setup, finals)

    def _confirm(self, timing: TimingDevice) -> Finals | None:
        with self._watch("final run"), kept(self._study):
            parts = self._question, self._study, self._builder, timing, self._listener
            return confirm_best(
                *parts, screening=self._screening, check_stop=self._check_stop, meanwhile=self._meanwhile
            )

    def _set_off(self) -> Setup | None:
        """Begin the first builds, and prove the default config while they go on. Nothing is judged before that."""
        self._listener.phase("proving the default config")
        default = self._question.default
        with closing(self._builder.stream([self._question.build_request(default.values)])) as building:
            self._fill(self._pace.batch, wait=True)
            with self._watch("waiting for builds"):
                [(_, built)] = building
        return self._prove(Candidate(-1, default, "default"), built)

    def _fill(self, most: float = float("inf"), *, wait: bool = False) -> None:
        """Have as many candidates in flight as may be, and no step that begins beyond `most`; `wait` for proposals."""
        self._check_stop()
        flying = self._flying
        while not self._time_is_over and len(flying) < most and (group := self._scheduler.next(flying, wait=wait)):
            flying |= {candidate.number for candidate in group}
            self._begun.append(self._begin(group))
            self._check_stop()

    def _more(self) -> bool:
        """Whether anything is in flight, be it what another process fails to finish."""
        while True:
            # Asked before the look at the database, which then shows all that they have done; and after it, since they
            # may have taken what was left.
            others = self._peers.may_leave_work()
            self._go_on()
            if self._begun or self._time_is_over or not (others or self._peers.may_leave_work()):
                return bool(self._begun)
            self._wait()

    def _wait(self) -> None:
        self._listener.phase("waiting for the other processes on the study")
        with self._watch("waiting for others"):
            time.sleep(POLL_SECONDS)
        self._check_stop()

    def _go_on(self, *, wait: bool = False) -> None:
        """The same, within the budget's time."""
        self._time_is_over = self._time_is_over or time.monotonic() >= self._deadline
        self._fill(wait=wait)

    def _begin(self, batch: Sequence[Candidate]) -> _Group:
        """Refuse what the static gate refuses, and begin to build the rest."""
        fits = []
        for candidate in batch:
            refusal = self._question.static_gate(candidate.config.values)
            if refusal is None:
                fits.append(candidate)
            else:
                self._commit(candidate, refusal, None)
        requests = [self._question.build_request(candidate.config.values) for candidate in fits]
        return _Group(fits, self._builder.stream(requests))

    def _abandon(self) -> None:
        """Stop all builds; what is left of their candidates goes back to the queue with the study."""
        for group in self._begun:
            group.building.close()

    def _prove(self, default: Candidate, built: Artifact | Rejection) -> Setup | None:
        """The default config must build, fit and be right, or nothing this template yields can be trusted."""
        label, values = default.config.label, default.config.values
        if isinstance(built, Rejection):
            raise TemplateError(f"the default config {label} does not build: {built.reason}")
        if (timing := self._timing) is not None:
            # Most of that is waiting for the card's worker: meanwhile this thread gets its head start.
            with Aside(lambda: timing.start(values, built), timing.close) as proof:
                self._fill(wait=True)
                self._scheduler.prepare()
                with self._watch("proving the default"), kept(self._study):
                    setup = proof.result()
            self._listener.set_up(setup)
            self._study.set_environment(setup.environment)
            self._reference_us = self._study.peers.agree_on_reference(setup.control_us)
            if not self._study.elites():  # else the last final run's stand: they were timed beside these
                for baseline in baselines_at_start(setup):
                    self._study.add_baseline(baseline)
            return setup
        identity = self._question.identity(values, built.cubin_sha256)
        twin = self._known.twin(identity)
        if twin is not None and not isinstance(twin[1], Rejection):
            return None  # proven by an earlier run of this study
        with self._watch("proving the default"), kept(self._study):
            for _, verdict in self._device.judge([(default, built)]):
                if isinstance(verdict, Rejection):
                    raise TemplateError(f"the default config {label} is rejected: {verdict.reason}")
                self._proof = (identity, verdict)
        return None

    def _check_stop(self) -> None:
        """Between any two steps: heed a stop, and say in time that this process is alive."""
        if self._stop:
            raise Interrupted
        self._study.keep()

    def _judge(self) -> None:
        """Every candidate gets exactly one verdict, gate by gate, cheap before dear.

        A device draws a candidate when it has use for it; by then more may have been begun. A card goes on in its own
        thread while all this runs in ours. What a device leaves without a verdict waits for the next run.
        """
        self._listener.phase(f"judging on {self._device.name}")
        artifacts: dict[int, Artifact] = {}
        followers: dict[str, list[tuple[Candidate, Artifact]]] = {}
        judged = self._device.judge(self._passed(self._built(), artifacts, followers))
        for candidate, verdict in self._watch.each("judging", judged):
            identity = self._settle(candidate, verdict, artifacts[candidate.number])
            for follower, copy in followers.pop(identity):
                self._commit(follower, verdict, copy, twin_of=candidate.number)
            self._check_stop()
            self._go_on()
        self._flying = {candidate.number for group in self._begun for candidate in group.candidates}

    def _built(self) -> Iterator[tuple[Candidate, Artifact | Rejection]]:
        """Every candidate as soon as it is built, in the order of their groups; the others go on being built."""
        while self._begun:
            group = self._begun[0]
            for done, (index, result) in enumerate(self._watch.each("waiting for builds", group.building), start=1):
                self._listener.building(done, len(group.candidates))
                self._check_stop()
                yield group.candidates[index], result
                if self._scheduler.asking:
                    self._go_on()
            self._begun.popleft()
            self._go_on(wait=not self._begun)

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
        with self._watch("database"):
            self._study.commit(candidate, verdict, artifact, twin_of=twin_of)
        self._known.judged(candidate, verdict, twin_of)
        self._flying.discard(candidate.number)
        self._listener.judged(candidate, verdict, artifact, self._known.paid)
