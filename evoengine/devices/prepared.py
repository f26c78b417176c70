"""Input sets with their float64 references, made by a process of their own before a card's workers ask for them.

A worker computes them otherwise, one after the other, on cores that compilers keep busy or that wait for it: those of
the full gate at the mission shape take 0.9 s of a quiet core, 4 s of two busy ones, of a final run of 6 s. A worker
looks for each in its scratch folder first, and waits there for one that is being made (`devices.cuda.references`).
Those of the default config are nearly all: of a finalist's own only the lengths around its tile differ; they are small.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from evoengine.devices.cuda.process import child_environment
from evoengine.devices.cuda.references import derive_seed, input_set
from evoengine.problem import Problem, make_problem, problem_fields
from evoengine.space import Values
from evoengine.template import InputKind, Template, full_checks, load_template

NICE = 10
"""As compilers are: whoever judges meanwhile goes before."""
MOST_FLOPS = 1e10
"""Of a problem whose set is made here: a second on the one core that this process takes, S = 2048 with eight heads.
Larger ones are left to a worker, which has all cores for them."""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""Threads that wait for each other on busy cores take four times as long."""


class Prepared:
    """A scratch `folder` and the process that fills it: for the gate with `seed`, then for the full one with
    `final_seed`. `close` ends both."""

    def __init__(self, template: Template, problem: Problem, values: Values, seed: int, final_seed: int) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="evoengine-")
        self.folder = Path(self._scratch.name)
        asked = [str(template.folder), problem_fields(problem), dict(values), seed, final_seed, str(self.folder)]
        command = [sys.executable, "-m", "evoengine.devices.prepared", json.dumps(asked)]
        null = subprocess.DEVNULL
        self._process = subprocess.Popen(
            command, stdin=null, stdout=null, stderr=null, env=child_environment() | ONE_THREAD
        )

    def wait(self) -> int:
        """Until all are made; the process's exit code. What it could not make a worker makes, or says why not."""
        return self._process.wait()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._scratch.cleanup()


Wanted = tuple[str, Problem, str, InputKind | None]
"""What the seed is derived for, the problem, the set's name and its kind: as `devices.cuda.prove` asks for it."""


def quick(template: Template, problem: Problem, values: Values) -> Iterator[Wanted]:
    """Of the gate that every candidate meets."""
    yield "timed", problem, "timed", None
    for other in template.module.check_problems(values, problem):
        yield "check", other, "check", None


def full(template: Template, problem: Problem, values: Values) -> Iterator[Wanted]:
    """Of the gate that finalists meet, the most expensive first: a worker that is early begins with the others."""
    known = list(quick(template, problem, values))
    for one in reversed(full_checks(template.module, values, problem)):
        yield f"full {one.kind.name}", one.problem, one.kind.name, one.kind
    yield from known
    yield "renewed", known[min(1, len(known) - 1)][1], "renewed", None


def main(arguments: Sequence[str]) -> None:
    parent = os.getppid()
    folder, fields, values, seed, final_seed, scratch = json.loads(arguments[0])
    template = load_template(Path(folder))
    problem = make_problem(template.module.PROBLEM, fields)
    for kind, base in ((quick, seed), (full, final_seed)):
        for purpose, one, name, inputs in kind(template, problem, values):
            if os.getppid() != parent:
                return  # killed, and its scratch folder is nobody's any more
            if one.flops <= MOST_FLOPS:
                input_set(template, one, derive_seed(base, purpose), name, Path(scratch), inputs)


if __name__ == "__main__":
    os.nice(NICE)
    main(sys.argv[1:])
