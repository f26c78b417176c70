"""`evoengine profile`: what bounds the elites of a study, by Nsight Compute."""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evoengine.archive.archive import Archive
from evoengine.archive.records import Elite, StudySpec
from evoengine.archive.study import Study
from evoengine.bottleneck import diagnose
from evoengine.cli.resolve import find_target, reopen
from evoengine.cli.storage import existing_storage
from evoengine.cli.tables import console
from evoengine.cli.toolkit import show_profiles
from evoengine.devices.cuda.bare import Job
from evoengine.devices.cuda.lock import GpuLock
from evoengine.devices.cuda.ncu import PROGRAM, WARM_UP, profile
from evoengine.devices.cuda.probe import find_uuid
from evoengine.devices.cuda.watched import require_tool
from evoengine.errors import UserError
from evoengine.problem import problem_fields
from evoengine.question import Question
from evoengine.summary import summarise


def run(arguments: argparse.Namespace) -> int:
    executable = require_tool(PROGRAM, "profile")
    with closing(Archive.open(existing_storage(arguments.storage))) as archive:
        study = archive.open_study(arguments.study)
        if study.spec.members:
            raise UserError(
                f"study {study.name} is of {len(study.spec.members)} shapes, profile of one kernel at one: search the "
                "shape in question by itself, with --warm-start of this study"
            )
        ordinal = _card_of(study.spec, arguments.device)
        question = reopen(study.spec, template_folder=arguments.template, space_file=arguments.space)
        elites = study.elites()[: arguments.top]
        if not elites:
            raise UserError(f"study {study.name} holds no confirmed config yet: search on with `resume`")
        progress = console(stderr=True)
        with _locked(ordinal):
            for number, elite in enumerate(elites, 1):
                progress.print(f"{number}/{len(elites)} trial {elite.number}", soft_wrap=True)
                found = _profile(executable, question, study, elite, ordinal)
                if not study.note_elite(elite.number, {"profile": found}):
                    raise UserError(f"trial {elite.number} of {study.name} is no elite any more: profile again")
        records = study.records()
        known = summarise(study, records, question.launches(records), question.limits, arguments.top)
        rows = [row for row in known["elites"] if row["profile"]]
    if arguments.json:
        print(json.dumps({"study": study.name, "elites": rows}, indent=2))
    else:
        console().print(f"{study.name}, {study.spec.problem_label} on {study.spec.device}", soft_wrap=True)
        show_profiles(rows)
    return 0


def _card_of(spec: StudySpec, device: str) -> int:
    """The ordinal of the study's card.

    Raises:
        UserError: it is not here.
    """
    found = find_target(device, "l4", None)
    if found.ordinal is None or found.device.name != spec.device:
        here = "no GPU" if found.ordinal is None else found.device.name
        raise UserError(
            f"study {spec.name} was measured on {spec.device}, here is {here}: profile it where that card is"
        )
    return found.ordinal


@contextmanager
def _locked(ordinal: int) -> Iterator[None]:
    """The card for us alone: a search that measures on it would measure us.

    Raises:
        UserError: another evoengine has it.
    """
    uuid = find_uuid(ordinal)
    lock = GpuLock(uuid) if uuid else None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _profile(executable: Path, question: Question, study: Study, elite: Elite, ordinal: int) -> dict[str, Any]:
    """One elite's own cubin on the study's problem, with random inputs."""
    record = next(record for record in study.records() if record.number == elite.number)
    with tempfile.TemporaryDirectory(prefix="evoengine-") as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(elite.cubin)
        job = Job(
            str(question.template.folder),
            str(cubin),
            record.config.values,
            [problem_fields(question.problem)],
            ordinal,
            study.spec.seed,
            WARM_UP + 1,
        )
        figures, metrics = profile(executable, job)
    return {
        "diagnosis": diagnose(figures),
        "figures": dataclasses.asdict(figures),
        "metrics": metrics,
        "cubin_sha256": elite.cubin_sha256,
        "profiled_at": datetime.now(UTC).isoformat(),
    }
