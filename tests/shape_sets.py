"""Sets of shapes for tests: a card for each, whose times are arithmetic, behind the real device for a set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import fakes

from evoengine.devices import Work
from evoengine.devices.cuda.lock import SharedLock
from evoengine.devices.cuda.results import BaselineTiming, Final, Finals, Setup, make_final
from evoengine.devices.cuda.shapes import ShapesDevice
from evoengine.question import Question
from evoengine.space import Values
from evoengine.verdict import Artifact, Candidate, Gate, Measurement, Rejection

Fate = Callable[[Question, Values], str | None]


class Card:
    """One problem of the template scale: a config is the faster the nearer a CTA is to half of it.

    `said` hears what happens to the device, `fate` says why a config is refused.
    """

    name = "NVIDIA L4"

    def __init__(self, question: Question, said: list[str], fate: Fate = lambda *_: None) -> None:
        self._question = question
        self._label = question.problem.label
        self._said = said
        self._fate = fate
        self._control_us = 0.0

    def us(self, values: Values) -> float:
        n = self._question.problem.n  # type: ignore[attr-defined]
        return float(10.0 + abs(values["THREADS"] * values["ITEMS"] - n / 2) / n)

    def spawn(self) -> None:
        self._said.append(f"{self._label} spawn")

    def open(self) -> Mapping[str, Any]:
        self._said.append(f"{self._label} open")
        return {"driver": "1", "opened_by": self._label}

    def start(self, values: Values, artifact: Artifact, environment: Mapping[str, Any] | None = None) -> Setup:
        assert environment is not None, "the set opens before it starts"
        self._said.append(f"{self._label} start, opened by {environment['opened_by']}")
        self._control_us = self.us(values)
        sdpa = BaselineTiming("sdpa", (30.0, 30.0), (10.0, 10.0), 10, 1e-3, 1e-4, 0)
        return Setup(fakes._measured(self._control_us, self._control_us), (sdpa,), {}, environment)

    def judge(self, work: Iterable[tuple[Candidate, Artifact]]) -> Iterator[tuple[Candidate, Measurement | Rejection]]:
        for candidate, _ in work:
            self._said.append(f"{self._label} judge")
            values = candidate.config.values
            why = self._fate(self._question, values)
            if why:
                yield candidate, Rejection(Gate.CORRECTNESS, why, {"seed": 1})
            else:
                yield candidate, fakes._measured(self.us(values), self._control_us)

    def finals(self, work: Work, seed: int) -> Finals:
        self._said.append(f"{self._label} finals of {len(work)}")

        def lap(name: str, us: float) -> Final:
            return make_final(name, [us] * 5, [self._control_us] * 5, 10, seed, cold_us=[300.0] * 3)

        finalists = tuple((one, lap(one.config.label, self.us(one.config.values))) for one, _ in work)
        return Finals(lap("default", self._control_us), finalists, (lap("sdpa", 30.0),), {"driver": "1"}, seed)

    def stop(self) -> None:
        self._said.append(f"{self._label} stop")

    def close(self) -> None:
        self._said.append(f"{self._label} close")


def device_of(question: Question, said: list[str], fate: Fate = lambda *_: None) -> ShapesDevice:
    """The real device for a set of problems, over a card for each."""
    members = question.problem.members  # type: ignore[attr-defined]
    cards = [Card(one, said, fate) for one in question.members]
    return ShapesDevice(list(zip(members, cards, strict=True)), SharedLock())
