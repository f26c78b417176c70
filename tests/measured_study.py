"""A study of the attention template as a search on a card leaves it, written by hand: times, failures, elites."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from evoengine.archive.archive import Archive
from evoengine.archive.lease import Owner
from evoengine.archive.records import Baseline, Elite, StudySpec
from evoengine.archive.study import Study
from evoengine.export.chosen import Chosen
from evoengine.export.header import GridDim, HeaderFacts
from evoengine.hardware import card
from evoengine.problem import AttentionProblem, problem_digest, problem_fields
from evoengine.sampler import Proposal
from evoengine.space import load_space
from evoengine.template import load_template, shipped
from evoengine.verdict import Artifact, Check, Estimate, Gate, Measurement, Rejection, ResourceUsage, Verdict

TEMPLATE = load_template(shipped("kernel_templates") / "attention")
SPACE_PATH = shipped("search_spaces") / "attention.py"
SPACE = load_space(SPACE_PATH)
PROBLEM = AttentionProblem()
GATES = (Gate.STATIC, Gate.COMPILE, Gate.RESOURCES, Gate.CORRECTNESS, Gate.RUNTIME, Gate.TIMEOUT)
BEST = dict(WARPS_M=2, BLOCK_N=128)
"""What the fastest config has other than the default."""


def spec_of(problem: AttentionProblem = PROBLEM, device: str = "l4", name: str = "measured") -> StudySpec:
    limits = card(device)
    return StudySpec(
        name=name, template="attention", template_digest=TEMPLATE.digest, template_folder=str(TEMPLATE.folder),
        space="attention", space_digest=SPACE.digest, space_path=str(SPACE_PATH), axes=SPACE.axes,
        default=SPACE.default, problem=problem_fields(problem), problem_label=problem.label,
        problem_digest=problem_digest(problem), device=limits.name, limits=limits.as_json(), arch=limits.arch,
        toolchain="NVRTC 13.0.88", sampler="evolution", seed=3, budget=24, seconds=None,
        ceilings={"max_registers": None, "max_smem_bytes": None, "max_spill_bytes": None},
        command="evoengine search --budget 24", measures=True, created_at="2026-01-02T03:04:05+00:00",
    )  # fmt: skip


def measurement(us: float) -> Measurement:
    """Windows around `us` microseconds beside a control of 10."""
    windows = (0.99 * us, us, us, 1.02 * us)
    return Measurement(windows, (10.0,) * 4, 10.0, 40, "warm", "converged", checks=(check(),))


def check() -> Check:
    return Check("timed", PROBLEM.label, 3, 2e-4, 3e-4, 1e-4, 2e-4, float("inf"), 0, 0, 0, False, 5, 0, 0.25)


def verdicts() -> list[tuple[dict[str, int], Verdict]]:
    """Nine measured configs, the fastest `BEST`, and one for every gate."""
    timed = [
        (dict(WARPS_M=warps, BLOCK_N=keys), measurement(4.0 + 2.0 * abs(warps - 2) + abs(keys - 128) / 32))
        for warps in (1, 2, 4)
        for keys in (32, 64, 128)
    ]
    failed = [
        (dict(WARPS_M=8, BLOCK_N=keys), Rejection(gate, f"refused by {gate}", {}))
        for keys, gate in zip((16, 32, 48, 64, 96, 128), GATES, strict=True)
    ]
    return [*timed, *failed]


def write_study(
    archive: Archive, spec: StudySpec, judged: list[tuple[dict[str, int], Verdict]] | None = None, *, final: bool = True
) -> Study:
    """Store a study; with `final` the best three are elites and SDPA is a baseline."""
    study = archive.create_study(spec)
    study.acquire(Owner.current())
    study.set_environment({"driver": "580.65", "torch": "2.11.0", "numpy": "2.4.6", "platform": "linux"})
    for values, verdict in judged if judged is not None else verdicts():
        values = {**SPACE.default, **values}
        [candidate] = study.claim([Proposal(SPACE.point(values), "random")])
        unbuilt = isinstance(verdict, Rejection) and verdict.gate in (Gate.STATIC, Gate.COMPILE)
        study.commit(candidate, verdict, None if unbuilt else artifact(spec, values))
    if final:
        study.replace_elites([_elite(study, one.number) for one in study.best(3)])
        study.add_baseline(Baseline("sdpa", measurement(9.0)))
    study.release()
    return study


def artifact(spec: StudySpec, values: dict[str, int]) -> Artifact:
    sha = hashlib.sha256(cubin(values)).hexdigest()
    problem = AttentionProblem(**spec.problem)  # type: ignore[arg-type]
    usage = ResourceUsage(96, 4, 8, 0, 0, TEMPLATE.module.launch(values, problem).smem_bytes)
    return Artifact(sha[:32], Path("none"), sha, usage, 0.5, "NVRTC 13.0.88", spec.arch)


def cubin(values: dict[str, int]) -> bytes:
    return repr(sorted(values.items())).encode()


def _elite(study: Study, number: int) -> Elite:
    record = study.records()[number]
    assert isinstance(record.verdict, Measurement)
    us, content = record.verdict.median_us, cubin(record.config.values)
    return Elite(
        number=number, median_us=1.01 * us, noise=0.01, control_ratio=us / 10.0, baseline_ratios={"sdpa": us / 9.0},
        verdict="FASTER", cubin=content, cubin_sha256=hashlib.sha256(content).hexdigest(),
        source_digest=study.spec.template_digest, environment={"driver": "580.65"}, evidence={"seed": 1},
    )  # fmt: skip


GUESSES: list[tuple[dict[str, int], Verdict]] = [({}, Estimate(8.0, {"model": "latency"})), (BEST, Estimate(5.0, {}))]


def write_guessed(archive: Archive, problem: AttentionProblem = PROBLEM) -> Study:
    """Store the study `guessed`, which has seen no GPU."""
    return write_study(archive, replace(spec_of(problem, name="guessed"), measures=False), GUESSES, final=False)


def make_chosen(
    problem: AttentionProblem = PROBLEM,
    device: str = "l4",
    us: float | None = 5.0,
    *,
    digest: str = TEMPLATE.digest,
    compiler: str = "NVRTC 13.0.88",
    **axes: int,
) -> Chosen:
    """A config as a study or a header would give it; `us` None: never measured."""
    values = {**SPACE.default, **axes}
    module, limits = TEMPLATE.module, card(device)
    launch = module.launch(values, problem)
    facts = HeaderFacts(
        template="attention", template_digest=digest, space="attention", space_digest=SPACE.digest,
        entry=module.ENTRY, config=SPACE.config(values).label, shape=problem.label, problem=problem_fields(problem),
        study=f"of {problem.label}", trial=7, device=limits.name, arch=limits.arch, driver="580.65", compiler=compiler,
        cubin_sha256=hashlib.sha256(cubin(values)).hexdigest(), registers=96, spill_bytes=0, method="windows",
        median_us=us, noise=None if us is None else 0.01, speedup_over_sdpa=None, speedup_over_default=None,
        estimated_us=9.0 if us is None else None, evoengine_version="0.1.0", date="2026-01-02", command="search",
        defines=module.defines(values, problem), grid_ctas=launch.grid, block_threads=launch.block,
        smem_bytes=launch.smem_bytes, grid=tuple(GridDim(*dim) for dim in module.grid(values)),  # type: ignore[attr-defined]
        scratch=module.scratch(values, problem),  # type: ignore[attr-defined]
    )  # fmt: skip
    return Chosen(f"of {problem.label}", facts, values, SPACE, TEMPLATE, {"trial": 7, "label": facts.config})
