"""Kernel Tuner's search for an attention config on the first GPU: `python -m benchmarks.tuners.kernel_tuner_search`.

    ... STRATEGY --shape SHAPE --budget N --max-smem BYTES

Prints JSON: its best config, seconds, how many configs it evaluated. It compiles with NVRTC through CuPy, which adds
-ftz=true, and compares every config's output with the float64 reference before it times it, as far as its `answer` and
`atol` go.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.tuners.space import SPACE
from evoengine.devices.cuda import find_gpu
from evoengine.gates import Ceilings
from evoengine.problem import AttentionProblem, parse_shape
from evoengine.question import Question
from evoengine.template import Argument, Template, load_template, shipped

ATOL = 1e-3
"""Absolute: all that Kernel Tuner's own check knows. Right fp16 outputs of the mission shape are 2e-4 off at most."""
PREFIX = "EVO_"
UUID_BYTES = 16


def allowed(question: Question) -> Any:
    """A constraint that holds while a partly chosen config can still become a feasible one.

    Without the look ahead every point of the product would be visited, 24 million.
    """
    from constraint import FunctionConstraint, Unassigned

    points = question.feasible.points
    configs = [tuple(axis.choices[i] for axis, i in zip(question.space, point, strict=True)) for point in points]
    begun: dict[tuple[int, ...], set[tuple[int, ...]]] = {}

    def possible(*values: Any) -> bool:
        at = tuple(place for place, value in enumerate(values) if value is not Unassigned)
        if at not in begun:
            begun[at] = {tuple(config[place] for place in at) for config in configs}
        return tuple(values[place] for place in at) in begun[at]

    return FunctionConstraint(possible, assigned=False)


def parameters(question: Question) -> dict[str, list[int]]:
    """Every knob's macro with its choices."""
    return {f"{PREFIX}{axis.name}": list(axis.choices) for axis in question.space}


def knobs(question: Question, values: dict[str, Any]) -> dict[str, int]:
    """The config that Kernel Tuner's `values` are."""
    return {axis.name: int(values[f"{PREFIX}{axis.name}"]) for axis in question.space}


@contextlib.contextmanager
def mended(question: Question) -> Iterator[list[float]]:
    """Kernel Tuner 1.5.0 as this search needs it; yields the seconds that each of its search spaces takes to build.

    It takes the threads of a CTA from a parameter alone. That would follow from the other knobs, and a config would
    have no neighbour with more or fewer threads: its strategies, which step by one parameter, would be hobbled. Its
    space's own time is told apart, since another description of the rules may be faster. Its CuPy backend wants a
    card's UUID, of which CuPy tells the bytes before the first zero.
    """
    import cupy
    from kernel_tuner import searchspace, util

    seconds: list[float] = []
    build, properties = searchspace.Searchspace.__init__, cupy.cuda.runtime.getDeviceProperties

    def threads(values: dict[str, Any], names: Any = None) -> tuple[int, int, int]:
        return question.launch(knobs(question, values)).block, 1, 1

    def timed(self: Any, *given: Any, **named: Any) -> None:
        begun = time.perf_counter()
        build(self, *given, **named)
        seconds.append(time.perf_counter() - begun)

    def whole(ordinal: int) -> dict[str, Any]:
        told: dict[str, Any] = properties(ordinal)
        return {**told, "uuid": told["uuid"].ljust(UUID_BYTES, b"\0")[:UUID_BYTES]}

    with (
        patch.object(util, "get_thread_block_dimensions", threads),
        patch.object(searchspace.Searchspace, "__init__", timed),
        patch.object(cupy.cuda.runtime, "getDeviceProperties", whole),
    ):
        yield seconds


def search(template: Template, question: Question, strategy: str, budget: int, seed: int) -> dict[str, Any]:
    """Run one strategy. It draws from the process's global generators, which Kernel Tuner does not seed."""
    import kernel_tuner

    problem, module = question.problem, template.module
    inputs = module.inputs(problem, 1)
    wanted = module.reference(problem, inputs)
    types = {"fp16": np.float16, "fp32": np.float32}
    arrays = {
        one.name: inputs[one.name].astype(types[one.dtype])
        if one.role == "input"
        else np.zeros(one.shape, types[one.dtype])
        for one in module.tensors(problem)
        if one.role != "scratch"
    }

    def told(one: Argument) -> Any:
        if one.kind == "tensor":
            return arrays[str(one.value)]
        return np.int32(one.value) if one.kind == "int32" else np.float32(one.value)

    arguments = module.arguments(question.space.default, problem)
    answer = [
        wanted[str(one.value)].astype(arrays[str(one.value)].dtype) if one.value in wanted else None
        for one in arguments
    ]
    tune, kernel = parameters(question), template.kernel.read_text()

    def source(values: dict[str, Any]) -> str:
        """The kernel below the macros that are no knobs: those of the problem and what follows from the config."""
        macros = module.defines(knobs(question, values), problem).items()
        return "".join(f"#define {name} {value}\n" for name, value in macros if name not in tune) + kernel

    random.seed(seed)
    np.random.seed(seed)
    with mended(question) as building, contextlib.redirect_stdout(sys.stderr):
        started = time.perf_counter()
        results, _ = kernel_tuner.tune_kernel(
            module.ENTRY,
            source,
            lambda values: question.launch(knobs(question, values)).grid,
            [told(one) for one in arguments],
            tune,
            grid_div_x=[], grid_div_y=[], grid_div_z=[],
            restrictions=[allowed(question)],
            answer=answer,
            atol=ATOL,
            smem_args={"size": lambda values: question.launch(knobs(question, values)).smem_bytes},
            strategy=strategy,
            strategy_options={"max_fevals": budget},
            lang="CUPY",
            compiler_options=["--std=c++20", f"-I{template.folder}"],
            seed=seed,
            quiet=True,
        )  # fmt: skip
        seconds = time.perf_counter() - started
    return {
        "version": version("kernel_tuner"),
        **outcome(question, results),
        "search_seconds": seconds,
        "space_seconds": sum(building),
    }


def outcome(question: Question, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Its best config and what it visited. It counts every visit as an evaluation, also of a config that it knows."""
    timed = [one for one in results if "__error__" not in one]
    if not timed:
        sys.exit(f"Kernel Tuner timed none of {len(results)} configs")
    best = min(timed, key=lambda one: float(one["time"]))
    return {
        "config": knobs(question, best),
        "told_us": 1e3 * float(best["time"]),
        "evaluated": len(results),
        "distinct": len({tuple(knobs(question, one).values()) for one in results}),
        "failed": len(results) - len(timed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("strategy")
    parser.add_argument("--shape", required=True)
    parser.add_argument("--budget", type=int, required=True)
    parser.add_argument("--max-smem", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    limits = find_gpu()
    if limits is None:
        sys.exit("no GPU")
    template = load_template(shipped("kernel_templates") / "attention")
    problem = parse_shape(AttentionProblem, arguments.shape)
    question = Question(template, SPACE, problem, limits, Ceilings(max_smem_bytes=arguments.max_smem))
    # Else an earlier search's builds, which CuPy and NVRTC keep, would cost this one nothing. The source of a config
    # that fails goes where Kernel Tuner runs.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        os.environ |= {"CUPY_CACHE_DIR": folder, "CUDA_CACHE_PATH": folder}
        print(json.dumps(search(template, question, arguments.strategy, arguments.budget, arguments.seed)))


if __name__ == "__main__":
    main()
