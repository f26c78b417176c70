"""Kernel Tuner's search for an attention config on the first GPU: `python -m benchmarks.tuners.kernel_tuner_search`.

    ... STRATEGY --shape SHAPE --budget N --max-smem BYTES

Prints JSON: its best config, seconds, how many configs it evaluated. It compiles with NVRTC through CuPy and compares
every config's output with the float64 reference before it times it, as far as its `answer` and `atol` go.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from benchmarks.tuners.space import SPACE
from evoengine.gates import Ceilings
from evoengine.hardware import DeviceLimits
from evoengine.problem import AttentionProblem, parse_shape
from evoengine.question import Question
from evoengine.template import Argument, Template, load_template, shipped

ATOL = 1e-3
"""Absolute: all that Kernel Tuner's own check knows. Right fp16 outputs of the mission shape are 2e-4 off at most."""
THREADS = "block_size_x"
PREFIX = "EVO_"


def allowed(question: Question, names: Sequence[str]) -> Any:
    """A constraint that holds while a partly chosen config can still become a feasible one, `names` its parameters.

    Without the look ahead every point of the product would be visited, 24 million.
    """
    from constraint import FunctionConstraint, Unassigned

    axes = [axis.name for axis in question.space]
    place_of = {f"{PREFIX}{name}": place for place, name in enumerate(axes)}
    points = question.feasible.points
    configs = [tuple(axis.choices[i] for axis, i in zip(question.space, point, strict=True)) for point in points]
    begun: dict[tuple[int, ...], set[tuple[int, ...]]] = {}

    def possible(*values: Any) -> bool:
        given = {name: value for name, value in zip(names, values, strict=True) if value is not Unassigned}
        threads = given.pop(THREADS, None)
        at = tuple(sorted(place_of[name] for name in given))
        if at not in begun:
            begun[at] = {tuple(config[place] for place in at) for config in configs}
        chosen = {axes[place]: given[f"{PREFIX}{axes[place]}"] for place in at}
        if tuple(chosen.values()) not in begun[at]:
            return False
        return threads is None or len(at) < len(axes) or bool(threads == question.launch(chosen).block)

    return FunctionConstraint(possible, assigned=False)


def parameters(question: Question) -> dict[str, list[int]]:
    """Every knob's macro with its choices, and the threads of a CTA."""
    macros = {f"{PREFIX}{axis.name}": list(axis.choices) for axis in question.space}
    configs = map(question.space.config_at, question.feasible.points)
    return {**macros, THREADS: sorted({question.launch(config.values).block for config in configs})}


def search(template: Template, question: Question, strategy: str, budget: int, seed: int) -> dict[str, Any]:
    """Run one strategy."""
    import kernel_tuner
    from kernel_tuner import searchspace

    problem, module = question.problem, template.module
    inputs = module.inputs(problem, 1)
    arrays = {one.name: inputs[one.name].astype(np.float16) for one in module.tensors(problem) if one.role == "input"}
    arrays |= {one.name: np.zeros(one.shape, np.float16) for one in module.tensors(problem) if one.role == "output"}
    wanted = module.reference(problem, inputs)

    def told(one: Argument) -> Any:
        if one.kind == "tensor":
            return arrays[str(one.value)]
        return np.int32(one.value) if one.kind == "int32" else np.float32(one.value)

    arguments = module.arguments(question.space.default, problem)
    answer = [
        np.asarray(wanted[str(one.value)], np.float16) if one.kind == "tensor" and one.value in wanted else None
        for one in arguments
    ]

    def axes_of(values: dict[str, Any]) -> dict[str, int]:
        return {axis.name: int(values[f"{PREFIX}{axis.name}"]) for axis in question.space}

    def source(values: dict[str, Any]) -> str:
        """The kernel below the macros that are no knobs: those of the problem and what follows from the config."""
        macros = module.defines(axes_of(values), problem).items()
        return "".join(f"#define {name} {value}\n" for name, value in macros if name not in tune) + kernel

    tune, kernel = parameters(question), template.kernel.read_text()
    built: list[float] = []
    build = searchspace.Searchspace.__init__

    def timed(self: Any, *given: Any, **named: Any) -> None:
        begun = time.perf_counter()
        build(self, *given, **named)
        built.append(time.perf_counter() - begun)

    searchspace.Searchspace.__init__ = timed  # its own time, told apart: another description of the rules may be faster
    started = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        results, _ = kernel_tuner.tune_kernel(
            module.ENTRY,
            source,
            lambda values: question.launch(axes_of(values)).grid,
            [told(one) for one in arguments],
            tune,
            grid_div_x=[], grid_div_y=[], grid_div_z=[],
            restrictions=[allowed(question, list(tune))],
            answer=answer,
            atol=ATOL,
            smem_args={"size": lambda values: question.launch(axes_of(values)).smem_bytes},
            strategy=strategy,
            strategy_options={"max_fevals": budget},
            lang="CUPY",
            compiler_options=["--std=c++20", f"-I{template.folder}"],
            seed=seed,
            quiet=True,
        )  # fmt: skip
    seconds = time.perf_counter() - started
    right = [one for one in results if isinstance(one["time"], float)]
    best = min(right, key=lambda one: one["time"])
    return {
        "tool": f"Kernel Tuner {version('kernel_tuner')}, {strategy}",
        "config": axes_of(best),
        "told_us": 1e3 * best["time"],
        "evaluated": len(results),
        "failed": len(results) - len(right),
        "seconds": seconds,
        "space_seconds": sum(built),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("strategy")
    parser.add_argument("--shape", required=True)
    parser.add_argument("--budget", type=int, required=True)
    parser.add_argument("--max-smem", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    from evoengine.devices.cuda import find_gpu

    limits: DeviceLimits | None = find_gpu()
    if limits is None:
        sys.exit("no GPU")
    template = load_template(shipped("kernel_templates") / "attention")
    problem = parse_shape(AttentionProblem, arguments.shape)
    question = Question(template, SPACE, problem, limits, Ceilings(max_smem_bytes=arguments.max_smem))
    print(json.dumps(search(template, question, arguments.strategy, arguments.budget, arguments.seed)))


if __name__ == "__main__":
    main()
