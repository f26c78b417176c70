"""As much of CuPy as Kernel Tuner uses, without a card: nothing is compiled, a launch writes the attention's output."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.tuners.kernel_tuner_search import PREFIX
from evoengine.question import Question

INFO = "OS : none\nDevice 0 Name : Fake GPU\nDevice 0 PCI Bus ID : 0\n"
SHORT_UUID = b"\x01\x02"
"""What CuPy tells of a UUID whose third byte is zero."""


class NdArray:
    def __init__(self, host: Any) -> None:
        self.host = np.array(host)


class Device:
    compute_capability = "90"

    def __init__(self, ordinal: int) -> None:
        assert 0 == ordinal
        self.attributes = {"MaxThreadsPerBlock": 1024}

    def use(self) -> None: ...

    def synchronize(self) -> None: ...


class Event:
    done = True
    now_us = 0

    def record(self, stream: Any) -> None:
        self.at_us = Event.now_us


def install(monkeypatch: pytest.MonkeyPatch, question: Question) -> dict[tuple[int, ...], float]:
    """Let `import cupy` find this. The answer fills with what is launched: a config's time in microseconds."""
    module, problem = question.template.module, question.problem
    launched: dict[tuple[int, ...], float] = {}

    class RawModule:
        def __init__(self, *, code: str, options: tuple[str, ...], name_expressions: list[str]) -> None:
            assert [module.ENTRY] == name_expressions
            assert ("--std=c++20", f"-I{question.template.folder}") == options
            lines = (line.split() for line in code.splitlines() if line.startswith("#define ") and line.count(" ") == 2)
            self._macros = {name: value for _, name, value in lines}

        def get_function(self, name: str) -> Any:
            values = {axis.name: int(self._macros[f"{PREFIX}{axis.name}"]) for axis in question.space}
            wanted = module.defines(values, problem)
            assert {name: str(value) for name, value in wanted.items()} == {name: self._macros[name] for name in wanted}
            return Kernel(values)

    class Kernel:
        num_regs = 128

        def __init__(self, values: dict[str, int]) -> None:
            self._values = values

        def __call__(self, grid: Any, block: Any, arguments: Any, *, stream: Any, shared_mem: int) -> None:
            launch = question.launch(self._values)
            assert (launch.grid, (launch.block, 1, 1), launch.smem_bytes) == (grid, block, shared_mem)
            q, k, v, o, *scalars = arguments
            assert [np.int32] * 5 + [np.float32] == [type(one) for one in scalars]
            expected = [one.value for one in module.arguments(self._values, problem) if one.kind != "tensor"]
            assert expected == pytest.approx(scalars)
            inputs = {name: one.host.astype(np.float32) for name, one in (("q", q), ("k", k), ("v", v))}
            o.host[...] = module.reference(problem, inputs)["o"]
            us = 1 + sum(place * value for place, value in enumerate(self._values.values()))
            launched[tuple(self._values.values())] = us
            Event.now_us += us

    def copyto(destination: NdArray, source: NdArray) -> None:
        assert destination.host.dtype == source.host.dtype
        np.copyto(destination.host, source.host)

    runtime = SimpleNamespace(
        driverGetVersion=lambda: 13000, getDeviceProperties=lambda ordinal: {"uuid": SHORT_UUID, "name": b"Fake GPU"}
    )
    cuda = SimpleNamespace(
        Device=Device,
        Event=Event,
        Stream=object,
        runtime=runtime,
        get_elapsed_time=lambda start, end: (end.at_us - start.at_us) / 1000,
    )
    cupy, cupyx = ModuleType("cupy"), ModuleType("cupyx")
    vars(cupy).update(
        ndarray=NdArray,
        array=NdArray,
        asarray=NdArray,
        asnumpy=lambda one: one.host.copy(),
        copyto=copyto,
        cuda=cuda,
        RawModule=RawModule,
    )
    vars(cupyx).update(get_runtime_info=lambda: INFO)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cupyx", cupyx)
    # what has been imported without CuPy, or with another test's
    for name in ("kernel_tuner.backends.cupy", "kernel_tuner.observers.cupy"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return launched
