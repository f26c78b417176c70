"""A question, a builder and two devices whose answers are arithmetic, for tests of the loop around them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evoengine.build import BuildRequest
from evoengine.devices import Work
from evoengine.devices.cuda.results import BaselineTiming, Final, Finals, Setup, make_final
from evoengine.devices.single import SingleCard
from evoengine.errors import TemplateError
from evoengine.gates import Ceilings
from evoengine.hardware import card
from evoengine.problem import AttentionProblem
from evoengine.question import Question
from evoengine.sampler import Proposal, Seen
from evoengine.space import Axis, Point, Rule, SearchSpace, Values
from evoengine.template import Argument, Launch, Template
from evoengine.verdict import (
    Artifact,
    Candidate,
    Estimate,
    Gate,
    Measurement,
    Rejection,
    ResourceUsage,
    Verdict,
)

PROBLEM = AttentionProblem()
TEMPLATES = Path(__file__).parent / "templates"


def _fits_tile(values: Values, *_: Any) -> str | None:
    return None if values["TILE"] * values["UNROLL"] <= 512 else "more than 512 rows"


SPACE = SearchSpace(
    "fake",
    (
        Axis("TILE", (16, 32, 64, 128), "t"),
        Axis("UNROLL", (1, 2, 4, 8), "u"),
        Axis("PAD", (0, 1), "p"),  # dead: the compiler makes the same cubin of both
        Axis("GRID", (1, 2), "g"),  # the host's alone: one cubin, two launches
    ),
    (Rule("rows", ("TILE", "UNROLL"), _fits_tile),),
    dict(TILE=64, UNROLL=4, PAD=0, GRID=1),
)


def fate(values: Values) -> Gate | None:
    """The gate that refuses a config, None for one that is right."""
    if values["TILE"] * values["UNROLL"] > 512:
        return Gate.STATIC
    return {
        (16, 8): Gate.COMPILE,
        (128, 4): Gate.RESOURCES,
        (16, 4): Gate.CORRECTNESS,
        (32, 8): Gate.RUNTIME,
        (32, 1): Gate.TIMEOUT,
    }.get((values["TILE"], values["UNROLL"]))


def true_us(values: Values) -> float:
    """Time of a launch: no two identities share one."""
    return 100.0 - values["TILE"] / 4 + 3.0 * values["UNROLL"] + 0.5 * values["GRID"]


class Module:
    """The host's side of the fake template."""

    ENTRY = "fake"
    PROBLEM = AttentionProblem

    def defines(self, values: Values, problem: AttentionProblem) -> dict[str, int]:
        return {name: values[name] for name in ("TILE", "UNROLL", "PAD")}

    def launch(self, values: Values, problem: AttentionProblem) -> Launch:
        return Launch((values["GRID"], 1, 1), 128, 1024)

    def arguments(self, values: Values, problem: AttentionProblem) -> list[Argument]:
        return [Argument("tensor", "out")]


def question(ceilings: Ceilings | None = None) -> Question:
    template = Template(TEMPLATES / "scale", Module())  # type: ignore[arg-type]
    return Question(template, SPACE, PROBLEM, card("l4"), ceilings or Ceilings())


@dataclass
class FakeBuilder:
    """Builds every request it is given and keeps a list of them."""

    folder: Path
    fate: Callable[[Values], Gate | None] = fate
    built: list[dict[str, int]] = field(default_factory=list)

    def build(self, requests: Sequence[BuildRequest]) -> list[Artifact | Rejection]:
        return [result for _, result in self.stream(requests)]

    def stream(self, requests: Sequence[BuildRequest]) -> Generator[tuple[int, Artifact | Rejection], None, None]:
        for index, request in enumerate(requests):
            self.built.append(dict(request.defines))
            yield index, self._one(request)

    def _one(self, request: BuildRequest) -> Artifact | Rejection:
        gate = self.fate(request.defines)
        if gate is Gate.STATIC:
            raise AssertionError(f"{request.defines} did not pass the static gate and is built")
        if gate is Gate.COMPILE:
            return Rejection(Gate.COMPILE, "error: expected a ';'", {"log_tail": "..."})
        code = f"{request.defines['TILE']} {request.defines['UNROLL']}".encode()
        sha = hashlib.sha256(code).hexdigest()
        folder = self.folder / sha
        folder.mkdir(exist_ok=True)
        if not (folder / "kernel.cubin").exists():  # a card in a thread of its own may be reading it
            (folder / "kernel.cubin").write_bytes(code)
        registers = 300 if gate is Gate.RESOURCES else 40
        usage = ResourceUsage(registers, 0, 0, 0, 0, request.smem_bytes)
        return Artifact(sha[:32], folder, sha, usage, 0.1, "fake 1", "sm_89")


class FakeDevice:
    """Judges by `fate` and estimates where there is no GPU. `judged` is everything it ever had to judge."""

    name = "paper"

    def __init__(self, fate: Callable[[Values], Gate | None] = fate) -> None:
        self._fate = fate
        self.judged: list[Values] = []

    def judge(self, work: Iterable[tuple[Candidate, Artifact]]) -> Iterator[tuple[Candidate, Verdict]]:
        for candidate, artifact in work:
            values = candidate.config.values
            gate = self._fate(values)
            if gate in (Gate.STATIC, Gate.COMPILE, Gate.RESOURCES):
                raise AssertionError(f"{candidate.config.label} was refused by gate {gate} and is judged")
            if artifact.cubin.read_text() != f"{values['TILE']} {values['UNROLL']}":
                raise AssertionError(f"{candidate.config.label} is judged with another config's cubin")
            self.judged.append(values)
            yield candidate, self._verdict(values) if gate is None else Rejection(gate, f"refused by {gate}", {})

    def _verdict(self, values: Values) -> Verdict:
        return Estimate(true_us(values), {"model": "fake"})

    def in_hand(self) -> list[list[int]]:
        return []

    def close(self) -> None:
        pass


class FakeGpu(FakeDevice):
    """Measures: everything a tenth slower than estimated. `finals_us` are the times of the final run."""

    name = "NVIDIA L4"

    def __init__(
        self,
        fate: Callable[[Values], Gate | None] = fate,
        finals_us: Callable[[Values], float | None] = lambda values: 1.1 * true_us(values),
    ) -> None:
        super().__init__(fate)
        self._finals_us = finals_us
        self.final_seeds: list[int] = []
        self.finalists: list[int] = []

    def start(self, values: Values, artifact: Artifact) -> Setup:
        if self._fate(values) is not None:
            raise TemplateError("the default config is wrong")
        us = 1.1 * true_us(values)
        sdpa = BaselineTiming("sdpa", (2 * us, 2 * us), (us, us), 10, 1e-3, 1e-4, 0)
        return Setup(_measured(us, us), (sdpa,), {"flash": "no kernel here"}, {"driver": "1"})

    def finals(self, work: Work, seed: int) -> Finals:
        self.final_seeds.append(seed)
        self.finalists = [candidate.number for candidate, _ in work]
        control_us = 1.1 * true_us(SPACE.default)

        def lap(name: str, us: float | None) -> Final | Rejection:
            if us is None:
                return Rejection(Gate.CORRECTNESS, "wrong on new inputs", {})
            return make_final(name, [us] * 5, [control_us] * 5, 10, seed, cold_us=[300.0] * 3)

        control, sdpa = lap("default", control_us), lap("sdpa", 2 * control_us)
        assert isinstance(control, Final)
        assert isinstance(sdpa, Final)
        finalists = tuple((c, lap(c.config.label, self._finals_us(c.config.values))) for c, _ in work)
        return Finals(control, finalists, (sdpa,), {"driver": "1"}, seed)

    def learn_best(self, best_us: float) -> None:
        """Its times do not depend on it."""

    def interrupt(self) -> None:
        """Its jobs end at once."""

    def _verdict(self, values: Values) -> Verdict:
        return _measured(1.1 * true_us(values), 1.1 * true_us(SPACE.default))


class OwnThread(SingleCard):
    """The same as the command line uses a card: in a thread of its own."""

    def __init__(self) -> None:
        self._gpu = FakeGpu()
        super().__init__(self._gpu)

    @property
    def judged(self) -> list[Values]:
        return self._gpu.judged


def _measured(us: float, control_us: float) -> Measurement:
    return Measurement((us,) * 3, (control_us,) * 3, control_us, 10, "warm", "converged")


class Script:
    """A proposer that says what it was told to say."""

    def __init__(self, *proposed: Mapping[str, int], operator: str = "script") -> None:
        self.free: Counter[str] = Counter()
        self._points: list[Point] = [SPACE.point({**SPACE.default, **values}) for values in proposed]
        self._operator = operator

    def prepare(self) -> None:
        """Nothing."""

    def observe(self, seen: Iterable[Seen]) -> None:
        known = {one.point for one in seen}
        self._points = [point for point in self._points if point not in known]

    def ask(self, seen: Iterable[Seen], n: int) -> None:
        self.observe(seen)
        self._asked = n

    def answer(self, *, wait: bool) -> list[Proposal]:
        return self.propose(self._asked)

    def propose(self, n: int) -> list[Proposal]:
        asked, self._points = self._points[:n], self._points[n:]
        return [Proposal(point, self._operator) for point in asked]


class Silent:
    """A listener that only listens; `hook` is called with the name of everything it hears."""

    def __init__(self, hook: Callable[[str], None] = lambda heard: None) -> None:
        self.hook = hook
        self.spent: list[int] = []
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def phase(self, text: str) -> None:
        self.hook("phase")

    def set_up(self, setup: Setup) -> None:
        self.hook("set_up")

    def building(self, done: int, of: int) -> None:
        self.hook("building")

    def judged(self, candidate: Candidate, verdict: Verdict, artifact: Artifact | None, spent: int) -> None:
        self.spent.append(spent)
        self.hook("judged")
