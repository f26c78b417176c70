"""A second clock, written apart from the timer that it checks: torch's CUDA graphs, torch's events, differences.

    echo REQUEST | python -m benchmarks.trust.graph_clock

REQUEST is JSON: `template` (folder), `problem` (its fields), `subjects` (name -> `values` and `cubin`) and `rounds`.
The answer is JSON too: for each name microseconds a launch, one number a round. A round replays, for each subject in
turn, a graph of N launches and one of 3N behind each other. The difference of their times over 2N is free of all that a
window costs by itself (the graph's start, the events), which the timer's windows only keep small. A process of its own,
so that no context of ours is on the card while the timer runs.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WARM_UP_SECONDS = 0.5
SHORT_US = 700.0
"""The shorter of the two graphs."""
KINDS: Mapping[str, Any] = {"pointer": ctypes.c_void_p, "int32": ctypes.c_int, "float32": ctypes.c_float}


def independent_us(
    template: Path, problem: Mapping[str, Any], subjects: Mapping[str, tuple[Mapping[str, int], Path]], rounds: int
) -> dict[str, list[float]]:
    """Microseconds a launch of each subject (values and cubin), by a process of its own.

    Raises:
        RuntimeError: the process fails.
    """
    request = {
        "template": str(template.resolve()),
        "problem": dict(problem),
        "subjects": {
            name: {"values": dict(values), "cubin": str(cubin.resolve())} for name, (values, cubin) in subjects.items()
        },
        "rounds": rounds,
    }
    command = [sys.executable, "-m", "benchmarks.trust.graph_clock"]
    done = subprocess.run(
        command, input=json.dumps(request), capture_output=True, text=True, timeout=120, check=False, cwd=ROOT
    )
    if done.returncode:
        raise RuntimeError(f"the second clock fails: {done.stderr[-2000:]}")
    times: dict[str, list[float]] = json.loads(done.stdout)
    return times


def per_launch_us(start_ms: float, short_ms: float, long_ms: float, launches: int) -> float:
    """From the moments at which the two graphs begin and end: three times the launches, less the launches once."""
    return ((long_ms - short_ms) - (short_ms - start_ms)) * 1e3 / (2 * launches)


def make_tensors(module: Any, problem: Any, device: str) -> dict[str, Any]:
    """Every tensor of the problem on the device: inputs as the template makes them, the others zero."""
    import torch

    types = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "int32": torch.int32}
    inputs = module.inputs(problem, 1)
    made = {}
    for tensor in module.tensors(problem):
        if tensor.role == "input":
            made[tensor.name] = torch.from_numpy(inputs[tensor.name]).to(device, types[tensor.dtype]).contiguous()
        else:
            made[tensor.name] = torch.zeros(tensor.shape, dtype=types[tensor.dtype], device=device)
    return made


def packed(arguments: Sequence[Any], tensors: Mapping[str, Any]) -> tuple[tuple[int | float, ...], tuple[Any, ...]]:
    """Kernel arguments as cuLaunchKernel's binding takes them."""
    values: list[int | float] = []
    for one in arguments:
        if one.kind == "tensor":
            values.append(tensors[one.value].data_ptr())
        else:
            values.append(int(one.value) if one.kind == "int32" else float(one.value))
    return tuple(values), tuple(KINDS["pointer" if one.kind == "tensor" else one.kind] for one in arguments)


def _launcher(module: Any, problem: Any, subject: Mapping[str, Any], tensors: Mapping[str, Any], stream: int) -> Any:
    from cuda.bindings import driver

    def checked(result: tuple[Any, ...]) -> Any:
        if result[0] != driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(result[0].name)
        return result[1] if len(result) > 1 else None

    library = checked(driver.cuModuleLoadData(Path(subject["cubin"]).read_bytes()))
    function = checked(driver.cuModuleGetFunction(library, module.ENTRY.encode()))
    launch = module.launch(subject["values"], problem)
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    checked(driver.cuFuncSetAttribute(function, attribute, launch.smem_bytes))
    parameters = packed(module.arguments(subject["values"], problem), tensors)
    shape = (*launch.grid, launch.block, 1, 1, launch.smem_bytes)
    return lambda: checked(driver.cuLaunchKernel(function, *shape, stream, parameters, 0))


def _graph(launch: Callable[[], None], launches: int, stream: Any) -> Any:
    import torch

    made = torch.cuda.CUDAGraph()
    with torch.cuda.graph(made, stream=stream):
        for _ in range(launches):
            launch()
    return made


def answer(request: Mapping[str, Any]) -> dict[str, list[float]]:
    """Time every subject of a request on the first GPU."""
    import torch

    from evoengine.template import load_template

    module = load_template(Path(request["template"])).module
    problem: Any = module.PROBLEM(**request["problem"])
    tensors = make_tensors(module, problem, "cuda")
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    handle = int(stream.cuda_stream)
    event: Any = torch.cuda.Event
    graphs = {}
    with torch.cuda.stream(stream):
        for name, subject in request["subjects"].items():
            launch = _launcher(module, problem, subject, tensors, handle)
            launch()  # a kernel is loaded at its first launch, which a capture might refuse
            stream.synchronize()
            twenty = _graph(launch, 20, stream)
            start, end = event(enable_timing=True), event(enable_timing=True)
            twenty.replay()
            start.record()
            twenty.replay()
            end.record()
            end.synchronize()
            launches = max(int(SHORT_US / (start.elapsed_time(end) * 1e3 / 20)), 5)
            graphs[name] = launches, _graph(launch, launches, stream), _graph(launch, 3 * launches, stream)
        until = time.perf_counter() + WARM_UP_SECONDS
        while time.perf_counter() < until:
            for _, short, _ in graphs.values():
                short.replay()
            stream.synchronize()
        times: dict[str, list[float]] = {name: [] for name in graphs}
        for _ in range(request["rounds"]):
            for name, (launches, short, long) in graphs.items():
                begun, middle, end = (event(enable_timing=True) for _ in range(3))
                long.replay()  # keeps the card busy while the host queues the rest
                begun.record()
                short.replay()
                middle.record()
                long.replay()
                end.record()
                end.synchronize()
                passed = begun.elapsed_time(middle), begun.elapsed_time(end)
                times[name].append(per_launch_us(0.0, *passed, launches))
    return times


if __name__ == "__main__":
    json.dump(answer(json.load(sys.stdin)), sys.stdout)
