"""What the latency estimate lets a search expect before anything is built."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from evoengine.devices.estimate import candidate_us
from evoengine.hardware import DeviceLimits
from evoengine.problem import Problem, members_of, weighted_mean
from evoengine.question import Question
from evoengine.sampler.source import Source, make_source
from evoengine.space import Point, SearchSpace
from evoengine.template import TemplateModule

SAMPLE = 10_000
"""Configs that are estimated, 40 us each. Of them the 200 best and 200 others are kept: what the surrogate makes of
those serves a search as well as the estimate of every config (score over random .957 and .958, H200 recordings)."""
OPERATOR = "estimate"
"""Where a config comes from that is tried for its estimate."""


@dataclass(frozen=True)
class Forecast:
    """The estimate of a template's configs: one problem, or a set, and one card.

    `fixed` are values of axes that `space` has not.
    """

    module: TemplateModule
    problem: Problem
    card: DeviceLimits
    space: SearchSpace
    points: Sequence[Point]
    fixed: Mapping[str, int] = field(default_factory=dict)

    def source(self, seed: int) -> Source | None:
        """Estimates of a random sample, as something to start from; None where none can be made."""
        chosen = sorted(random.Random(seed).sample(range(len(self.points)), min(SAMPLE, len(self.points))))
        trials = [(point, self._estimate(point)) for point in map(self.points.__getitem__, chosen)]
        return make_source(
            "estimate",
            self.card.name,
            self.problem.label,
            [(point, us) for point, us in trials if us is not None],
            theirs=self.space.axes,
            ours=self.space.axes,
            operator=OPERATOR,
        )

    def _estimate(self, point: Point) -> float | None:
        chosen = zip(self.space.axes, point, strict=True)
        values = {**self.fixed, **{axis.name: axis.choices[index] for axis, index in chosen}}
        members = members_of(self.problem)
        try:
            times = [candidate_us(self.module, values, member.problem, self.card) for member in members]
        except ValueError:  # so many registers are expected that no CTA fits
            return None
        return weighted_mean(times, [member.weight for member in members]) if len(times) > 1 else times[0]


def forecast(question: Question, card: DeviceLimits) -> Forecast:
    """That of a question's feasible configs."""
    return Forecast(question.template.module, question.problem, card, question.space, question.feasible.points)
