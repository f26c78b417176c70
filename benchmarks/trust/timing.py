"""Whether the timer may be believed, on a GPU: `python -m benchmarks.trust.timing --output studies/h200/trust.json`.

Five parts, each written as soon as it is done. What has passed on such a card, with this driver, compiler and code, is
kept; --part runs some of them again.

    aa           a config against itself, 100 times by the judge and 100 times in a final run: "faster" in at most 5
    compiling    one cubin judged in turn idle and while every core compiles: control-normalised medians within 0.5 %
    processes    one cubin judged in ten fresh processes: control-normalised medians within 1 %
    planted      kernels that differ by 1 % and by 0.5 %, each judged by itself: ranked right in 95 and 80 of 100
    independent  the objective against a clock written apart from ours (`graph_clock`): within 2 %

The config timed is attention's first hand-picked start at the mission shape, beside the default config. The planted
kernels are tests/templates/axpb with some more dependent multiply-adds, which differ in nothing but that number; their
true gap is measured by `graph_clock` and must be within a fifth of what was wanted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from benchmarks.trust.compile_load import CompileLoad
from benchmarks.trust.document import judge_digest, kept_section, put_section, this_card
from benchmarks.trust.graph_clock import independent_us
from evoengine.build import Builder, BuildRequest
from evoengine.build.toolchain import find_toolchain
from evoengine.confirm import MARGIN, compare, confidence
from evoengine.devices.cuda import CudaDevice, Final, Finals, Setup, find_gpu
from evoengine.devices.cuda.results import ratio_interval
from evoengine.errors import EvoengineError, UserError
from evoengine.final_run import FINALISTS
from evoengine.hardware import DeviceLimits
from evoengine.problem import Problem, problem_fields
from evoengine.space import Config, SearchSpace, Values, load_space
from evoengine.template import Template, load_template, shipped
from evoengine.verdict import Artifact, Candidate, Measurement, Rejection

AXPB = Path(__file__).resolve().parents[2] / "tests" / "templates" / "axpb"
SEED = 20_011
TIMES = 100
"""Trials of `aa` and `planted`."""
PROCESSES, JUDGEMENTS = 10, 5
"""Fresh processes, and judgements in each."""
ALTERNATIONS = 24
SETTLE_SECONDS = 0.2
"""Between a change of the load and the next measurement."""
WORK, STEP = 4000, 4
"""Multiply-adds a thread of the planted kernels (tens of microseconds), and how finely they are chosen: the loop has
four in a row."""
GAPS = {"1 %": (0.01, 95), "0.5 %": (0.005, 80)}
"""What is planted, and in how many of 100 it is to be ranked right."""
GAP_ERROR = 0.2
"""Share of a gap by which the true one may miss it; a step of the work is 0.1 %."""
CLOCK_ROUNDS, GAP_ROUNDS = 60, 120

PARTS = ("aa", "compiling", "processes", "planted", "independent")

Part = dict[str, Any]
Keep = Callable[[Part], None]
"""Writes a part that is not done yet."""
Run = Callable[[Part, Keep], Part]
"""Runs a part, given what an earlier run has left of it."""


class TimingDevice(Protocol):
    """What the parts use of `CudaDevice`."""

    def start(self, values: Values, artifact: Artifact) -> Setup: ...

    def judge(self, work: Sequence[tuple[Candidate, Artifact]]) -> Any: ...

    def finals(self, work: Sequence[tuple[Candidate, Artifact]], seed: int) -> Finals: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Built:
    """A config with its cubin."""

    config: Config
    artifact: Artifact

    @property
    def control(self) -> tuple[Values, Artifact]:
        return self.config.values, self.artifact

    def work(self, number: int) -> tuple[Candidate, Artifact]:
        return Candidate(number, self.config, "trust"), self.artifact


class Stand:
    """One template on one problem and one card."""

    def __init__(self, template: Template, problem: Problem, limits: DeviceLimits) -> None:
        self.template = template
        self.problem = problem
        self.limits = limits

    def build(self, configs: Sequence[Config]) -> list[Built]:
        """Raises EvoengineError where one does not build."""
        module = self.template.module
        with Builder(self.template, self.limits.arch) as builder:
            results = builder.build(
                [
                    BuildRequest(
                        module.defines(one.values, self.problem), module.launch(one.values, self.problem).smem_bytes
                    )
                    for one in configs
                ]
            )
        for one, result in zip(configs, results, strict=True):
            if isinstance(result, Rejection):
                raise EvoengineError(f"{one.label} does not build: {result.reason}")
        return [Built(c, r) for c, r in zip(configs, results, strict=True) if isinstance(r, Artifact)]

    def device(self) -> TimingDevice:
        """Forced: on a card unfit for timing the parts are to fail, and to say by how much."""
        return CudaDevice(self.template, self.problem, self.limits, seed=SEED, force=True)

    def renew(self, device: TimingDevice) -> None:
        """End the device's process: the next judgement is made in another."""
        assert isinstance(device, CudaDevice), device
        device._session.stop()

    def clock(self, subjects: Mapping[str, Built], rounds: int) -> dict[str, list[float]]:
        """The second clock's microseconds a launch."""
        files = {name: (one.config.values, one.artifact.cubin) for name, one in subjects.items()}
        return independent_us(self.template.folder, problem_fields(self.problem), files, rounds)

    def load(self, built: Built, processes: int) -> CompileLoad:
        defines = self.template.module.defines(built.config.values, self.problem)
        return CompileLoad(self.template.folder, self.limits.arch, defines, processes)


def judged(device: TimingDevice, built: Built, number: int) -> Measurement:
    """One verdict of the search's own path. What is no measurement is a failure of the proof itself."""
    ((_, verdict),) = device.judge([built.work(number)])
    if not isinstance(verdict, Measurement):
        raise EvoengineError(f"{built.config.label} is rejected: {verdict.reason}")
    return verdict


def aa(stand: Stand, default: Built) -> Part:
    """A config against itself: how often either path calls it faster."""
    with closing(stand.device()) as device:
        setup = device.start(*default.control)
        single = [judged(device, default, number) for number in range(1, TIMES + 1)]
        finals = device.finals([default.work(number) for number in range(1, TIMES + 1)], SEED)
    raced = [final for _, final in finals.finalists if isinstance(final, Final)]
    level = confidence(FINALISTS)
    intervals = [_interval(one, finals, level) for one in raced]
    called = [compare(low, high) for low, high in intervals]
    judge_faster = sum(_faster_by(one, MARGIN) for one in single)
    final_faster = called.count("FASTER")
    return {
        "passed": judge_faster <= 5 and final_faster <= 5 and len(raced) == TIMES,
        **_about(setup),
        "trials": TIMES,
        "judge": {
            "faster": judge_faster,
            "interval_below_1": sum(_faster_by(one, 0.0) for one in single),
            "ratio": _spread([one.ratio for one in single]),
            "second_over_first": statistics.median(_second_over_first(one) for one in single),
            "stopped": {why: sum(one.stopped == why for one in single) for why in ("converged", "limit", "beaten")},
            "flagged": sum(bool(one.flags) for one in single),
        },
        "final": {
            "faster": final_faster,
            "same": called.count("SAME"),
            "slower": called.count("SLOWER"),
            "confidence_each": level,
            "interval_below_1": sum(high < 1 for _, high in intervals),
            "ratio": _spread([one.ratio for one in raced]),
            "windows": len(finals.control.windows_us),
        },
    }


def compiling(stand: Stand, default: Built, subject: Built) -> Part:
    """The same cubin idle and while every core compiles, in turn."""
    cores = len(os.sched_getaffinity(0))
    seen: dict[str, list[Measurement]] = {"idle": [], "compiling": []}
    with closing(stand.device()) as device:
        setup = device.start(*default.control)
        with closing(stand.load(subject, cores)) as load:
            for turn in range(ALTERNATIONS):
                for state, change in (("idle", load.pause), ("compiling", load.run)):
                    change()
                    time.sleep(SETTLE_SECONDS)
                    seen[state].append(judged(device, subject, turn + 1))
    medians = {state: statistics.median(one.ratio for one in found) for state, found in seen.items()}
    shift = medians["compiling"] / medians["idle"] - 1
    return {
        "passed": abs(shift) <= 0.005,
        **_about(setup),
        "compilers": cores,
        "shift": shift,
        **{
            state: {
                "judgements": len(found),
                "launches": [pick(one.launches_per_window for one in found) for pick in (min, max)],
                "ratio": _spread([one.ratio for one in found]),
                "control_us": _spread([statistics.median(one.control_us) for one in found]),
                "noise": statistics.median(one.noise for one in found),
                "half_width": statistics.median(one.evidence["half_width"] for one in found),
                "flagged": sum(bool(one.flags) for one in found),
            }
            for state, found in seen.items()
        },
    }


def processes(stand: Stand, default: Built, subject: Built, before: Part, keep: Keep) -> Part:
    """The same cubin in fresh processes, the default beside itself in each; what `before` has of this card is kept."""
    with closing(stand.device()) as device:
        setup = device.start(*default.control)
        uuid = setup.environment.get("uuid")
        runs = [run for run in before.get("runs", ()) if run["uuid"] == uuid][:PROCESSES]
        while len(runs) < PROCESSES:
            told = {
                name: [judged(device, built, number) for number in range(1, JUDGEMENTS + 1)]
                for name, built in (("subject", subject), ("default", default))
            }
            control_us = statistics.median(us for all_of in told.values() for one in all_of for us in one.control_us)
            ratios = {name: statistics.median(one.ratio for one in found) for name, found in told.items()}
            runs.append({"uuid": uuid, "control_us": control_us, **ratios})
            keep({"passed": False, "environment": setup.environment, "runs": list(runs)})
            stand.renew(device)
    spread = _spread([run["subject"] for run in runs])
    return {
        "passed": spread["max_less_min_over_median"] <= 0.01,
        **_about(setup),
        "processes": PROCESSES,
        "judgements_each": JUDGEMENTS,
        "ratio": spread,
        "default_beside_itself": _spread([run["default"] for run in runs]),
        "process_us": _spread([run["control_us"] for run in runs]),
        "runs": runs,
    }


def planted(stand: Stand, work: Callable[[int], Config]) -> Part:
    """Kernels that differ by a known gap: how often two judgements rank them right."""
    works = {"base": WORK, **{name: WORK + more for name, more in _calibrated(stand, work).items()}}
    built = dict(zip(works, stand.build([work(count) for count in works.values()]), strict=True))
    times = stand.clock(built, GAP_ROUNDS)
    true = {name: _gap(times[name], times["base"]) for name in GAPS}
    order = random.Random(SEED)
    told: dict[str, list[float]] = {name: [] for name in works}
    with closing(stand.device()) as device:
        setup = device.start(*built["base"].control)
        for number in range(1, TIMES + 1):
            for name in order.sample(list(works), len(works)):
                told[name].append(judged(device, built[name], number).median_us)
    right = {name: sum(us > base for us, base in zip(told[name], told["base"], strict=True)) for name in GAPS}
    return {
        "passed": all(
            right[name] >= least and abs(true[name] - gap) <= GAP_ERROR * gap for name, (gap, least) in GAPS.items()
        ),
        **_about(setup),
        "trials": TIMES,
        "base_us": statistics.median(told["base"]),
        "base_spread": _spread(told["base"]),
        "gaps": {
            name: {
                "wanted": gap,
                "true_gap": true[name],
                "multiply_adds": [WORK, works[name]],
                "told_gap": statistics.median(told[name]) / statistics.median(told["base"]) - 1,
                "ranked_right": right[name],
                "least": least,
            }
            for name, (gap, least) in GAPS.items()
        },
    }


def _calibrated(stand: Stand, work: Callable[[int], Config]) -> dict[str, int]:
    """How many multiply-adds more make each gap, from the slope over a tenth more."""
    tenth = WORK // 10
    base, more = stand.build([work(WORK), work(WORK + tenth)])
    times = stand.clock({"base": base, "more": more}, CLOCK_ROUNDS)
    slope = _gap(times["more"], times["base"]) / tenth
    return {name: max(round(gap / slope / STEP), 1) * STEP for name, (gap, _) in GAPS.items()}


def independent(stand: Stand, default: Built, subject: Built) -> Part:
    """The objective of the judge against the second clock, in absolute terms."""
    with closing(stand.device()) as device:
        setup = device.start(*default.control)
        told = {"default": setup.control_us}
        told["subject"] = statistics.median(judged(device, subject, number).median_us for number in range(1, 6))
    times = stand.clock({"default": default, "subject": subject}, CLOCK_ROUNDS)
    clock = {name: statistics.median(us) for name, us in times.items()}
    apart = {name: told[name] / clock[name] - 1 for name in told}
    return {
        "passed": all(abs(gap) <= 0.02 for gap in apart.values()),
        **_about(setup),
        "objective_us": told,
        "clock_us": clock,
        "clock_noise": {name: _spread(us)["iqr_over_median"] for name, us in times.items()},
        "objective_over_clock_less_1": apart,
    }


def _about(setup: Setup) -> Part:
    return {"environment": setup.environment, "warnings": list(setup.warnings), "control_us": setup.control_us}


def _interval(final: Final, finals: Finals, level: float) -> tuple[float, float]:
    low, _, high = ratio_interval(final.windows_us, finals.control.windows_us, finals.seed, level)
    return low, high


def _faster_by(one: Measurement, margin: float) -> bool:
    """Whether the whole 95 % interval that stops a judgement says so."""
    logs = [math.log(w / c) for w, c in zip(one.windows_us, one.control_us, strict=True)]
    high: float = statistics.mean(logs) + one.evidence["half_width"]
    return high < -math.log(1 + margin)


def _second_over_first(one: Measurement) -> float:
    """What the second place in a pair is worth: the subject is second in pairs 0, 2, ..., first in the others."""
    logs = [math.log(w / c) for w, c in zip(one.windows_us, one.control_us, strict=True)]
    return math.exp((statistics.mean(logs[0::2]) - statistics.mean(logs[1::2])) / 2)


def _gap(slower_us: Sequence[float], faster_us: Sequence[float]) -> float:
    """Median over rounds: both of a round share its clock."""
    return statistics.median(s / f for s, f in zip(slower_us, faster_us, strict=True)) - 1


def _spread(values: Sequence[float]) -> dict[str, float]:
    middle = statistics.median(values)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return {
        "median": middle,
        "min": min(values),
        "max": max(values),
        "max_less_min_over_median": (max(values) - min(values)) / middle,
        "iqr_over_median": (high - low) / middle,
    }


def _axpb_config(work: int) -> Config:
    return Config((("BUG", 0), ("WORK", work)), f"axpb with {work} multiply-adds")


def parts_of(limits: DeviceLimits, space: SearchSpace) -> dict[str, Run]:
    """The parts by name, ready to run."""
    attention = load_template(shipped("kernel_templates") / "attention")
    mission = Stand(attention, attention.module.PROBLEM(), limits)
    default, subject = mission.build([space.config(space.default), space.config(space.starts[0])])
    template = load_template(AXPB)
    axpb = Stand(template, template.module.PROBLEM(), limits)
    return {
        "aa": lambda before, keep: aa(mission, default),
        "compiling": lambda before, keep: compiling(mission, default, subject),
        "processes": lambda before, keep: processes(mission, default, subject, before, keep),
        "planted": lambda before, keep: planted(axpb, _axpb_config),
        "independent": lambda before, keep: independent(mission, default, subject),
    }


def prove(path: Path, setting: Mapping[str, Any], parts: Mapping[str, Run], chosen: Sequence[str]) -> bool:
    """Run the chosen parts, or where none is named those that have not passed in this `setting`; write the section
    after each. Whether all parts that were to run have passed.

    Each part names the very card in its own environment: none compares times with another's.
    """

    def keep(name: str, part: Part) -> None:
        done = {**kept_section(path, "timing", setting).get("parts", {}), name: part}
        verdicts = {each: found["passed"] for each, found in done.items()}
        put_section(path, "timing", {"passed": verdicts, "parts": done}, setting)

    before = kept_section(path, "timing", setting).get("parts", {})
    todo = chosen or [name for name in PARTS if not before.get(name, {}).get("passed")]
    passed = []
    for name in todo:
        started = time.monotonic()
        part = parts[name](before.get(name, {}), partial(keep, name))
        part["seconds"] = time.monotonic() - started
        keep(name, part)
        passed.append(part["passed"])
        numbers = {key: value for key, value in part.items() if key not in ("passed", "environment", "seconds", "runs")}
        print(f"{name}: {'passed' if part['passed'] else 'FAILED'} in {part['seconds']:.0f} s", flush=True)
        print(json.dumps(numbers), flush=True)
    return all(passed)


def main() -> int:
    parser = argparse.ArgumentParser(description="Prove on a GPU that the timer can be believed.")
    parser.add_argument("--output", metavar="FILE", type=Path, required=True, help="trust document to write into")
    parser.add_argument("--part", action="append", choices=PARTS, help="this, though it has passed; may be given again")
    arguments = parser.parse_args()
    limits = find_gpu()
    if limits is None:
        raise UserError("this proof times kernels, and there is no GPU here")
    setting = {**this_card(limits), "toolchain": find_toolchain("nvrtc").version, "judge": judge_digest()}
    parts = parts_of(limits, load_space(shipped("search_spaces") / "attention.py"))
    return int(not prove(arguments.output, setting, parts, arguments.part or ()))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EvoengineError as error:
        sys.exit(f"timing: {error}")
