"""Candidates built per second, from an empty cache: NVRTC and nvcc side by side on the same random feasible configs.

    python benchmarks/build_rate.py --count 40 > build_rate.json

Wall time: run it on a quiet machine. The goal is 2.5 candidates a second on 2 cores with NVRTC.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from evoengine.build import Builder, BuildRequest
from evoengine.build.toolchain import Compiler
from evoengine.errors import EvoengineError, UserError
from evoengine.gates import Ceilings, hardware_rules
from evoengine.hardware import DeviceLimits, card
from evoengine.problem import parse_shape
from evoengine.space import load_space
from evoengine.template import Template, load_template, shipped
from evoengine.verdict import Artifact


def sample(template: Template, limits: DeviceLimits, shape: str, count: int, seed: int) -> list[BuildRequest]:
    """`count` distinct feasible configs, drawn uniformly.

    Raises:
        UserError: the shape cannot be read, or there are not so many.
    """
    space = load_space(shipped("search_spaces") / "attention.py")
    problem = parse_shape(template.module.PROBLEM, shape)
    axes = tuple(axis.name for axis in space.axes)
    points = space.feasible(problem, limits, hardware_rules(template, axes, Ceilings())).points
    if count > len(points):
        raise UserError(f"{count} configs are asked for, {len(points)} are feasible for {problem.label}")
    requests = []
    for point in random.Random(seed).sample(points, count):
        values = space.config_at(point).values
        smem_bytes = template.module.launch(values, problem).smem_bytes
        requests.append(BuildRequest(template.module.defines(values, problem), smem_bytes))
    return requests


def measure(
    template: Template, arch: str, compiler: Compiler, jobs: int | None, requests: list[BuildRequest]
) -> dict[str, object]:
    """Build everything in one batch and say how long it took and what came out."""
    with (
        tempfile.TemporaryDirectory() as home,
        Builder(template, arch, compiler=compiler, jobs=jobs, home=Path(home)) as builder,
    ):
        started = time.perf_counter()
        results = builder.build(requests)
        seconds = time.perf_counter() - started
        built = [result for result in results if isinstance(result, Artifact)]
        return {
            "compiler": builder.toolchain.version,
            "jobs": builder.jobs,
            "seconds": round(seconds, 2),
            "candidates_per_second": round(len(requests) / seconds, 2),
            "built": len(built),
            "rejected": Counter(result.reason for result in results if not isinstance(result, Artifact)),
            "distinct_cubins": len({artifact.cubin_sha256 for artifact in built}),
            "median_build_seconds": statistics.median(artifact.build_seconds for artifact in built) if built else None,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40, help="candidates to build")
    parser.add_argument("--jobs", type=int, help="compiles at a time (default: all cores)")
    parser.add_argument("--limits", default="l4", help="card to compile for")
    parser.add_argument("--shape", default="1,8,512,64", help="problem, as in `evoengine search --shape`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compiler", choices=("nvrtc", "nvcc"), action="append", help="only this one")
    arguments = parser.parse_args()

    template = load_template(shipped("kernel_templates") / "attention")
    limits = card(arguments.limits)
    requests = sample(template, limits, arguments.shape, arguments.count, arguments.seed)
    rows = {
        compiler: measure(template, limits.arch, compiler, arguments.jobs, requests)
        for compiler in arguments.compiler or ("nvrtc", "nvcc")
    }
    report: dict[str, object] = {"arch": limits.arch, "count": arguments.count, "shape": arguments.shape, "rows": rows}
    if len(rows) == 2:
        report["nvcc_over_nvrtc_seconds"] = round(rows["nvcc"]["seconds"] / rows["nvrtc"]["seconds"], 2)  # type: ignore[operator]
    json.dump(report, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    try:
        main()
    except EvoengineError as error:
        sys.exit(f"build_rate: {error}")
