"""Windows on one card, for kernels and for torch functions alike, long enough for its event clock."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping, Sequence

import torch

from evoengine.devices.cuda import baselines, cold, timer
from evoengine.devices.cuda.baselines import Call, CallGraph, Contender, Unavailable, sdpa
from evoengine.devices.cuda.buffers import BufferCopy
from evoengine.devices.cuda.card import Card, Start
from evoengine.devices.cuda.driver import LaunchGraph
from evoengine.devices.cuda.messages import Working
from evoengine.devices.cuda.serve import FatalCudaError, Tell
from evoengine.problem import AttentionProblem, Problem

WARM_UP_SECONDS = 0.5
"""The control runs this long before anything is timed: clocks reach their level under load."""
FINAL_ROUNDS, MIN_FINAL_ROUNDS, FINAL_SECONDS = 100, 50, 60.0
"""Windows a finalist: 100, down to 50 where a hundred rounds would take more than a minute."""
TUNING_ROUNDS = 9
"""Windows for each of the best configs of a competitor that tunes itself."""


class Windows:
    """Makes and runs windows. `tell` keeps the parent from taking long preparations for a hang."""

    def __init__(self, card: Card, tell: Tell) -> None:
        self._card = card
        self._tell = tell

    def of(self, launch: Start, estimated_us: float | None = None) -> LaunchGraph:
        """A window of a kernel's launches."""
        estimated_us = estimated_us or self.estimate(launch)
        return self._card.graph(launch, timer.launches_per_window(estimated_us, self._card.quantum_us))

    def of_call(self, call: Call) -> CallGraph:
        """A window of a torch function's calls."""
        launches = timer.launches_per_window(self.estimate_call(call), self._card.quantum_us)
        return CallGraph(call, launches, self._card.torch_stream)

    def estimate(self, launch: Start) -> float:
        return timer.estimate_us(lambda count: self._card.graph(launch, count), self._card.events)

    def estimate_call(self, call: Call) -> float:
        """Microseconds a call, to a few per cent."""
        return timer.estimate_us(lambda count: CallGraph(call, count, self._card.torch_stream), self._card.events)

    def median_us(self, calls: list[Call]) -> list[float]:
        """Microseconds a call of each, over windows taken in turn."""
        windows: dict[str, timer.Window] = {str(index): self.of_call(call) for index, call in enumerate(calls)}
        times = timer.rounds(windows, self._card.events, TUNING_ROUNDS, random.Random(0), lambda: None)
        for window in windows.values():
            window.destroy()
        return [statistics.median(row) for row in times.values()]

    def warm_up(self, window: timer.Window) -> None:
        end = time.perf_counter() + WARM_UP_SECONDS
        while time.perf_counter() < end:
            timer.time_windows([window], self._card.events)

    def rounds(self, windows: Mapping[str, timer.Window]) -> int:
        """As many rounds as FINAL_SECONDS allow, by the time of one."""
        once = timer.time_windows(list(windows.values()), self._card.events)
        round_us = sum(each * window.launches for each, window in zip(once, windows.values(), strict=True))
        return min(max(int(FINAL_SECONDS * 1e6 / round_us), MIN_FINAL_ROUNDS), FINAL_ROUNDS)

    def cold(
        self,
        problem: Problem,
        names: Sequence[str],
        copies: Sequence[BufferCopy],
        warm: Mapping[str, timer.Window],
    ) -> dict[str, timer.Window]:
        """Windows of PyTorch's own backends that go through `copies`; `warm` says how many launches they need."""
        if not isinstance(problem, AttentionProblem) or not names:
            return {}
        calls = [sdpa.calls(problem, copy.inputs) for copy in copies]
        made: dict[str, timer.Window] = {}
        for name in names:
            self._tell(Working("prepare", name))
            turn = cold.InTurn([each[name] for each in calls])
            made[name] = CallGraph(turn, cold.launches(warm[name].launches, len(copies)), self._card.torch_stream)
        return made

    def line_up(
        self, names: Sequence[str], problem: Problem, inputs: Sequence[torch.Tensor]
    ) -> tuple[dict[str, Contender], dict[str, str]]:
        """Competitors that run, ready to be timed, and why the others do not. Other problems have no competitor."""
        ready: dict[str, Contender] = {}
        unavailable: dict[str, str] = {}
        if not isinstance(problem, AttentionProblem):
            return ready, unavailable
        for name in names:
            self._tell(Working("prepare", name))
            try:
                call, about = baselines.prepare(name, problem, inputs, self._card.limits, self)
                for _ in range(baselines.WARM_CALLS):
                    call()
                ready[name] = Contender(call, self.of_call(call), about)
            except FatalCudaError:
                raise
            except Exception as error:  # other people's code says in many ways that it does not take this problem
                self._card.synchronize()  # anything worse is a fault of the card, and raises here
                unavailable[name] = _reason(error)
                torch.cuda.empty_cache()
        return ready, unavailable


def _reason(error: Exception) -> str:
    """The first line of what it says, with its type where that is not torch's or our own."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return line if isinstance(error, RuntimeError | Unavailable) and line else f"{type(error).__name__}: {line}"
