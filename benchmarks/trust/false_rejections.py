"""Does the gate on the GPU refuse what is right? Random feasible configs at five shapes, all of which must pass.

    python -m benchmarks.trust.false_rejections --output studies/h200/trust.json

At each shape 300 distinct kernels, by default, are judged as a search judges them, drawn with a fixed seed from all
configs that pass the static gate. What the compiler or the resource gate refuses is counted and not judged. The section
`false_rejections` is written anew after every 50 kernels, and what the file has of such a card, driver and code is not
judged again: a run that breaks off goes on. Exit code 1 where a config was rejected or the time did not suffice.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.trust.document import judge_digest, kept_section, put_section, this_card
from benchmarks.trust.planted.building import request
from benchmarks.trust.planted.mutant import SPACE, TEMPLATE
from evoengine.build import Builder
from evoengine.build.toolchain import find_toolchain
from evoengine.devices.cuda import CudaDevice, find_gpu
from evoengine.errors import EvoengineError, TemplateError, UserError
from evoengine.gates import Ceilings
from evoengine.hardware import DeviceLimits
from evoengine.problem import AttentionProblem, parse_shape
from evoengine.question import Question
from evoengine.space import Config
from evoengine.verdict import Artifact, Candidate, Rejection

SHAPES = (
    "1,8,512,64",
    "1,4,203,64,causal",
    "1,8,333,128,kv_heads=2,dtype=bf16",
    "1,4,150,64,seq_k=411,causal,diagonal=-40",
    "2,4,1023,64,lse",
)
"""The mission; ragged and causal; grouped heads in bf16; 40 rows that see no key; two batches with the log-sum-exp."""
SEED = 20_252
WRITE_EVERY = 50
NOTHING_BEATS = 0.0
"""A best time beside which every kernel is slow. Times are not on trial here: so each gets the fewest windows, and none
is proven again in a fresh process because it is fast."""
SPARE = 1.25
"""Configs drawn for each one that is judged: some are twins of others, some the resource gate refuses."""

Row = dict[str, Any]


def asked(shape: str, limits: DeviceLimits) -> Question:
    return Question(TEMPLATE, SPACE, parse_shape(AttentionProblem, shape), limits, Ceilings())


def draw(question: Question, count: int, seed: int) -> list[Config]:
    """`count` different feasible configs, or all where there are fewer, in random order."""
    points = question.feasible.points
    return [SPACE.config_at(point) for point in random.Random(seed).sample(points, min(count, len(points)))]


@dataclasses.dataclass
class Batch:
    """What a shape has to judge: the control, distinct kernels, and how many configs were refused before."""

    question: Question
    control: tuple[Config, Artifact]
    work: list[tuple[Candidate, Artifact]]
    refused: list[Row]
    twins: int


def prepare(shape: str, limits: DeviceLimits, count: int) -> Batch:
    """Draw and build.

    Raises:
        TemplateError: the default config does not build.
    """
    question = asked(shape, limits)
    configs = [question.default, *draw(question, math.ceil(SPARE * count), SEED)]
    with Builder(TEMPLATE, limits.arch) as builder:
        default, *results = builder.build([request(config.values, question.problem) for config in configs])
    if isinstance(default, Rejection):
        raise TemplateError(f"the default config does not build at {shape}: {default.reason}")
    batch = Batch(question, (configs[0], default), [], [], 0)
    seen: set[str] = set()
    for number, (config, result) in enumerate(zip(configs[1:], results, strict=True)):
        if len(batch.work) == count:
            break
        refusal = result if isinstance(result, Rejection) else question.resource_gate(config.values, result)
        if refusal is not None:
            batch.refused.append(in_full(config, refusal))
            continue
        assert isinstance(result, Artifact), "else it was refused"
        identity = question.identity(config.values, result.cubin_sha256)
        if identity in seen:
            batch.twins += 1
            continue
        seen.add(identity)
        batch.work.append((Candidate(number, config, "random"), result))
    return batch


def in_full(config: Config, rejection: Rejection) -> Row:
    """A rejection with everything that a reader needs to judge it again; infinities as text, which JSON lacks."""

    def plain(value: Any) -> Any:
        return value if not isinstance(value, float) or math.isfinite(value) else str(value)

    return {
        "config": config.label,
        "gate": str(rejection.gate),
        "reason": rejection.reason,
        "evidence": {name: plain(value) for name, value in rejection.evidence.items()},
        "checks": [
            {name: plain(value) for name, value in dataclasses.asdict(check).items()} for check in rejection.checks
        ],
    }


def judge(batch: Batch, limits: DeviceLimits, until: float, before: Row) -> Iterator[tuple[Row, Row]]:
    """The shape's row so far and the environment it was measured in, after every 50 kernels and at the end.

    `until` is when to stop, on the monotonic clock; `before` is the row of an earlier run, which had the same kernels.
    """
    started = time.monotonic()
    judged, input_sets = before.get("judged", 0), before.get("input_sets", 0)
    rejections: list[Row] = list(before.get("rejected", ()))
    (default, artifact), problem = batch.control, batch.question.problem

    def row() -> Row:
        return {
            "problem": problem.label,
            "feasible": len(batch.question.feasible.points),
            "judged": judged,
            "wanted": len(batch.work),
            "input_sets": input_sets,
            "rejected": list(rejections),
            "refused_before_the_card": batch.refused,
            "twins": batch.twins,
            "seconds": before.get("seconds", 0.0) + time.monotonic() - started,
        }

    with CudaDevice(TEMPLATE, problem, limits, seed=SEED, best_us=NOTHING_BEATS) as device:
        environment = dict(device.start(default.values, artifact).environment)
        for one in batch.work[judged:]:
            ((candidate, verdict),) = device.judge([one])
            judged += 1
            input_sets += len(verdict.checks)
            if isinstance(verdict, Rejection):
                rejections.append(in_full(candidate.config, verdict))
            if time.monotonic() > until:
                break
            if judged % WRITE_EVERY == 0:
                yield row(), environment
    yield row(), environment


def batches(shapes: Sequence[str], limits: DeviceLimits, count: int) -> Iterator[Batch]:
    """The shapes in order, each built while the card is busy with the one before."""
    with ThreadPoolExecutor(1) as builder:
        jobs = [builder.submit(prepare, shape, limits, count) for shape in shapes]
        try:
            for job in jobs:
                yield job.result()
        finally:
            for job in jobs:
                job.cancel()


def run(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Judge random configs of the attention template, which are all right.")
    parser.add_argument("--output", metavar="FILE", type=Path, required=True, help="trust document to write to")
    parser.add_argument("--configs", metavar="N", type=int, default=300, help="kernels a shape (default: 300)")
    parser.add_argument("--seconds", metavar="S", type=float, default=240.0, help="when to stop (default: 240)")
    arguments = parser.parse_args(argv)
    if arguments.configs < 1:
        raise UserError(f"--configs {arguments.configs}: judge one at least")
    limits = find_gpu()
    if limits is None:
        raise UserError("no GPU here: `evoengine doctor` says what is missing; tests/test_mutants.py needs none")
    started = time.monotonic()
    setting = {
        **this_card(limits),
        "judge": judge_digest(),
        "toolchain": find_toolchain("nvrtc").version,
        "template_digest": TEMPLATE.digest,
        "space_digest": SPACE.digest,
        "configs": arguments.configs,
    }
    before = kept_section(arguments.output, "false_rejections", setting)
    rows: dict[str, Row] = {row["problem"]: row for row in before.get("shapes", ())}
    labels = {shape: parse_shape(AttentionProblem, shape).label for shape in SHAPES}
    left = [shape for shape, label in labels.items() if label not in rows or not _complete(rows[label])]
    for batch in batches(left, limits, arguments.configs):
        label = batch.question.problem.label
        for row, environment in judge(batch, limits, started + arguments.seconds, rows.get(label, {})):
            rows[label] = row
            section = {
                "shapes": list(rows.values()),
                "seed": SEED,
                "judged": sum(one["judged"] for one in rows.values()),
                "wanted": arguments.configs * len(SHAPES),
                "rejected": sum(len(one["rejected"]) for one in rows.values()),
                "seconds": before.get("seconds", 0.0) + time.monotonic() - started,
            }
            put_section(arguments.output, "false_rejections", section, {**environment, **setting})
            seconds = f"{row['seconds']:.0f} s"
            print(
                f"{label}: {len(row['rejected'])} of {row['judged']} rejected, {seconds}", file=sys.stderr, flush=True
            )
        if time.monotonic() - started > arguments.seconds:
            print(f"stopped after {arguments.seconds:g} s", file=sys.stderr)
            break
    complete = len(rows) == len(SHAPES) and all(map(_complete, rows.values()))
    return 0 if complete and not any(row["rejected"] for row in rows.values()) else 1


def _complete(row: Row) -> bool:
    return bool(row["judged"] == row["wanted"])


def main() -> int:
    try:
        return run(sys.argv[1:])
    except EvoengineError as error:
        print(f"false_rejections: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
