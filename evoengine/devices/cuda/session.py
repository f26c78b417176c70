"""A conversation with one worker after another on one GPU: what goes wrong becomes a rejection or an exception."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from evoengine.devices.cuda.lock import SharedLock
from evoengine.devices.cuda.messages import Hello, Open, Opened, Phase, Reply, Request, Trouble
from evoengine.devices.cuda.process import Worker, WorkerDied, WorkerHung
from evoengine.devices.cuda.spares import Spares
from evoengine.devices.signals import SHOT
from evoengine.errors import EvoengineError, TemplateError, UserError
from evoengine.problem import Problem, problem_fields
from evoengine.template import Template
from evoengine.verdict import Gate, Rejection

START_SECONDS = 300.0
"""Importing torch, making a context, timing every baseline: 10 s are usual, a cold disk takes minutes."""
START_TRIES = 3
"""A card that was just freed of a hung kernel may refuse the next context once or twice."""
PREPARE_SECONDS = 900.0
"""A competitor that compiles and tunes itself: 100 Triton configs take 20 s on 16 cores, a few minutes on two."""
REFERENCE_SECONDS = 1800.0
"""A float64 reference on the CPU: a minute at 16 k keys on two cores, and its cost grows with the square."""

OTHERS = ("other_load_percent", "other_processes")
"""What an environment says of other users of the card. A later worker of a session, which may be up already, would take
the one before it for one: the driver's load is of the last second."""

CARD_ERRORS = frozenset(
    f"CUDA_ERROR_{name}"
    for name in (
        "DEINITIALIZED", "DEVICE_UNAVAILABLE", "ECC_UNCORRECTABLE", "INVALID_DEVICE", "NO_DEVICE", "NOT_INITIALIZED",
        "NVLINK_UNCORRECTABLE", "SYSTEM_DRIVER_MISMATCH", "SYSTEM_NOT_READY",
    )
)  # fmt: skip
"""What no kernel can bring about (CUDA driver API, CUresult). At a worker's start it may pass: that is tried again."""


class JobFailed(Exception):
    """A job took its worker down. `rejection` is what that means for a candidate, `about` the finalist concerned.

    `shot` means that another process ended the worker, which no kernel can bring about.
    """

    def __init__(self, rejection: Rejection, about: str, *, shot: bool = False) -> None:
        last_words = str(rejection.evidence.get("stderr", "")).rpartition("\n")[2]
        super().__init__(f"{rejection.reason}{last_words and f' ({last_words})'}")
        self.rejection = rejection
        self.about = about
        self.shot = shot


class Session:
    """Holds the card from the first `open` to `close`, through any number of `workers`.

    References are kept in `scratch`, a folder that outlives the session, or in one of its own where None is given. With
    `lock`, it is shared with other sessions, and whoever made it releases it.
    """

    def __init__(
        self,
        workers: Spares,
        template: Template,
        problem: Problem,
        *,
        scratch: Path | None = None,
        lock: SharedLock | None = None,
    ) -> None:
        self.workers = workers
        self._template = template
        self._problem = problem
        self._own = None if scratch is not None else tempfile.TemporaryDirectory(prefix="evoengine-")
        self._scratch = str(scratch) if self._own is None else self._own.name
        self._lock = lock or SharedLock()
        self._shares = lock is not None
        self._worker: Worker | None = None
        self._asked: Worker | None = None
        self._interrupted = False
        self._others: Mapping[str, Any] | None = None

    @property
    def running(self) -> bool:
        return self._worker is not None

    def open(self, seed: int) -> Mapping[str, Any]:
        """Replace the worker by a fresh one with the template loaded; the environment, in which others are as at first.

        Raises:
            JobFailed: the worker does not come up.
            UserError: another evoengine holds the card, or there is none.
        """
        self._check_wanted()
        self.stop()
        self._worker = self.workers.take()
        hello, _ = self.ask(None, START_SECONDS)
        assert isinstance(hello, Hello), hello
        try:
            self._lock.take(hello.uuid)
        except UserError:
            self.stop()
            raise
        request = Open(str(self._template.folder), problem_fields(self._problem), seed, self._scratch)
        opened, _ = self.ask(request, START_SECONDS)
        assert isinstance(opened, Opened), opened
        if self._others is None:
            self._others = {name: opened.environment[name] for name in OTHERS if name in opened.environment}
        return {**opened.environment, **self._others}

    def ask(self, request: Request | None, seconds: float) -> tuple[Reply, float]:
        """The worker's answer, and how long it took apart from references. `seconds` bounds each phase.

        Raises:
            JobFailed: the worker died, hung, or lost its context; it is gone.
            TemplateError, UserError: found by the worker, or the card itself has failed; the worker is gone.
            RuntimeError: evoengine's own bug in the worker, with its traceback.
            EvoengineError: `interrupt` came before.
        """
        worker = self._asked = self._worker
        assert worker is not None, "open comes first"
        self._check_wanted()  # once `_asked` is set: `interrupt` sets its flag first, so that one sees the other
        self._worker = None  # until the answer is there: whatever interrupts the wait leaves no half-used worker
        limits: dict[Phase, float] = {
            "start": START_SECONDS,
            "reference": REFERENCE_SECONDS,
            "prepare": PREPARE_SECONDS,
            "check": seconds,
            "time": seconds,
        }
        first: Phase = "start" if request is None or isinstance(request, Open) else "check"
        try:
            reply = worker.ask(request, limits, first)
        except WorkerHung as hung:
            late = {"phase": hung.working.phase, "limit_seconds": hung.limit_seconds}
            raise JobFailed(Rejection(Gate.TIMEOUT, str(hung), late), hung.working.about) from hung
        except WorkerDied as died:
            evidence = {"phase": died.working.phase, "returncode": died.returncode, "stderr": died.stderr}
            shot = died.returncode in SHOT
            raise JobFailed(Rejection(Gate.RUNTIME, str(died), evidence), died.working.about, shot=shot) from died
        if isinstance(reply, Trouble) and reply.kind != "tainted":
            worker.kill()
            _raise(reply, worker)
        self._worker = worker
        return reply, worker.busy_seconds

    def _check_wanted(self) -> None:
        if self._interrupted:
            raise EvoengineError("the search was interrupted")

    def stop(self) -> None:
        """End the worker; the card stays ours."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def interrupt(self) -> None:
        """Kill the worker that is being asked, from another thread, and let no other be asked after it."""
        self._interrupted = True
        if (worker := self._asked) is not None:
            worker.process.kill()

    def close(self) -> None:
        """End the worker, free the card, forget the references: each of them, should another fail."""
        with ExitStack() as rest:
            if self._own is not None:
                rest.callback(self._own.cleanup)
            if not self._shares:
                rest.callback(self._lock.release)
            rest.callback(self.workers.close)
            self.stop()


def _raise(trouble: Trouble, worker: Worker) -> None:
    if trouble.kind == "template":
        raise TemplateError(trouble.text)
    if trouble.kind == "user":
        raise UserError(trouble.text)
    if trouble.kind == "bug":
        raise RuntimeError(f"the GPU worker is broken: {trouble.detail}")
    error = trouble.text.partition(" ")[0]
    if error in CARD_ERRORS and worker.working.phase != "start":
        raise UserError(f"the GPU or its driver has failed ({trouble.text}), no candidate is to blame: see nvidia-smi")
    evidence = {"error": error, "phase": worker.working.phase}
    raise JobFailed(Rejection(Gate.RUNTIME, trouble.text, evidence), worker.working.about)
