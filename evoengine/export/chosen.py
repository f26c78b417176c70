"""The config that leaves a study, with everything that other builds need to know of it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from evoengine import __version__
from evoengine.archive.records import Elite, Record
from evoengine.archive.study import Study
from evoengine.errors import SeeStudies, UserError
from evoengine.export.header import GridDim, HeaderFacts
from evoengine.export.wisdom import problem_macros
from evoengine.problem import Problem, problem_fields
from evoengine.question import Question
from evoengine.space import SearchSpace, Values
from evoengine.summary import SDPA, summarise
from evoengine.template import Template, TemplateModule
from evoengine.verdict import Rejection, on_shapes

METHOD = "device time per launch, warm L2, CUDA-graph windows interleaved with the default config"


@dataclass(frozen=True)
class Chosen:
    """One config on its way out. `where` names the study or the header it comes from.

    `row` are the figures that tables show of it. `cubin` is that of the final run, or None where there was none. `note`
    is a line for the user.
    """

    where: str
    facts: HeaderFacts
    values: Values
    space: SearchSpace
    template: Template
    row: Mapping[str, Any]
    cubin: bytes | None = None
    note: str = ""

    @property
    def problem_macros(self) -> dict[str, int]:
        """The macros that make it this kernel and not another."""
        return problem_macros(self.facts.defines, (axis.name for axis in self.space))


def choose(study: Study, question: Question, trial: int | None = None) -> list[Chosen]:
    """The trial asked for; else the winner; else the best there is, confirmed before measured before estimated.

    One for the study's problem; in a study of several the same config for each, with its numbers there.

    Raises:
        UserError: no such trial passed every gate.
    """
    records = study.records()
    summary = summarise(study, records, question.launches(records), question.limits, top=study.spec.budget)
    row = chosen_row(summary, question, records, trial)
    kept = trial is None and summary["elites"] and not _faster(summary)
    note = f"{summary['winner']}, which this is; --trial N exports another config" if kept else ""
    record = next(record for record in records if record.number == row["trial"])
    elite = next((elite for elite in study.elites() if elite.number == record.number), None)
    return [
        Chosen(
            study.name,
            _facts(build, study, summary, own),
            row["config"],
            question.space,
            question.template,
            own,
            build.cubin,
            note,
        )
        for build, own in _at_each(question, record, elite, row)
    ]


@dataclass(frozen=True, slots=True)
class _Built:
    """A config as it was built for one problem."""

    question: Question
    compiler: str
    cubin_sha256: str
    registers: int
    spill_bytes: int
    cubin: bytes | None


def _at_each(
    question: Question, record: Record, elite: Elite | None, row: Mapping[str, Any]
) -> Iterator[tuple[_Built, dict[str, Any]]]:
    """The config at every problem: how it was built for it, and what tables show of it there."""
    assert record.build is not None, "a config that passed every gate was built"
    build, compiler = record.build, record.build.compiler
    image = None if elite is None else elite.cubin
    if question.members == (question,):
        used = build.resources
        yield _Built(question, compiler, build.cubin_sha256, used.registers, used.spill_bytes, image), dict(row)
        return
    assert record.verdict is not None, "a config that passed every gate was judged"
    common = {name: row[name] for name in ("trial", "label", "config")}
    cubins: dict[str, bytes] = {}
    at = 0
    known = on_shapes(record.verdict.evidence if elite is None else elite.evidence)
    labels = [one.problem.label for one in question.members]
    if not labels == [one["shape"] for one in known] == [one["shape"] for one in row.get("shapes", ())]:
        raise UserError(f"trial {record.number} is damaged: it has not the shapes of its study, search again")
    for one, own, built in zip(question.members, row["shapes"], known, strict=True):
        sha = built["cubin_sha256"]
        if image is not None and sha not in cubins:
            cubins[sha] = image[at : at + built["cubin_bytes"]]
            at += built["cubin_bytes"]
        yield _Built(one, compiler, sha, built["registers"], built["spill_bytes"], cubins.get(sha)), {**common, **own}


def better(one: Chosen, other: Chosen) -> Chosen:
    """The better of two on the same question: a measured time before an estimate, then the lower one."""

    def order(chosen: Chosen) -> tuple[bool, float]:
        facts = chosen.facts
        return facts.median_us is None, facts.median_us or facts.estimated_us or 0.0

    return min(one, other, key=order)


def chosen_row(
    summary: dict[str, Any], question: Question, records: Sequence[Record], trial: int | None
) -> dict[str, Any]:
    """The trial that stands for a study: the one asked for, else the winner.

    After a final run without a winner that is the default config, with its time in that run; before any final run the
    best that was measured, or else estimated.

    Raises:
        UserError: there is no such trial, it did not pass every gate, or the default config has no trial.
    """
    rows: list[dict[str, Any]] = [*summary["elites"], *summary["measured"], *summary["shortlist"]]
    if trial is not None:
        for row in rows:
            if row["trial"] == trial:
                return row
        raise _not_to_be_had(summary["study"], records, trial)
    if not rows:
        raise no_config(summary["study"])
    if faster := _faster(summary):
        return faster[0]
    if not summary["elites"]:
        return rows[0]
    default = next((row for row in rows if row["config"] == question.default.values), None)
    if default is None:
        raise SeeStudies(
            f"study {summary['study']}: {summary['winner']}, which has no trial to export: choose another config with "
            "--trial N, ",
            f"evoengine show {shlex.quote(summary['study'])}",
        )
    if "verdict" in default or summary["default"]["median_us"] is None:
        return default
    return {**default, **summary["default"]}


def no_config(study: str) -> SeeStudies:
    """Nothing in a study passed every gate."""
    return SeeStudies(
        f"study {study} holds no config that passed every gate: ",
        f"evoengine show {shlex.quote(study)}",
        "evoengine studies",
    )


def _not_to_be_had(study: str, records: Sequence[Record], trial: int) -> UserError:
    """Why a trial cannot leave its study."""
    record = next((one for one in records if one.number == trial), None)
    if record is None:
        last = max((one.number for one in records), default="none")
        return UserError(f"study {study} has no trial {trial}: its last is {last}")
    if record.twin_of is not None:
        return UserError(f"trial {trial} of {study} is the same kernel as trial {record.twin_of}: name that one")
    if isinstance(record.verdict, Rejection):
        why = f"did not pass every gate ({record.verdict.gate}: {record.verdict.reason})"
        return UserError(f"trial {trial} of {study} {why}: name another with --trial, or none for the best")
    return UserError(f"trial {trial} of {study} is not judged yet: search on with `resume`")


def _faster(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in summary["elites"] if row["verdict"] == "FASTER"]


def _method(row: dict[str, Any]) -> str:
    if "estimated_us" in row:
        return "none"
    if "verdict" in row:
        return f"{METHOD} and the baselines in a final run: {row['verdict']} against the default config"
    return f"{METHOD} in the search, not confirmed by a final run"


def _facts(build: _Built, study: Study, summary: dict[str, Any], row: dict[str, Any]) -> HeaderFacts:
    problem = build.question.problem
    sdpa = next((one for one in summary["baselines"] if one["name"] == SDPA and "median_us" in one), None)
    sdpa = None if "shapes" in summary else sdpa  # a mean over the shapes says nothing of one
    measured = row.get("median_us")
    speedup = row.get("ratio_to_sdpa") or (sdpa["median_us"] / measured if sdpa and measured else None)
    return HeaderFacts(
        template=study.spec.template,
        template_digest=study.spec.template_digest,
        space=study.spec.space,
        space_digest=study.spec.space_digest,
        config=row["label"],
        shape=problem.label,
        problem=problem_fields(problem) if study.spec.members else study.spec.problem,
        study=study.name,
        trial=row["trial"],
        device=study.spec.device,
        arch=study.spec.arch,
        driver=str(summary["environment"].get("driver", "none")),
        compiler=build.compiler,
        cubin_sha256=build.cubin_sha256,
        registers=build.registers,
        spill_bytes=build.spill_bytes,
        method=_method(row),
        median_us=measured,
        noise=row.get("noise"),
        speedup_over_sdpa=speedup,
        speedup_over_default=1.0 / row["ratio_to_default"] if measured else None,
        estimated_us=row.get("estimated_us"),
        evoengine_version=__version__,
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        command=study.spec.command,
        **kernel_facts(build.question.template.module, problem, row["config"]),
    )


def kernel_facts(module: TemplateModule, problem: Problem, values: Values) -> dict[str, Any]:
    """The fields of HeaderFacts that a template's host code decides: entry, macros, launch, grid formula, scratch."""
    launch = module.launch(values, problem)
    grid, scratch = getattr(module, "grid", None), getattr(module, "scratch", None)
    return {
        "entry": module.ENTRY,
        "defines": module.defines(values, problem),
        "grid_ctas": launch.grid,
        "block_threads": launch.block,
        "smem_bytes": launch.smem_bytes,
        "grid": tuple(GridDim(*dim) for dim in grid(values)) if grid else (),
        "scratch": scratch(values, problem) if scratch else {},
    }
