"""The device that stands in where there is no GPU: candidates interpreted in killable processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

from evoengine.devices.interpreter.faults import Unsupported
from evoengine.devices.interpreter.remedies import remedy
from evoengine.devices.interpreter.trial import SetTrial
from evoengine.devices.signals import SHOT
from evoengine.errors import EvoengineError, TemplateError, UserError
from evoengine.hardware import DeviceLimits
from evoengine.problem import Member, Problem, members_of, problem_fields
from evoengine.template import Template, load_template
from evoengine.verdict import Artifact, Candidate, Gate, Rejection, Verdict

_START_SECONDS = 60.0
"""A worker imports numpy and loads the template in 0.3 s; a machine this slow is broken."""
_MOST_SHOT = 16
"""Workers that others may end before they are up; somebody who goes on is not to be fought."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """What a worker reports instead of a verdict: an exception that is not the candidate's.

    `of` is whose it is: the template's, the user's, or a failure of the interpreter itself, told with its traceback.
    """

    of: Literal["template", "user", "interpreter"]
    text: str


Fields = dict[str, int | float | str | bool]


def _serve(
    connection: Connection, folder: Path, members: list[tuple[Fields, float]], limits: DeviceLimits, full: bool
) -> None:
    """A worker's life: say ready, then one verdict per job until the connection closes."""
    template = load_template(folder)
    problems = [Member(template.module.PROBLEM(**fields), weight) for fields, weight in members]
    trial = SetTrial(template, problems, limits, full)
    connection.send(None)
    while True:
        try:
            values, artifact = connection.recv()
        except EOFError:
            return
        answer: Verdict | _Failure
        try:
            answer = trial.judge(values, artifact)
        except Unsupported as error:
            text = f"the interpreter does not model {error}: this kernel needs a GPU to be judged; {remedy(str(error))}"
            answer = _Failure("template", text)
        except TemplateError as error:
            answer = _Failure("template", str(error))
        except UserError as error:
            answer = _Failure("user", str(error))
        except Exception:
            answer = _Failure("interpreter", traceback.format_exc())  # raised again by the parent
        try:
            connection.send(answer)
        except (BrokenPipeError, ConnectionResetError):
            return  # the parent was killed


class _Worker:
    """One process and the job it has."""

    def __init__(self, template: Template, problem: Problem, limits: DeviceLimits, full: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        members = [(problem_fields(member.problem), member.weight) for member in members_of(problem)]
        arguments = (theirs, template.folder, members, limits, full)
        self.process: BaseProcess = context.Process(target=_serve, args=arguments, daemon=True)
        # Ctrl-C reaches the whole process group and is the parent's to handle, from the child's first instruction on.
        resource_tracker.ensure_running()  # it would unblock SIGINT when `start` starts it
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self.ready = False
        self.job: tuple[Candidate, Artifact] | None = None
        self.deadline = time.monotonic() + _START_SECONDS

    def give(self, candidate: Candidate, artifact: Artifact, deadline_seconds: float) -> None:
        self.connection.send((candidate.config.values, artifact))
        self.job, self.deadline = (candidate, artifact), time.monotonic() + deadline_seconds

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


class InterpreterDevice:
    """Judges built candidates without a GPU: the candidate's own PTX against the reference, and an estimate.

    Args:
        problem: what the search tunes for, or a set; candidates run on the template's `small_problems` of it.
        limits: the card that the estimate is for.
        jobs: worker processes; the cores this process may use by default.
        deadline_seconds: wall time of one candidate, at each problem, before its worker is killed. The dearest
            attention config takes under 3 s on a quiet core, and five times that with `full`.
        full: judge on every kind of input of the template's full gate.
    """

    measures = False

    def __init__(
        self,
        template: Template,
        problem: Problem,
        limits: DeviceLimits,
        *,
        jobs: int | None = None,
        deadline_seconds: float = 120.0,
        full: bool = False,
    ) -> None:
        self.name = f"{limits.name} (interpreted, nothing measured)"
        self._template, self._problem, self._limits = template, problem, limits
        self._jobs = jobs or len(os.sched_getaffinity(0))
        self._deadline_seconds = deadline_seconds * len(members_of(problem))
        self._full = full
        self._workers: list[_Worker] = []
        self._shot: set[int] = set()  # the trials whose worker another process has ended
        self._shot_idle = 0

    def judge(self, work: Iterable[tuple[Candidate, Artifact]]) -> Iterator[tuple[Candidate, Verdict]]:
        """Verdicts as they finish, in any order: a Rejection or an Estimate each.

        All of `work` is drawn first: building and interpreting want the same cores.

        Raises:
            TemplateError: template.py fails, or a kernel holds an instruction that the interpreter does not model.
            UserError: the problem overflows its dtype, or template.py refuses one of its own.
            EvoengineError: the interpreter itself failed.
        """
        queue = deque(work)
        try:
            while queue or any(worker.job for worker in self._workers):
                while len(self._workers) < min(self._jobs, len(queue) + sum(bool(w.job) for w in self._workers)):
                    self._workers.append(_Worker(self._template, self._problem, self._limits, self._full))
                for worker in [worker for worker in self._workers if worker.ready and worker.job is None]:
                    self._hand_out(worker, queue)
                if any(worker.job or not worker.ready for worker in self._workers):
                    yield from self._collect(queue)
        finally:
            for worker in [worker for worker in self._workers if worker.job]:
                self._drop(worker)

    def in_hand(self) -> list[list[int]]:
        return [[worker.job[0].number] if worker.job else [] for worker in self._workers]

    def close(self) -> None:
        """End the workers."""
        for worker in list(self._workers):
            self._drop(worker)

    def _drop(self, worker: _Worker) -> None:
        worker.end()
        self._workers.remove(worker)

    def _hand_out(self, worker: _Worker, queue: deque[tuple[Candidate, Artifact]]) -> None:
        """The next job, if there is one."""
        if not queue:
            return
        try:
            worker.give(*queue[0], self._deadline_seconds)
        except (BrokenPipeError, ConnectionResetError):  # another process has ended it while it had nothing to do
            self._drop(worker)
        else:
            queue.popleft()

    def _collect(self, queue: deque[tuple[Candidate, Artifact]]) -> Iterator[tuple[Candidate, Verdict]]:
        """Wait until a worker speaks, dies or is late, and hand out what that settles."""
        busy = {worker.connection: worker for worker in self._workers if worker.job or not worker.ready}
        patience = max(0.0, min(worker.deadline for worker in busy.values()) - time.monotonic())
        for connection in wait(list(busy), patience):
            yield from self._hear(busy[connection], queue)  # type: ignore[index]
        for worker in [w for w in busy.values() if w in self._workers and time.monotonic() > w.deadline]:
            if worker.job is None and worker.ready:
                continue  # it has just finished
            job = worker.job
            self._drop(worker)
            if job is None:
                raise EvoengineError(f"an interpreter worker did not start within {_START_SECONDS:g} s")
            reason = f"not done after {self._deadline_seconds:g} s in the interpreter"
            yield job[0], Rejection(Gate.TIMEOUT, reason, {"interpreted": True})

    def _hear(self, worker: _Worker, queue: deque[tuple[Candidate, Artifact]]) -> Iterator[tuple[Candidate, Verdict]]:
        job = worker.job
        try:
            message = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            yield from self._died(worker, queue)
            return
        if job is None:
            worker.ready = True
            return
        worker.job = None
        if isinstance(message, _Failure):
            if message.of == "template":
                raise TemplateError(message.text)
            if message.of == "user":
                raise UserError(message.text)
            raise EvoengineError(f"the interpreter failed on candidate {job[0].number}:\n{message.text}")
        yield job[0], message

    def _died(self, worker: _Worker, queue: deque[tuple[Candidate, Artifact]]) -> Iterator[tuple[Candidate, Verdict]]:
        """The verdict on a candidate whose worker has ended, unless another process has ended it for the first time."""
        worker.process.join()
        code, job = worker.process.exitcode, worker.job
        self._drop(worker)
        if job is None:
            self._shot_idle += 1
            if code in SHOT and self._shot_idle <= _MOST_SHOT:
                return
            raise EvoengineError(f"an interpreter worker ended with exit code {code} before its first job")
        candidate, _ = job
        if code in SHOT and candidate.number not in self._shot:
            self._shot.add(candidate.number)
            queue.appendleft(job)
            return
        reason = f"the interpreter's process died with exit code {code}"
        yield candidate, Rejection(Gate.RUNTIME, reason, {"interpreted": True, "exit_code": code})
