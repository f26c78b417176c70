"""A worker process without a GPU: the real serving loop over a bench that fails on demand.

`python fake_cuda_worker.py FOLDER UUID CARD FD`. What a candidate does is its BUG value, see FAULTS; FOLDER counts
starts and remembers across processes, and its file `card` holds the control's noise, the card's load in percent and the
number of other processes, where they matter. One card of several is called by its UUID, and has a folder of that name
in FOLDER. There `level` holds the control's time, `pause` the seconds that a job takes, `lost_after` the number of jobs
after which the card is gone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

from evoengine.devices.cuda.messages import (
    Dropped,
    Hello,
    Judge,
    Judged,
    Lap,
    Open,
    Opened,
    Raced,
    Ready,
    RunFinals,
    SetUp,
    Subject,
    Working,
)
from evoengine.devices.cuda.results import Deviation
from evoengine.devices.cuda.serve import FatalCudaError, Tainted, Tell, serve
from evoengine.errors import TemplateError
from evoengine.verdict import Gate, Measurement, Rejection

FAULTS = (
    "right",
    "wrong",
    "dies",
    "hangs",
    "sticky",
    "stray",
    "killed",
    "refused",
    "driver gone",
    "illegal address, then driver gone",
    "taints",
    "sticky once",
    "slow reference",
    "template",
    "bug",
    "fast once",
    "fast, then wrong",
    "killed once",
)

OVER = ("right", "killed once", "driver gone", "illegal address, then driver gone")
"""What is right, or is so once its trouble is over."""


class FakeBench:
    def __init__(self, folder: Path, uuid: str, tell: Tell) -> None:
        self._folder = folder
        self._uuid = uuid
        self._tell = tell
        self._tainted = False
        card = folder / "card"
        self._card = json.loads(card.read_text()) if card.exists() else (0.004, 0, 0)
        level = folder / "level"
        self._level_us = float(level.read_text()) if level.exists() else 10.0

    def hello(self) -> Hello:
        if self._gone():
            raise FatalCudaError("CUDA_ERROR_NO_DEVICE from cuInit")
        self._note("starts", str(os.getpid()))
        return Hello(self._uuid, "Fake GPU")

    def open(self, request: Open) -> Opened:
        if self._gone():
            raise FatalCudaError("CUDA_ERROR_NO_DEVICE from cuDevicePrimaryCtxRetain")
        self._note("seeds", str(request.seed))
        _, load, others = self._card
        return Opened({"gpu": "Fake GPU", "other_load_percent": load, "other_processes": others})

    def set_up(self, request: SetUp) -> Ready:
        print("noise on stdout must not reach the protocol")
        self._note("references", str(request.reference_us))
        self._reference_us = request.reference_us or self._level_us
        self._act(request.control, "")
        return Ready(request.reference_us or self._level_us, (), {"sdpa_flash": "no kernel"}, self._card[0])

    def judge(self, request: Judge) -> Judged:
        self._note("best", str(request.best_us))
        pause, lost_after = self._folder / "pause", self._folder / "lost_after"
        if pause.exists():
            time.sleep(float(pause.read_text()))
        if lost_after.exists() and self._count("best") > int(lost_after.read_text()):
            self._note("gone", request.subject.name)
            raise FatalCudaError("CUDA_ERROR_NO_DEVICE from cuCtxSynchronize")
        fault = self._act(request.subject, "")
        if fault == "wrong" or self._tainted:
            if self._tainted:
                raise Tainted("the default config's output changed")
            return Judged(Rejection(Gate.CORRECTNESS, "max error", {"seed": 1}))
        if fault == "stray":
            return Judged(Rejection(Gate.CORRECTNESS, "guard words were overwritten"), stray=True)
        if fault == "refused":
            return Judged(Rejection(Gate.RUNTIME, "CUDA_ERROR_OUT_OF_MEMORY from cuLaunchKernel"))
        ratio = 0.1 * request.subject.values["WORK"]
        if fault.startswith("fast"):
            again = self._count("fast") > 0
            self._note("fast", request.subject.name)
            if again and fault == "fast, then wrong":
                return Judged(Rejection(Gate.CORRECTNESS, "max error", {"seed": 1}))
            ratio *= 1.0 if again else 0.5
        level_us = self._level_us
        windows = tuple(level_us * ratio * (1 + 0.001 * i / ratio) for i in range(7))
        return Judged(Measurement(windows, (level_us,) * 7, self._reference_us, 100, "warm", "converged"))

    def run_finals(self, request: RunFinals) -> Raced | Dropped:
        for subject in request.finalists:
            self._tell(Working("check", subject.name))
            if self._act(subject, subject.name) not in OVER:
                return Dropped(subject.name, Rejection(Gate.CORRECTNESS, "wrong in the final"))
        laps = tuple(Lap(s.name, tuple(5.0 + 0.01 * i for i in range(50)), 100) for s in request.finalists)
        control = Lap("default", tuple(10.0 + 0.01 * (i % 3) for i in range(50)), 100)
        self._note("competitors", " ".join(request.competitors))
        if "flex" in request.competitors:
            self._tell(Working("prepare", "flex"))
            os._exit(4)
        sdpa = Lap("sdpa", (20.0,) * 50, 50, (), Deviation(1e-3, 1e-4, 0))
        floor = Lap("empty kernel", (1.0,) * 50, 500)
        return Raced(control, laps, (sdpa,), floor, {"sdpa_flash": "no kernel"}, {})

    def _act(self, subject: Subject, about: str) -> str:
        fault = FAULTS[subject.values["BUG"]]
        self._tell(Working("check", about))
        if fault == "dies":
            print("Fatal: the driver is gone", file=sys.stderr, flush=True)
            os._exit(3)
        if fault == "killed" or (fault == "killed once" and self._count("killed") == 0):
            self._note("killed", subject.name)
            os.kill(os.getpid(), signal.SIGKILL)
        if "driver gone" in fault and not (self._folder / "repaired").exists():
            self._note("gone", subject.name)
            error = "ILLEGAL_ADDRESS" if "illegal" in fault else "NO_DEVICE"
            raise FatalCudaError(f"CUDA_ERROR_{error} from cuCtxSynchronize")
        if fault == "hangs":
            time.sleep(600)
        if fault == "sticky" or (fault == "sticky once" and self._count("sticky") == 0):
            self._note("sticky", subject.name)
            raise FatalCudaError("CUDA_ERROR_ILLEGAL_ADDRESS from cuCtxSynchronize")
        if fault == "taints":
            self._tainted = True
        if fault == "slow reference":
            self._tell(Working("reference"))
            time.sleep(1.5)
            self._tell(Working("check", about))
        if fault == "template":
            raise TemplateError("template.py: reference fails: ZeroDivisionError")
        if fault == "bug":
            raise KeyError("a mistake of ours")
        return fault

    def _gone(self) -> bool:
        """A driver that has gone stays away until the file `repaired` is there."""
        return self._count("gone") > 0 and not (self._folder / "repaired").exists()

    def _note(self, name: str, line: str) -> None:
        with (self._folder / name).open("a") as file:
            file.write(f"{line}\n")

    def _count(self, name: str) -> int:
        path = self._folder / name
        return len(path.read_text().splitlines()) if path.exists() else 0


if __name__ == "__main__":
    folder, uuid, card, descriptor = sys.argv[1:]
    if not card.isdecimal():
        folder, uuid = os.path.join(folder, card), card
        os.makedirs(folder, exist_ok=True)
    serve(Connection(int(descriptor)), lambda tell: FakeBench(Path(folder), uuid, tell))
