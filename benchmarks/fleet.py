"""Candidates a second on 1, 2, 4... cards of one machine, and what the searches find: `evoengine search --devices`.

    python -m benchmarks.fleet --seconds 560 --output studies/h200/fleet.json

`judging`: the same built configs, proven and timed by that many cards; nothing is built meanwhile, and the clock starts
once FIRST of them are judged (`first_seconds`): until a fast one is known each is doubted, and that takes a process of
its own, which is a matter of seconds whatever the number of cards. `search`: the whole command with an empty build
cache and a share of the cores in proportion, so that 1 of 2 cards compiles on half of them; of 800 candidates, since
200 are over before several cards pay (studies/simulated_fleet.json).
Steps take turns over the numbers of cards. The file is written after every step, a later run goes on where it stopped,
and what was measured with another card, driver or judge is dropped.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any

from benchmarks.first_search import first_search
from benchmarks.trust.document import judge_digest, write_document
from evoengine import __version__
from evoengine.build import Builder
from evoengine.cli.cards import one_model
from evoengine.devices.cuda import CudaDevice, Gpu
from evoengine.devices.cuda.device import WORKER
from evoengine.devices.cuda.nvml import Nvml
from evoengine.devices.cuda.spares import Spares
from evoengine.devices.fleet import Fleet
from evoengine.devices.pool import Card
from evoengine.errors import EvoengineError
from evoengine.gates import Ceilings
from evoengine.problem import parse_shape
from evoengine.question import Question
from evoengine.space import load_space
from evoengine.template import load_template, shipped
from evoengine.verdict import Artifact, Candidate, Measurement

START_SECONDS = 30.0
"""Left for the start of a fleet before a step is begun near the end of the time."""

FIRST = 64
"""Verdicts before the clock starts."""

Step = dict[str, Any]


def main() -> int:
    arguments = _arguments()
    cards = one_model(arguments.devices)
    question = _question(cards[0], arguments.shape)
    builder = Builder(question.template, cards[0].limits.arch, jobs=arguments.jobs)
    setting = {
        "gpu": cards[0].limits.name,
        "driver": Nvml(cards[0].uuid).settings().get("driver"),
        "cards": len(cards),
        "cores": builder.jobs,
        "shape": question.problem.label,
        "toolchain": builder.toolchain.version,
        "template_digest": question.template.digest,
        "judge_digest": judge_digest(),
        "candidates": arguments.candidates,
        "budget": arguments.budget,
    }
    document = opened(arguments.output, setting)
    counts = [count for count in arguments.counts if count <= len(cards)]
    end = time.monotonic() + arguments.seconds
    with builder:
        work = _built(question, builder, arguments.candidates)

        def judging(count: int, number: int) -> Step:
            return _judging(question, cards[:count], work, seed=number)

        def search(count: int, number: int) -> Step:
            jobs = max(1, builder.jobs * count // len(cards))
            return _search(cards[:count], arguments.shape, arguments.budget, jobs, seed=number)

        for kind, count, number in missing(document, counts, arguments.rounds):
            if time.monotonic() + START_SECONDS > end:
                print(f"the time is over before {kind} on {count} cards, round {number}: run it again", flush=True)
                return 1
            step = (judging if kind == "judging" else search)(count, number)
            add(document, kind, {"cards": count, "round": number, **step})
            write_document(arguments.output, document)
            print(f"{kind} on {count}: {step['candidates_per_second']:.2f} candidates/s", flush=True)
    print(json.dumps(document["ratios"], indent=1))
    return 0


def opened(path: Path, setting: dict[str, Any]) -> dict[str, Any]:
    """The document of an earlier run in this setting, or a new one."""
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        if found.get("environment") == setting:
            return found
    return {
        "command": shlex.join(["python", "-m", "benchmarks.fleet", *_named(sys.argv[1:], path)]),
        "evoengine": __version__,
        "environment": setting,
        "judging": [],
        "search": [],
        "ratios": {},
    }


def missing(document: dict[str, Any], counts: Sequence[int], rounds: int) -> Iterator[tuple[str, int, int]]:
    """The steps that are still to be done, the numbers of cards in turn."""
    for number in range(rounds):
        for kind in ("judging", "search"):
            done = {(step["cards"], step["round"]) for step in document[kind]}
            for count in counts:
                if (count, number) not in done:
                    yield kind, count, number


def add(document: dict[str, Any], kind: str, step: Step) -> None:
    """Take up a step, and the rates over one card's: medians over rounds."""
    document[kind].append(step)
    document["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    rates: dict[int, list[float]] = {}
    for one in document[kind]:
        rates.setdefault(one["cards"], []).append(one["candidates_per_second"])
    if 1 in rates:
        one_card = statistics.median(rates[1])
        document["ratios"][kind] = {
            str(count): round(statistics.median(found) / one_card, 3) for count, found in sorted(rates.items())
        }


def _judging(question: Question, cards: Sequence[Gpu], work: Sequence[tuple[Candidate, Artifact]], seed: int) -> Step:
    default, rest = work[0], work[1:]
    with tempfile.TemporaryDirectory() as scratch:

        def device(gpu: Gpu) -> CudaDevice:
            options: dict[str, Any] = {"ordinal": gpu.ordinal, "uuid": gpu.uuid, "scratch": Path(scratch)}
            spares = Spares((*WORKER, gpu.uuid))
            return CudaDevice(question.template, question.problem, gpu.limits, seed=seed, spares=spares, **options)

        notes: list[str] = []
        fleet = Fleet(cards[0].limits.name, [Card(gpu.uuid, device(gpu)) for gpu in cards], notes.append)
        with closing(fleet):
            started = time.monotonic()
            setup = fleet.start(default[0].config.values, default[1])
            start_seconds = time.monotonic() - started
            started = time.monotonic()
            judged = fleet.judge(rest)
            verdicts = [verdict for _, verdict in islice(judged, FIRST)]
            first_seconds = time.monotonic() - started
            started = time.monotonic()
            timed = [verdict for _, verdict in judged]
            seconds = time.monotonic() - started
    verdicts += timed
    measured = [verdict for verdict in verdicts if isinstance(verdict, Measurement)]
    return {
        "candidates": len(verdicts),
        "start_seconds": round(start_seconds, 2),
        "first_seconds": round(first_seconds, 2),
        "seconds": round(seconds, 3),
        "candidates_per_second": len(timed) / seconds,
        "measured": len(measured),
        "doubted": {
            "first": sum("doubted" in one.evidence for one in verdicts[:FIRST]),
            "timed": sum("doubted" in one.evidence for one in timed),
        },
        "best_us": min((verdict.median_us for verdict in measured), default=None),
        "by_card": dict(Counter(str(verdict.evidence["card"]) for verdict in verdicts)),
        "control_us": {uuid: card["control_us"] for uuid, card in setup.environment["cards"].items()},
        "notes": notes,
    }


def _search(cards: Sequence[Gpu], shape: str, budget: int, jobs: int, seed: int) -> Step:
    """The whole command."""
    uuids = ",".join(gpu.uuid for gpu in cards)
    options = {"shape": shape, "budget": budget, "devices": uuids, "jobs": jobs, "seed": seed}
    done = first_search([word for name, value in options.items() for word in (f"--{name}", str(value))])
    summary = done.summary
    searching = (done.committed[-1] - done.committed[0]).total_seconds()
    best = summary["elites"][0] if summary["elites"] else {}
    return {
        "jobs": jobs,
        "seconds": round(done.wall_seconds, 2),
        "searching_seconds": round(searching, 2),
        "candidates_per_second": summary["spent"] / searching,
        "spent": summary["spent"],
        "verdicts": summary["verdicts"],
        "by_card": {row["card"]: row["judged"] for row in summary["cards"]},
        "best_us": best.get("median_us"),
        "best_over_default": best.get("ratio_to_default"),
        "best": best.get("label"),
    }


def _question(gpu: Gpu, shape: str) -> Question:
    template = load_template(shipped("kernel_templates") / "attention")
    space = load_space(shipped("search_spaces") / "attention.py")
    return Question(template, space, parse_shape(template.module.PROBLEM, shape), gpu.limits, Ceilings())


def _built(question: Question, builder: Builder, count: int) -> list[tuple[Candidate, Artifact]]:
    """The default config and `count` random ones that build and fit, no two of which are twins.

    Built are as many as are missing, again and again: the card waits for the compilers here.
    """
    points = list(question.feasible.points)
    random.Random(0).shuffle(points)
    left = chain([question.default], map(question.space.config_at, points))
    found: dict[str, tuple[Candidate, Artifact]] = {}
    while configs := list(islice(left, count + 1 - len(found))):
        results = builder.build([question.build_request(config.values) for config in configs])
        for config, built in zip(configs, results, strict=True):
            if isinstance(built, Artifact) and question.resource_gate(config.values, built) is None:
                identity = question.identity(config.values, built.cubin_sha256)
                found.setdefault(identity, (Candidate(len(found), config, "random"), built))
    return list(found.values())


def _named(words: Sequence[str], path: Path) -> list[str]:
    """The options with the file's name alone: its folder is the machine's own affair."""
    return [path.name if word == str(path) else word for word in words]


def _counts(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", default="all", help="cards of one model, as in `evoengine search`")
    parser.add_argument("--counts", type=_counts, default=[1, 2, 4, 8], help="numbers of cards, such as 1,2,4")
    parser.add_argument("--rounds", type=int, default=2, help="times that every number of cards is tried")
    parser.add_argument("--candidates", type=int, default=400, help=f"configs judged in a step, over {FIRST}")
    parser.add_argument("--budget", type=int, default=800, help="candidates of a whole search")
    parser.add_argument("--shape", default="1,8,512,64", help="problem, as in `evoengine search`")
    parser.add_argument("--jobs", type=int, help="compiles at a time with all cards (default: all cores)")
    parser.add_argument("--seconds", type=float, default=560.0, help="begin no step after so many seconds")
    parser.add_argument("--output", type=Path, default=Path("studies/h200/fleet.json"), help="JSON file")
    arguments = parser.parse_args()
    if arguments.candidates <= FIRST:
        parser.error(f"--candidates {arguments.candidates}: {FIRST} are judged before the clock starts, give more")
    return arguments


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EvoengineError as error:
        sys.exit(f"fleet: {error}")
