"""The config that leaves a study, with everything that other builds need to know of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from evoengine import __version__
from evoengine.archive.records import Record
from evoengine.archive.study import Study
from evoengine.errors import UserError
from evoengine.export.header import GridDim, HeaderFacts
from evoengine.export.wisdom import problem_macros
from evoengine.question import Question
from evoengine.space import SearchSpace, Values
from evoengine.summary import SDPA, summarise
from evoengine.template import Template

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


def choose(study: Study, question: Question, trial: int | None = None) -> Chosen:
    """The trial asked for; else the winner; else the best there is, confirmed before measured before estimated.

    Raises:
        UserError: no such trial passed every gate.
    """
    records = study.records()
    summary = summarise(study, records, question.launches(records), question.limits, top=study.spec.budget)
    row = chosen_row(summary, question, trial)
    elites = {elite.number: elite.cubin for elite in study.elites()}
    record = next(record for record in records if record.number == row["trial"])
    facts = _facts(question, study, summary, row, record)
    kept = trial is None and summary["elites"] and not _faster(summary)
    note = f"{summary['winner']}, which this is; --trial N exports another config" if kept else ""
    cubin = elites.get(row["trial"])
    return Chosen(study.name, facts, row["config"], question.space, question.template, row, cubin, note)


def better(one: Chosen, other: Chosen) -> Chosen:
    """The better of two on the same question: a measured time before an estimate, then the lower one."""

    def order(chosen: Chosen) -> tuple[bool, float]:
        facts = chosen.facts
        return facts.median_us is None, facts.median_us or facts.estimated_us or 0.0

    return min(one, other, key=order)


def chosen_row(summary: dict[str, Any], question: Question, trial: int | None) -> dict[str, Any]:
    """The trial that stands for a study: the one asked for, else the winner.

    After a final run without a winner that is the default config, with its time in that run; before any final run the
    best that was measured, or else estimated.

    Raises:
        UserError: no such trial passed every gate, or the default config has no trial.
    """
    rows: list[dict[str, Any]] = [*summary["elites"], *summary["measured"], *summary["shortlist"]]
    if trial is not None:
        for row in rows:
            if row["trial"] == trial:
                return row
        raise UserError(f"trial {trial} of {summary['study']} did not pass every gate: see `evoengine show --top 50`")
    if not rows:
        raise UserError(f"study {summary['study']} holds no config that passed every gate: search on with `resume`")
    if faster := _faster(summary):
        return faster[0]
    if not summary["elites"]:
        return rows[0]
    default = next((row for row in rows if row["config"] == question.default.values), None)
    if default is None:
        raise UserError(
            f"study {summary['study']}: {summary['winner']}, which has no trial to export: choose another config of "
            "`evoengine show` with --trial N"
        )
    if "verdict" in default or summary["default"]["median_us"] is None:
        return default
    return {**default, **summary["default"]}


def _faster(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in summary["elites"] if row["verdict"] == "FASTER"]


def _method(row: dict[str, Any]) -> str:
    if "estimated_us" in row:
        return "none"
    if "verdict" in row:
        return f"{METHOD} and the baselines in a final run: {row['verdict']} against the default config"
    return f"{METHOD} in the search, not confirmed by a final run"


def _facts(
    question: Question, study: Study, summary: dict[str, Any], row: dict[str, Any], record: Record
) -> HeaderFacts:
    module, problem = question.template.module, question.problem
    launch = question.launch(row["config"])
    sdpa = next((one for one in summary["baselines"] if one["name"] == SDPA and "median_us" in one), None)
    measured = row.get("median_us")
    speedup = row.get("ratio_to_sdpa") or (sdpa["median_us"] / measured if sdpa and measured else None)
    grid, scratch = getattr(module, "grid", None), getattr(module, "scratch", None)
    assert record.build is not None, "a config that passed every gate was built"
    return HeaderFacts(
        template=study.spec.template,
        template_digest=study.spec.template_digest,
        space=study.spec.space,
        space_digest=study.spec.space_digest,
        entry=module.ENTRY,
        config=row["label"],
        shape=problem.label,
        problem=study.spec.problem,
        study=study.name,
        trial=row["trial"],
        device=study.spec.device,
        arch=study.spec.arch,
        driver=str(summary["environment"].get("driver", "none")),
        compiler=record.build.compiler,
        cubin_sha256=record.build.cubin_sha256,
        registers=record.build.resources.registers,
        spill_bytes=record.build.resources.spill_bytes,
        method=_method(row),
        median_us=measured,
        noise=row.get("noise"),
        speedup_over_sdpa=speedup,
        speedup_over_default=1.0 / row["ratio_to_default"] if measured else None,
        estimated_us=row.get("estimated_us"),
        evoengine_version=__version__,
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        command=study.spec.command,
        defines=module.defines(row["config"], problem),
        grid_ctas=launch.grid,
        block_threads=launch.block,
        smem_bytes=launch.smem_bytes,
        grid=tuple(GridDim(*dim) for dim in grid(row["config"])) if grid else (),
        scratch=scratch(row["config"], problem) if scratch else {},
    )
