"""Mutants to cubins, and proof that each differs from the original's."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.trust.planted.mutant import HOPPER, TEMPLATE, Mutant
from evoengine.build import Builder, BuildRequest
from evoengine.errors import TemplateError
from evoengine.problem import Problem
from evoengine.space import Values
from evoengine.template import Template
from evoengine.verdict import Artifact, Rejection


@dataclass(frozen=True, slots=True)
class Built:
    """A mutant, its cubin, and that of the template without the bug at the same config."""

    mutant: Mutant
    original: Artifact
    artifact: Artifact


def request(values: Values, problem: Problem) -> BuildRequest:
    return BuildRequest(TEMPLATE.module.defines(values, problem), TEMPLATE.module.launch(values, problem).smem_bytes)


def build(mutants: Sequence[Mutant], arch: str) -> list[Built]:
    """For `arch`, and for Hopper those that need it.

    Originals in a batch, then every mutant in a folder of its own, as many at a time as there are cores.

    Raises:
        TemplateError: a mutant does not fit the template, does not compile, or is the original's cubin again.
    """
    others, hoppers = ([one for one in mutants if one.needs_hopper is needed] for needed in (False, True))
    built = {one.mutant.name: one for one in (*_build(others, arch), *_build(hoppers, HOPPER))}
    return [built[mutant.name] for mutant in mutants]


def _build(mutants: Sequence[Mutant], arch: str) -> list[Built]:
    cores = len(os.sched_getaffinity(0))
    requests = [request(mutant.values, mutant.problem) for mutant in mutants]
    with Builder(TEMPLATE, arch) as builder:
        originals = builder.build(requests)
    with tempfile.TemporaryDirectory(prefix="evoengine-mutants-") as folder, ThreadPoolExecutor(cores) as pool:
        planted = [mutant.plant(Path(folder) / mutant.name) for mutant in mutants]
        results = list(pool.map(_compile, planted, requests, [arch] * len(mutants)))
    return [_built(*one) for one in zip(mutants, originals, results, strict=True)]


def _compile(template: Template, wanted: BuildRequest, arch: str) -> Artifact | Rejection:
    with Builder(template, arch, jobs=1) as builder:
        (result,) = builder.build([wanted])
    return result


def _built(mutant: Mutant, original: Artifact | Rejection, artifact: Artifact | Rejection) -> Built:
    if isinstance(original, Rejection):
        raise TemplateError(f"the template does not build at the config of mutant {mutant.name}: {original.reason}")
    if isinstance(artifact, Rejection):
        raise TemplateError(f"mutant {mutant.name} does not build: {artifact.reason}")
    if original.cubin_sha256 == artifact.cubin_sha256:
        raise TemplateError(f"mutant {mutant.name} compiles to the original's cubin: its edit changes nothing")
    return Built(mutant, original, artifact)
