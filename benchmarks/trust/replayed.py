"""A search whose every answer is on file: recorded times, planted rejections and twins, nothing built and no GPU.

Engine, sampler and archive are the real ones. Builder and device answer at once and always alike, so that two searches
can be compared trial by trial: the replay device of the database's proofs.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import cast

from evoengine.archive.records import StudySpec
from evoengine.archive.study import Study
from evoengine.build import Builder, BuildRequest
from evoengine.cli.resolve import find_template, space_path
from evoengine.devices import Work
from evoengine.devices.cuda.results import BaselineTiming, Final, Finals, Setup, make_final
from evoengine.engine import Search
from evoengine.gates import Ceilings
from evoengine.hardware import card
from evoengine.pace import Pace
from evoengine.problem import problem_digest, problem_fields
from evoengine.progress import Budget, Listener, Outcome
from evoengine.question import Question
from evoengine.recorded.document import read_document
from evoengine.sampler.proposer import Proposer
from evoengine.space import Config, FeasibleSet, Point, Values, load_space
from evoengine.verdict import Artifact, Candidate, Gate, Measurement, Rejection, ResourceUsage, Verdict

RECORDING = Path(__file__).parents[2] / "studies" / "h200" / "spaces" / "mission_l4.jsonl.gz"
"""1,728 configs of the attention template, all of them right: what gates refuse is planted."""
REGISTERS = 200
"""Ceiling that refuses a tenth of the recorded configs at the gate of resources."""
DEAD = {"EVO_HEAVY_FIRST", "EVO_MASK_SPLIT", "EVO_LAZY_RESCALE", "EVO_UNROLL", "EVO_LATE_LOADS", "EVO_SUM_MMA"}
"""Macros that the replayed compiler ignores, so that configs have twins."""
BATCH = 4


@dataclass(frozen=True, slots=True)
class Recorded:
    """What is on file of one config."""

    median_us: float
    resources: ResourceUsage


class RecordedQuestion(Question):
    """The question that a recording answers: its configs are all that is feasible."""

    @cached_property
    def table(self) -> dict[Point, Recorded]:
        rows = {}
        for row in read_document(RECORDING).entries:
            values = {**self.space.default, **row["values"]}
            rows[self.space.point(values)] = Recorded(row["median_us"], ResourceUsage(**row["resources"]))
        return rows

    @cached_property
    def feasible(self) -> FeasibleSet:
        return FeasibleSet(sorted(self.table), {}, self.space.product)

    @cached_property
    def control(self) -> Config:
        """The default config, found once: `default` measures the distance to every recorded config."""
        return self.default

    def recorded(self, values: Values) -> Recorded:
        return self.table[self.space.point(values)]


@cache
def question() -> RecordedQuestion:
    template = find_template("attention")
    problem = template.module.PROBLEM()
    ceilings = Ceilings(max_registers=REGISTERS)
    return RecordedQuestion(template, load_space(space_path(None, template)), problem, card("l4"), ceilings)


def spec(name: str, *, sampler: str, seed: int, budget: int) -> StudySpec:
    """A study of the question."""
    asked = question()
    return StudySpec(
        name=name,
        template=asked.template.name,
        template_digest=asked.template.digest,
        template_folder=str(asked.template.folder),
        space=asked.space.name,
        space_digest=asked.space.digest,
        space_path=str(space_path(None, asked.template)),
        axes=asked.space.axes,
        default=asked.space.default,
        problem=problem_fields(asked.problem),
        problem_label=asked.problem.label,
        problem_digest=problem_digest(asked.problem),
        device="replay",
        limits=asked.limits.as_json(),
        arch=asked.limits.arch,
        toolchain="replay",
        sampler=sampler,
        seed=seed,
        budget=budget,
        seconds=None,
        ceilings={"max_registers": REGISTERS, "max_smem_bytes": None, "max_spill_bytes": None},
        command="replayed",
        measures=True,
        created_at="2026-01-01T00:00:00+00:00",
    )


@dataclass
class ReplayedBuilder:
    """Answers from the recording; one config in nine does not compile."""

    folder: Path

    def build(self, requests: Sequence[BuildRequest]) -> list[Artifact | Rejection]:
        return [result for _, result in self.stream(requests)]

    def stream(self, requests: Sequence[BuildRequest]) -> Generator[tuple[int, Artifact | Rejection], None, None]:
        for index, request in enumerate(requests):
            values = {axis.name: request.defines[f"EVO_{axis.name}"] for axis in question().space}
            yield index, self._one(request, values)

    def _one(self, request: BuildRequest, values: Values) -> Artifact | Rejection:
        config = question().space.config(values)
        if config != question().control and int(config.digest, 16) % 9 == 0:
            return Rejection(Gate.COMPILE, "planted: does not compile", {})
        code = repr(sorted((name, value) for name, value in request.defines.items() if name not in DEAD)).encode()
        sha256 = hashlib.sha256(code).hexdigest()
        folder = self.folder / sha256
        folder.mkdir(exist_ok=True)
        draft = folder / str(os.getpid())
        draft.write_bytes(code)
        draft.replace(folder / "kernel.cubin")  # whole for every other process, as in the real cache
        resources = question().recorded(values).resources
        return Artifact(config.digest, folder, sha256, resources, 0.0, "replay", question().limits.arch)


class ReplayedDevice:
    """Measures by the recording; one config in seven is wrong."""

    name = "replay"

    def judge(self, work: Iterable[tuple[Candidate, Artifact]]) -> Iterator[tuple[Candidate, Verdict]]:
        for candidate, artifact in work:
            if int(artifact.cubin_sha256, 16) % 7 == 0 and candidate.config != question().control:
                yield candidate, Rejection(Gate.CORRECTNESS, "planted: wrong", {})
            else:
                yield candidate, self._measured(candidate.config.values)

    def start(self, values: Mapping[str, int], artifact: Artifact) -> Setup:
        us = self._control_us
        sdpa = BaselineTiming("sdpa", (2 * us,) * 3, (us,) * 3, 10, 1e-3, 1e-4, 0)
        return Setup(self._measured(values), (sdpa,), {"flash": "not recorded"}, {"driver": "replay"})

    def finals(self, work: Work, seed: int) -> Finals:
        def lap(name: str, us: float) -> Final:
            return make_final(name, [us] * 5, [self._control_us] * 5, 10, seed)

        timed = tuple((one, lap(one.config.label, question().recorded(one.config.values).median_us)) for one, _ in work)
        baselines = (lap("sdpa", 2 * self._control_us),)
        return Finals(lap("default", self._control_us), timed, baselines, {"driver": "replay"}, seed)

    def close(self) -> None:
        pass

    @property
    def _control_us(self) -> float:
        return question().recorded(question().control.values).median_us

    def _measured(self, values: Values) -> Measurement:
        us = question().recorded(values).median_us
        return Measurement((us,) * 3, (self._control_us,) * 3, self._control_us, 10, "warm", "converged")


@dataclass
class Listening:
    """A listener that notes number and digest of every verdict, and then calls `after` with how many there are."""

    after: Callable[[int], None] = lambda verdicts: None
    verdicts: list[tuple[int, str]] = field(default_factory=list)

    def note(self, text: str) -> None: ...
    def phase(self, text: str) -> None: ...
    def set_up(self, setup: Setup) -> None: ...
    def building(self, done: int, of: int) -> None: ...

    def judged(self, candidate: Candidate, verdict: Verdict, artifact: Artifact | None, spent: int) -> None:
        self.verdicts.append((candidate.number, candidate.config.digest))
        self.after(len(self.verdicts))


def search(study: Study, folder: Path, listener: Listener, *, seed: int) -> Outcome:
    """The search of an acquired study to its end; cubins are written to `folder`."""
    asked, device = question(), ReplayedDevice()
    return Search(
        asked,
        study,
        proposer=Proposer(asked.space, asked.feasible, sampler=study.spec.sampler, seed=seed),
        builder=cast(Builder, ReplayedBuilder(folder)),
        device=device,
        timing=device,
        budget=Budget(study.spec.budget),
        pace=Pace(BATCH),
        listener=listener,
    ).run()
