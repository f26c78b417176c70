"""`evoengine export`: the best config of a study as a C header."""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from evoengine import __version__
from evoengine.archive.archive import Archive
from evoengine.archive.study import Study
from evoengine.cli.output import write_whole
from evoengine.cli.resolve import reopen
from evoengine.cli.result import summary_of
from evoengine.cli.storage import existing_storage
from evoengine.cli.tables import console
from evoengine.errors import UserError
from evoengine.export.header import GridDim, HeaderFacts, render_header
from evoengine.question import Question
from evoengine.summary import SDPA

METHOD = "device time per launch, warm L2, CUDA-graph windows interleaved with the default config and the baselines"


def run(arguments: argparse.Namespace) -> int:
    with closing(Archive.open(existing_storage(arguments.storage))) as archive:
        study = archive.open_study(arguments.study)
        question = reopen(study.spec, stale=arguments.force)
        summary = summary_of(question, study, top=study.spec.budget)
        row = _row(summary, question, arguments.trial)
        text = render_header(_facts(question, study, summary, row))
    write_whole(arguments.output, text.encode("ascii"), force=arguments.force)
    if arguments.json:
        print(json.dumps({"header": str(arguments.output), **row}, indent=2))
    else:
        console().print(f"{arguments.output}: trial {row['trial']}, {row['label']}, {_worth(row)}", soft_wrap=True)
    return 0


def _row(summary: dict[str, Any], question: Question, trial: int | None) -> dict[str, Any]:
    """The trial to export: the one asked for, else the winner, else the best there is, confirmed before measured.

    Raises:
        UserError: no such trial passed every gate.
    """
    rows: list[dict[str, Any]] = [*summary["elites"], *summary["measured"], *summary["shortlist"]]
    if trial is not None:
        for row in rows:
            if row["trial"] == trial:
                return row
        raise UserError(f"trial {trial} of {summary['study']} did not pass every gate: see `evoengine show --top 50`")
    if not rows:
        raise UserError(f"study {summary['study']} holds no config that passed every gate: search on with `resume`")
    faster: list[dict[str, Any]] = [row for row in summary["elites"] if row["verdict"] == "FASTER"]
    default = [row for row in rows if row["config"] == question.default.values]
    if summary["elites"] and not faster and default:  # no significant winner
        return default[0]
    return [*faster, *rows][0]


def _worth(row: dict[str, Any]) -> str:
    if "estimated_us" in row:
        return f"estimated {row['estimated_us']:.2f} us, not measured"
    if "verdict" in row:
        return f"{row['median_us']:.3f} us in the final run ({row['verdict']} against the default config)"
    return f"{row['median_us']:.3f} us in the search, not confirmed by a final run"


def _facts(question: Question, study: Study, summary: dict[str, Any], row: dict[str, Any]) -> HeaderFacts:
    module, problem = question.template.module, question.problem
    launch = question.launch(row["config"])
    record = next(record for record in study.records() if record.number == row["trial"])
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
        method=METHOD if measured else "none",
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
