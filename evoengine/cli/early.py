"""`evoengine search` and `resume`: what takes seconds and needs little is begun before anything heavy is imported.

The GPU's worker imports torch (4 s on a slow core), the driver is asked for the card's limits (1 s) and another process
lists the feasible configs (2 s) while this one imports the database and opens it (3 s).
"""

from __future__ import annotations

import argparse
import re
from contextlib import closing
from pathlib import Path

from evoengine.build import toolchain
from evoengine.cli.ahead import Ahead
from evoengine.cli.resolve import Target, find_target
from evoengine.devices.cuda import probe
from evoengine.devices.cuda.device import WORKER
from evoengine.devices.cuda.process import Worker
from evoengine.errors import UserError
from evoengine.stopwatch import Stopwatch

DRIVER = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""What a driver shows of itself, on Linux and within Windows. Without one nothing is begun for nothing."""
OTHERWISE = ("dry_run", "per_shape", "per_device", "shapes")
"""Options of searches that are not of one question, or of shapes that are not read yet."""


class Early:
    """The worker of the GPU that the user means, if there seems to be one, until somebody takes it; for a new search
    the target, and who lists its feasible set."""

    def __init__(self, device: str) -> None:
        self._worker: Worker | None = None
        self.target: Target | None = None
        self.ahead: Ahead | None = None
        meant = re.fullmatch("auto|cuda(?::([0-9]{1,4}))?", device)
        if meant and any(path.exists() for path in DRIVER):
            self._ordinal = int(meant[1] or 0)
            probe.begin(self._ordinal)
            self._worker = Worker((*WORKER, str(self._ordinal)))

    def take(self, ordinal: int) -> Worker | None:
        """The worker, once, if it is that card's: whoever takes it ends it."""
        if self._worker is None or ordinal != self._ordinal:
            return None
        worker, self._worker = self._worker, None
        return worker

    def list_ahead(self, arguments: argparse.Namespace) -> None:
        """Begin to list what a search of one question begins with."""
        self.ahead = Ahead()
        try:
            self.target = find_target(arguments.device, arguments.target, arguments.limits, arguments.devices)
        except UserError:  # which is raised again in its turn
            self.ahead.close()
            self.ahead = None
        else:
            self.ahead.tell(arguments, self.target)

    def close(self) -> None:
        """End what nobody took."""
        if self.ahead is not None:
            self.ahead.close()
        if self._worker is not None:
            self._worker.kill()
            self._worker = None


def run(arguments: argparse.Namespace) -> int:
    watch = Stopwatch()
    planned = arguments.verb == "search" and (arguments.dry_run or arguments.device == "none")
    # Of several cards each has a worker of its own, called by UUID: which they are is not known yet.
    with closing(Early("none" if planned or arguments.devices else arguments.device)) as early:
        if arguments.verb == "search" and arguments.compiler == "nvrtc":
            toolchain.begin()
        if arguments.verb == "search" and not any(getattr(arguments, option) for option in OTHERWISE):
            early.list_ahead(arguments)
        from evoengine.cli import search

        return search.run(arguments, early, watch)
