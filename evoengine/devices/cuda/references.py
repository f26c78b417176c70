"""Input sets with their truths: computed once per problem, kept for every candidate and for a respawned worker."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from evoengine.oracle import InputSet, make_input_set
from evoengine.problem import Problem, problem_digest
from evoengine.template import InputKind, Template


def derive_seed(seed: int, purpose: str) -> int:
    """A 32-bit seed of its own for each purpose: no config can be tuned to the numbers it is checked with."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{purpose}".encode()).digest()[:4])


def input_set(
    template: Template, problem: Problem, seed: int, name: str, folder: Path, kind: InputKind | None = None
) -> InputSet:
    """The input set of `problem`, from `folder` where this run has already made it; its seed is that of its kind.

    A float64 reference on the CPU takes 40 ms at the mission shape but a minute at 16 k keys, and a worker may be
    respawned many times. The folder is the run's own: nothing in it can be stale. The workers of several cards share
    it: whoever comes second waits for the first instead of computing the same on the same cores.
    """
    path = folder / f"{problem_digest(problem)}-{seed}.npz"
    with _alone(path.with_suffix(".lock")):
        return _load_or_make(template, problem, seed, name, path, kind)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """The lock goes with the process that holds it, kill -9 included."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _load_or_make(
    template: Template, problem: Problem, seed: int, name: str, path: Path, kind: InputKind | None
) -> InputSet:
    if path.exists():
        with np.load(path, allow_pickle=False) as arrays:
            kinds = {
                kind: {key.partition("/")[2]: arrays[key] for key in arrays.files if key.startswith(f"{kind}/")}
                for kind in ("inputs", "reference", "baseline")
            }
        exact = kind.exact if kind else ()
        return InputSet(name, problem, seed, kinds["inputs"], kinds["reference"], kinds["baseline"], exact)
    made = make_input_set(template, problem, seed, name, kind)
    arrays = {
        f"{kind}/{key}": array
        for kind, group in (("inputs", made.inputs), ("reference", made.reference), ("baseline", made.baseline))
        for key, array in group.items()
    }
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **arrays)
    os.replace(partial, path)
    return made
