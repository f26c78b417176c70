"""Faults on the card, each planted in a kernel or done to the worker that runs it, in one session of a device."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch

from benchmarks.trust.build_faults import AXPB
from benchmarks.trust.fault import GONE, STOPPED, Survived, told
from benchmarks.trust.processes import Mark
from evoengine.build import Builder, BuildRequest
from evoengine.devices.cuda import CudaDevice
from evoengine.devices.cuda.process import KILL_SECONDS
from evoengine.errors import EvoengineError
from evoengine.hardware import DeviceLimits
from evoengine.space import Config
from evoengine.template import load_template
from evoengine.verdict import Artifact, Candidate, Gate, Measurement, Rejection

WORK = 4000
"""Dependent multiply-adds a thread: tens of microseconds a launch."""
LONG_WORK = 10_000_000
"""Some 50 ms a launch: the 50 repeats of the proof take seconds."""
JOB_SECONDS = 3.0
"""The deadline of a job here; a search has max(10 s, 50 x the default's job), of which a hang would wait for all."""
RESPAWN_SECONDS = 60.0
"""What a fresh worker may take before it answers again: 10 s are usual, see session.START_SECONDS for the limit."""
ROOM_BYTES = 8 << 30
"""What is left of the card's memory to a kernel that wants 66 GiB."""
FAULTS = (
    ("illegal address", Gate.RUNTIME),
    ("misaligned address", Gate.RUNTIME),
    ("traps", Gate.RUNTIME),
    ("never ends", Gate.TIMEOUT),
    ("waits for ever at a barrier", Gate.TIMEOUT),
    ("asks for too much shared memory", Gate.RUNTIME),
)
WORKER_KILLED, DRIVER_GONE = "GPU worker killed", "driver gone"
OUT_OF_MEMORY, MEMORY_TAKEN = "out of memory", "memory taken by another process"
ENGINE_KILLED = "engine killed"
ENGINE = """\
import sys
from benchmarks.trust.card_faults import Session
from benchmarks.trust.processes import Mark
from evoengine.devices.cuda import find_gpu
with Session(find_gpu(), Mark(sys.argv[1])) as session:
    session.device._job_seconds = 600.0
    print("judging", flush=True)
    session.judge("never ends")
"""


class Session:
    """A device that has started, and candidates by the name of their bug."""

    def __init__(self, limits: DeviceLimits, mark: Mark) -> None:
        self.mark = mark
        self.template = load_template(AXPB)
        self.problem = self.template.module.PROBLEM()
        self.builder = Builder(self.template, limits.arch)
        self.device = CudaDevice(self.template, self.problem, limits, seed=11)
        default, artifact = self.candidate("none")
        self.environment: Mapping[str, Any] = self.device.start(default.config.values, artifact).environment
        self.device._job_seconds = JOB_SECONDS

    def candidate(self, bug: str, work: int = WORK) -> tuple[Candidate, Artifact]:
        """Built as `none` where the bug is one of the launch: what asks for too much would not pass the static gate."""
        bugs: tuple[str, ...] = self.template.module.BUGS  # type: ignore[attr-defined]
        config = Config((("BUG", bugs.index(bug)), ("WORK", work)), f"bug_{bug}.work_{work}")
        defines = self.template.module.defines(config.values, self.problem)
        (built,) = self.builder.build([BuildRequest(defines, 1024)])
        assert isinstance(built, Artifact), built
        return Candidate(1, config, "random"), built

    def judge(self, bug: str, work: int = WORK) -> Measurement | Rejection:
        ((_, verdict),) = self.device.judge([self.candidate(bug, work)])
        return verdict

    def close(self) -> None:
        self.device.close()
        self.builder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def worker(self) -> int:
        """The process id of the worker at work."""
        worker = self.device._session._worker
        assert worker is not None
        return worker.process.pid

    def explain_no_more(self) -> None:
        """memcheck explains the first fault of each name in a run, which takes 10 s: here the very first alone."""
        self.device._memcheck._sanitizer = None

    def survived(
        self,
        fault: str,
        expected: str,
        judge: Callable[[], Measurement | Rejection | str],
        deadline_seconds: float = JOB_SECONDS + KILL_SECONDS,
    ) -> Survived:
        """`judge` meets the fault; a text is why the search would stop. Then comes the default config as a candidate.

        Processes beyond the one worker that answered last are orphans.
        """
        started = time.monotonic()
        verdict = judge()
        seconds = time.monotonic() - started
        gate, reason = (STOPPED, verdict) if isinstance(verdict, str) else told(verdict)
        following = self.judge("none")
        after = following.ratio if isinstance(following, Measurement) else following.reason
        alive = self.mark.alive()
        orphans = () if len(alive) == 1 else tuple(alive)
        return Survived(fault, expected, gate, reason, seconds, deadline_seconds, after, orphans)


def card_faults(limits: DeviceLimits, mark: Mark, done: Collection[str] = ()) -> Iterator[Survived]:
    """Every fault of a kernel, of the worker and of the driver, one after the other, but for those that are `done`."""
    if any(name not in done for name in (*dict(FAULTS), *AROUND)):
        with Session(limits, mark) as session:
            for bug, gate in FAULTS:
                if bug not in done:
                    yield session.survived(bug, gate.value, partial(session.judge, bug))
                    session.explain_no_more()
            for name, meet in AROUND.items():
                if name not in done:
                    yield meet(session)
    if OUT_OF_MEMORY not in done:
        yield out_of_memory(limits, mark)
    if ENGINE_KILLED not in done:
        yield engine_killed()


def worker_killed(session: Session) -> Survived:
    """No candidate's fault: it is judged again, and right."""
    return session.survived(WORKER_KILLED, "", lambda: killed(session), 2 * RESPAWN_SECONDS)


def card_gone(session: Session) -> Survived:
    return session.survived(DRIVER_GONE, STOPPED, lambda: driver_gone(session), 3 * RESPAWN_SECONDS)


def killed(session: Session) -> Measurement | Rejection:
    pid = session.worker()
    shot = threading.Timer(1.0, os.kill, (pid, signal.SIGKILL))
    candidate = session.candidate("none", LONG_WORK)
    session.device._job_seconds = RESPAWN_SECONDS
    shot.start()
    try:
        ((_, verdict),) = session.device.judge([candidate])
    finally:
        shot.cancel()
        session.device._job_seconds = JOB_SECONDS
    return verdict


def driver_gone(session: Session) -> Measurement | Rejection | str:
    """No card is visible to the next worker, which is what cuInit says of a driver that lost its card."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        session.device._session.stop()
        return session.judge("none")
    except EvoengineError as error:
        return str(error)
    finally:
        if hidden is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = hidden


@contextlib.contextmanager
def _taken(room_bytes: int) -> Iterator[None]:
    """This process takes the card's memory, all but `room_bytes`."""
    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(max(free - room_bytes, 0), dtype=torch.uint8, device="cuda")
    try:
        yield
    finally:
        del held
        torch.cuda.empty_cache()


def out_of_memory(limits: DeviceLimits, mark: Mark) -> Survived:
    """A kernel that wants more than is free, which was so when the session began."""
    with _taken(ROOM_BYTES), Session(limits, mark) as session:
        return session.survived(OUT_OF_MEMORY, Gate.RUNTIME.value, lambda: session.judge("wants much local memory"))


def memory_taken(session: Session) -> Survived:
    """The same kernel where another process has taken the memory since the session began."""

    def judge() -> Measurement | Rejection | str:
        try:
            with _taken(ROOM_BYTES):
                return session.judge("wants much local memory")
        except EvoengineError as error:
            return str(error)

    return session.survived(MEMORY_TAKEN, STOPPED, judge)


AROUND: Mapping[str, Callable[[Session], Survived]] = {
    WORKER_KILLED: worker_killed,
    DRIVER_GONE: card_gone,
    MEMORY_TAKEN: memory_taken,
}
"""Faults that no kernel has, in the same session: its start takes seconds."""


def engine_killed() -> Survived:
    """kill -9 of the engine while its worker waits for a kernel that never ends: the worker goes too."""
    own = Mark()
    engine = subprocess.Popen(
        [sys.executable, "-c", ENGINE, own.value],
        env={**os.environ, own.name: own.value},
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert engine.stdout is not None
    engine.stdout.readline()
    time.sleep(2.0)  # the kernel has been launched
    started = time.monotonic()
    engine.kill()
    engine.communicate()
    left = own.left_behind(KILL_SECONDS)
    seconds = time.monotonic() - started
    return Survived(ENGINE_KILLED, "", "", "", seconds, KILL_SECONDS, GONE, tuple(left))
