"""Turn a study into a recorded space, for `evoengine replay`, the estimate and the tests.

    evoengine search --sampler random --budget 5000 --study sample       # on the card
    python benchmarks/record_space.py --study sample --output studies/h200/spaces/mission.jsonl.gz
    python benchmarks/record_space.py --study sample --limits l4 --output studies/h200/spaces/mission_l4.jsonl.gz

Every judged config is written: its gate verdict, resources, median and noise. `--limits` keeps the configs that are
feasible on another card too, with the same measurements: a search under those limits would have built the same cubins.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from evoengine.archive.archive import Archive
from evoengine.archive.study import Study
from evoengine.cli.resolve import reopen
from evoengine.cli.storage import existing_storage
from evoengine.errors import EvoengineError, UserError
from evoengine.hardware import DeviceLimits, card, gate_limits
from evoengine.question import Question
from evoengine.recorded.recording import write_recording
from evoengine.space import Values
from evoengine.verdict import Measurement, Rejection, ResourceUsage

Row = tuple[Values, Rejection | Measurement, ResourceUsage | None]


def rows(study: Study, question: Question, limits: DeviceLimits | None) -> Iterator[Row]:
    """Every trial with a final verdict, in order of its config."""
    for record in sorted(study.records(), key=lambda record: record.point):
        if not isinstance(record.verdict, Rejection | Measurement):
            continue
        values = record.config.values
        if limits is not None and question.space.broken(values, question.problem, limits, question.hardware):
            continue
        yield values, record.verdict, None if record.build is None else record.build.resources


def main() -> int:
    parser = argparse.ArgumentParser(description="Turn a study into a recorded space.")
    parser.add_argument("--study", metavar="NAME", help="name (default: the last one)")
    parser.add_argument("--storage", metavar="URL", default="studies/evoengine.db", help="study database")
    parser.add_argument("--limits", metavar="CARD", help="keep only what is feasible on this card too, such as l4")
    parser.add_argument("--output", metavar="FILE", type=Path, required=True, help="recording to write (.jsonl.gz)")
    arguments = parser.parse_args()
    study = Archive.open(existing_storage(arguments.storage)).open_study(arguments.study)
    if study.spec.members:
        raise UserError(f"study {study.name} is of {len(study.spec.members)} shapes, a recorded space of one")
    question = reopen(study.spec)
    limits = None if arguments.limits is None else gate_limits(question.limits, card(arguments.limits))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    environments = [record.environment for record in study.records() if record.environment]
    count = write_recording(
        arguments.output,
        question.space,
        rows(study, question, limits),
        name=arguments.output.name.partition(".")[0],
        template=study.spec.template,
        device=study.spec.device,
        problem=study.spec.problem,
        command=study.spec.command,
        environment={
            **(environments[-1] if environments else {}),
            "template_digest": study.spec.template_digest,
            "space_digest": study.spec.space_digest,
            "toolchain": study.spec.toolchain,
            "limits": limits.name if limits else question.limits.name,
        },
    )
    size = arguments.output.stat().st_size
    print(json.dumps({"output": str(arguments.output), "configs": count, "bytes": size}))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EvoengineError as error:
        sys.exit(f"record_space: {error}")
