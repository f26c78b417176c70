"""Record what a GPU makes of the probes and of 42 attention configs, or hold the interpreter against a recording.

    python benchmarks/calibrate_interpreter.py --output tests/data/interpreter_calibration.json     # on the card
    python benchmarks/calibrate_interpreter.py --compare tests/data/interpreter_calibration.json    # anywhere

Both print how far apart the two are, and end with exit code 1 where that is further than they may be. Only `--output`
needs a GPU. Run it from the repository's root, evoengine installed with `pip install -e` or PYTHONPATH=. set.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.calibration.cases import SEED, Case, attention_cases, decode, make_record, probe_cases
from benchmarks.calibration.compare import difference, disagreement, interpret
from evoengine import oracle
from evoengine.build import Builder
from evoengine.verdict import Artifact

if TYPE_CHECKING:  # torch takes seconds to import, and only recording needs it
    from evoengine.devices.cuda.card import Card

REPEATS = 5
"""Launches of every case; their outputs must be bit-equal."""
RECORDED = ("gpu", "compute_capability", "driver", "cuda_driver", "cuda", "torch", "numpy", "python")
"""What a recording keeps of the environment."""


def build(cases: Sequence[Case], arch: str) -> tuple[list[Artifact], str]:
    """An artifact for each case, all of one template, and the compiler's version."""
    with Builder(cases[0].template, arch) as builder:
        results = builder.build([case.request for case in cases])
        version = builder.toolchain.version
    artifacts = [result for result in results if isinstance(result, Artifact)]
    if len(artifacts) < len(results):
        sys.exit(next(str(result) for result in results if not isinstance(result, Artifact)))
    return artifacts, version


def record(card: Card, groups: Sequence[Sequence[Case]]) -> dict[str, Any]:
    """Run every case on a card; the cases of one group share a template."""
    from evoengine.devices.cuda.buffers import ProblemBuffers, observe

    records: dict[str, dict[str, Any]] = {}
    digests = {}
    for cases in groups:
        artifacts, compiler = build(cases, card.limits.arch)
        digests[cases[0].template.name] = cases[0].template.device_digest
        for case, artifact in zip(cases, artifacts, strict=True):
            module = case.template.module
            buffers = ProblemBuffers(case.template, case.launched, case.inputs(), card.device)
            kernel = card.load(artifact.cubin.read_bytes(), module.ENTRY)
            arguments = buffers.arguments(module.arguments(case.values, case.launched))
            start = card.bind(kernel, module.launch(case.values, case.launched), arguments)
            observed, _ = observe(start, buffers, REPEATS, card.scrub, card.synchronize)
            kernel.unload()
            if observed.repeat_mismatches or observed.guard_hits or observed.inputs_changed:
                sys.exit(f"{case.name}: not fit to be recorded: {observed}")
            more = {} if case.is_probe else {"rel_fro": _error(case, observed)}
            records[case.name] = make_record(case, observed.outputs[case.output], **more)
    environment = {name: value for name, value in card.environment().items() if name in RECORDED}
    source = {"seed": SEED, "arch": card.limits.arch, "compiler": compiler, "digests": digests}
    return {"environment": environment, **source, "cases": records}


def _error(case: Case, observed: oracle.Observed) -> float:
    """Relative Frobenius error of the whole output against float64."""
    made = oracle.make_input_set(case.template, case.launched, SEED, "calibration")
    check = oracle.check(case.template, made, observed)
    if check.reason:
        sys.exit(f"{case.name}: the card's output is wrong: {check.reason}")
    return float(f"{check.rel_fro:.4g}")


def compare(recording: dict[str, Any], groups: Sequence[Sequence[Case]]) -> bool:
    """Interpret every case, built for the recorded architecture, and print how far it is from the card.

    True where no case disagrees.
    """
    agreed = True
    print(f"{'case':46} elements  unequal  NaN bits  classes        ulps  relative  of terms")
    for cases in groups:
        artifacts, _ = build(cases, recording["arch"])
        for case, artifact in zip(cases, artifacts, strict=True):
            words = decode(case, recording["cases"][case.name])
            d = difference(case, words, case.sample(interpret(case, artifact.ptx.read_text())))
            why = disagreement(case, d)
            agreed &= not why
            print(
                f"{case.name:46} {d.elements:8} {d.unequal:8} {d.nan_payloads:9} {d.classes:8} {d.ulps:11} "
                f"{d.relative:9.2g} {d.of_terms:9.2g} {why}"
            )
    return agreed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--output", type=Path, help="record on GPU 0 into this file")
    action.add_argument("--compare", type=Path, help="interpret, and compare with this recording")
    arguments = parser.parse_args()

    groups = (list(probe_cases()), list(attention_cases()))
    if arguments.output:
        from evoengine.devices.cuda.card import Card

        started = time.perf_counter()
        recording = record(Card(0), groups)
        arguments.output.write_text(json.dumps(recording, indent=1) + "\n")
        seconds, size = time.perf_counter() - started, arguments.output.stat().st_size
        print(f"{recording['environment']['gpu']}: {len(recording['cases'])} cases in {seconds:.1f} s, {size} B")
    sys.exit(not compare(json.loads((arguments.output or arguments.compare).read_text()), groups))


if __name__ == "__main__":
    main()
