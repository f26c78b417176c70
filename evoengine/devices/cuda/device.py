"""The engine's side of one GPU: verdicts for candidates, whatever they do to the worker that tries them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from evoengine.devices.cuda.doubt import check_fit, doubt, with_both
from evoengine.devices.cuda.finals import Finalist, race
from evoengine.devices.cuda.lock import SharedLock
from evoengine.devices.cuda.memcheck import Memcheck
from evoengine.devices.cuda.messages import (
    COMPETITORS,
    SDPA,
    Judge,
    Judged,
    Ready,
    SetUp,
    Subject,
)
from evoengine.devices.cuda.results import Finals, Setup
from evoengine.devices.cuda.session import START_SECONDS, START_TRIES, JobFailed, Session
from evoengine.devices.cuda.spares import Spares
from evoengine.errors import EvoengineError, TemplateError
from evoengine.hardware import DeviceLimits
from evoengine.problem import Problem
from evoengine.space import Values
from evoengine.template import Template
from evoengine.verdict import Artifact, Candidate, Gate, Measurement, Rejection

MIN_JOB_SECONDS, JOB_FACTOR = 10.0, 50.0
"""A phase of a candidate's job may take 10 s, or 50 times what the default's whole job took."""
WORKER = (sys.executable, "-m", "evoengine.devices.cuda.worker")


@dataclass(frozen=True, slots=True)
class _Doubted:
    """A time that is too good to be believed, and `why`."""

    candidate: Candidate
    subject: Subject
    measured: Measurement
    why: str


class CudaDevice:
    """One GPU that proves and times candidates of one template on one problem.

    `limits` are the card's own (`find_gpu`), not a named target's. `seed` is the run's: inputs derive from it. `uuid`
    names the card where several are used, else `ordinal` does; `scratch` is then where all of them keep references.
    `worker` is the command line of the worker process, to which its arguments are appended. With `force` a card that is
    unfit for timing is only warned of. A study that goes on gives the `reference_us` that its values rest on, lest the
    card's drift since (4 % between two days were seen) rank them, and its `best_us`. Devices that take turns on one
    card share its `lock`.

    Workers come from `spares`, where they are given, and then one waits while candidates are judged: a fresh process,
    which the final run needs, and a fault or a doubt, costs a second instead of five.
    """

    measures = True

    def __init__(
        self,
        template: Template,
        problem: Problem,
        limits: DeviceLimits,
        *,
        ordinal: int = 0,
        uuid: str | None = None,
        scratch: Path | None = None,
        seed: int,
        worker: Sequence[str] = WORKER,
        force: bool = False,
        reference_us: float | None = None,
        best_us: float = float("inf"),
        lock: SharedLock | None = None,
        spares: Spares | None = None,
    ) -> None:
        self.name = limits.name
        self._problem = problem
        self._limits = limits
        self._seed = seed
        self._force = force
        self._template = template
        workers = spares or Spares((*worker, uuid or str(ordinal)))
        self._session = Session(workers, template, problem, scratch=scratch, lock=lock)
        self._spares = spares
        self._memcheck = Memcheck(template, problem, ordinal, seed)
        self._control: Subject | None = None
        self._reference_us = reference_us
        self._best_us = best_us
        self._job_seconds = MIN_JOB_SECONDS
        self._suspect = False

    def spawn(self) -> None:
        """Begin to start the worker, for `open`."""
        self._session.workers.begin()

    def open(self) -> Mapping[str, Any]:
        """Bring the worker up: the environment, with the card as it was before.

        Raises:
            UserError: another evoengine uses the card, or the problem does not fit on it.
            EvoengineError: the worker does not come up.
        """
        try:
            return self._session.open(self._seed)
        except JobFailed as failed:
            raise EvoengineError(f"the GPU worker does not start: {failed}") from failed

    def start(self, values: Values, artifact: Artifact, environment: Mapping[str, Any] | None = None) -> Setup:
        """Prove the default config right, time it and the baselines, record the environment.

        After an `open`, `environment` is what the card was found in.

        Raises:
            TemplateError: the default config or the reference fails, so that no candidate could be judged.
            UserError: another evoengine uses the card, the problem does not fit on it, or (without `force`) the card is
                busy or so noisy that no small gap can be measured.
            EvoengineError: the worker does not come up.
        """
        self._control = _subject("default", values, artifact)
        environment = self.open() if environment is None else environment
        self._keep_spare()  # after it: the worker that the search waits for shall import torch alone
        ready = self._set_up(baselines=True)
        warnings = check_fit(environment, ready.noise, force=self._force)
        self._reference_us = ready.reference_us
        self._best_us = min(self._best_us, ready.reference_us)
        # The control as a candidate: an A/A test, and the measure of how long a job takes.
        try:
            judged, busy_seconds = self._session.ask(Judge(self._control, ready.reference_us), START_SECONDS)
        except JobFailed as failed:
            raise TemplateError(f"the default config fails on the card: {failed}") from failed
        assert isinstance(judged, Judged), judged
        if isinstance(judged.verdict, Rejection):
            raise TemplateError(f"the default config is wrong when it runs again: {judged.verdict.reason}")
        self._job_seconds = max(MIN_JOB_SECONDS, JOB_FACTOR * busy_seconds)
        return Setup(judged.verdict, ready.baselines, dict(ready.unavailable), environment, warnings)

    def judge(self, work: Iterable[tuple[Candidate, Artifact]]) -> Iterator[tuple[Candidate, Measurement | Rejection]]:
        """One verdict a candidate, each as soon as it is known.

        Times that are too good to be believed (`doubt`) come once a spare is up or there is no more `work`: proven and
        timed again in a fresh process, one for all of them. What that process says is the verdict.

        Raises:
            EvoengineError: the card does not come back after a candidate's fault.
        """
        doubted: list[_Doubted] = []
        for candidate, artifact in work:
            subject = _subject(str(candidate.number), candidate.config.values, artifact)
            verdict = self._verdict(subject)
            if isinstance(verdict, Measurement) and (why := self._doubt(verdict)):
                doubted.append(_Doubted(candidate, subject, verdict, why))
            else:
                yield candidate, self._learned(verdict)
            # Soon: until then all that is as fast is doubted as well, and no proposal may know of any of it.
            if doubted and self._spares is not None and self._spares.ready:
                yield from self._settled(doubted)
                doubted = []
        yield from self._settled(doubted)

    def _settled(self, doubted: Sequence[_Doubted]) -> Iterator[tuple[Candidate, Measurement | Rejection]]:
        """What a fresh process says of them. It judges what comes after them, too."""
        if doubted:
            self._session.stop()
        for one in doubted:
            verdict = with_both(self._verdict(one.subject), one.measured, one.why, self._problem, self._limits)
            yield one.candidate, self._learned(verdict)

    def _doubt(self, measured: Measurement) -> str:
        return doubt(measured.median_us, self._best_us, self._problem, self._limits)

    def _learned(self, verdict: Measurement | Rejection) -> Measurement | Rejection:
        """The verdict, the best being known afterwards."""
        if isinstance(verdict, Measurement):
            self._best_us = min(self._best_us, verdict.median_us)
        return verdict

    def _keep_spare(self) -> None:
        if self._spares is not None:
            self._spares.keep()

    def finals(self, work: Sequence[tuple[Candidate, Artifact]], seed: int) -> Finals:
        """Time default, finalists and baselines together in a fresh process, on inputs that no search has seen.

        A finalist that fails is rejected and the run repeated without it, so that the numbers come from a run in
        which every subject was right before and after.

        Raises:
            TemplateError: the default config fails.
            EvoengineError: the card fails, and no finalist can be named for it.
        """
        assert self._control is not None, "start comes first"
        return race(self._session, self._control, _finalists(work), seed, SDPA, self._job_seconds)

    def compare(
        self,
        control: tuple[Values, Artifact],
        work: Sequence[tuple[Candidate, Artifact]],
        seed: int,
        competitors: Sequence[str] = COMPETITORS,
        step_seconds: float = START_SECONDS,
    ) -> Finals:
        """The final run by itself, without a search before it, against every competitor there is, or those named.

        A competitor that takes the worker down is left out, with the reason, and the run repeated. `step_seconds`
        bounds each step of the proofs and of the timing: a candidate that hangs costs that long.

        Raises:
            TemplateError: the default config fails.
            UserError: another evoengine uses the card, the problem does not fit on it, or (without `force`) the card is
                busy.
            EvoengineError: the card fails, and nobody can be named for it.
        """
        subject = _subject("default", *control)

        def check(environment: Mapping[str, Any]) -> None:
            check_fit(environment, 0.0, force=self._force)

        return race(self._session, subject, _finalists(work), seed, competitors, step_seconds, check)

    def learn_best(self, best_us: float) -> None:
        """What another card has measured of some candidate, on this card's scale: the next has to come near it."""
        self._best_us = min(self._best_us, best_us)

    def interrupt(self) -> None:
        """From another thread: kill the worker, so that what goes on here ends soon. Only `close` comes after."""
        self._session.interrupt()

    def stop(self) -> None:
        """End the worker; the card stays ours."""
        self._session.stop()

    def close(self) -> None:
        """End the worker and free the card, unless its lock is shared."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _verdict(self, subject: Subject) -> Measurement | Rejection:
        verdict, failed = self._attempt(subject)
        if failed and self._suspect:
            # Two candidates in a row: the card may still suffer from the first. One more try in a fresh process.
            verdict, failed = self._attempt(subject)
        self._suspect = failed
        if isinstance(verdict, Rejection):
            return self._memcheck.explained(subject, verdict) if failed else verdict
        return verdict

    def _attempt(self, subject: Subject) -> tuple[Measurement | Rejection, bool]:
        """A verdict, and whether the candidate took the worker down; where another process did, after one more try."""
        for attempt in range(2):
            if not self._session.running:
                self._reconnect()
            try:
                reply, _ = self._session.ask(Judge(subject, self._best_us), self._job_seconds)
            except JobFailed as failed:
                if failed.shot and attempt == 0:
                    continue
                return failed.rejection, True
            if isinstance(reply, Judged):
                if reply.stray:
                    self._session.stop()
                return reply.verdict, False
            self._session.stop()  # tainted: by this candidate or by one before it, which a fresh worker tells apart
        return Rejection(
            Gate.CORRECTNESS, "damages memory outside its buffers: the default config fails after it"
        ), True

    def _set_up(self, *, baselines: bool = False) -> Ready:
        """The control proven and ready to be timed in a worker that is up."""
        assert self._control is not None, "start comes first"
        try:
            ready, _ = self._session.ask(SetUp(self._control, self._reference_us, baselines), START_SECONDS)
        except JobFailed as failed:
            raise TemplateError(f"the default config fails on the card: {failed}") from failed
        assert isinstance(ready, Ready), ready
        return ready

    def _reconnect(self) -> None:
        """The same after a fault. A card that was just freed of a hung kernel may refuse a context at first."""
        for attempt in range(START_TRIES):
            try:
                self.open()
                self._keep_spare()  # the one that waited is in use
                self._set_up()
                return
            except EvoengineError as error:
                if attempt == START_TRIES - 1:
                    raise EvoengineError(f"{self.name} does not recover from a candidate's fault: {error}") from error


def _finalists(work: Sequence[tuple[Candidate, Artifact]]) -> list[Finalist]:
    return [(one, _subject(str(one.number), one.config.values, built)) for one, built in work]


def _subject(name: str, values: Values, artifact: Artifact) -> Subject:
    return Subject(name, dict(values), str(artifact.cubin), artifact.cubin_sha256)
