"""What is searched: everything that decides a verdict but the config."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from evoengine.build import BuildRequest
from evoengine.errors import UserError
from evoengine.gates import Ceilings, hardware_rules, resource_gate, static_gate
from evoengine.hardware import DeviceLimits
from evoengine.problem import Problem, ProblemSet
from evoengine.space import Config, FeasibleSet, Rule, SearchSpace, Values
from evoengine.template import Launch, Template
from evoengine.verdict import Artifact, Rejection

if TYPE_CHECKING:
    from evoengine.archive.records import Record


@dataclass(frozen=True)
class Question:
    """Template, space, problem, and the limits a candidate must keep."""

    template: Template
    space: SearchSpace
    problem: Problem
    limits: DeviceLimits
    ceilings: Ceilings

    @property
    def members(self) -> tuple[Question, ...]:
        """The question of every problem: of a set several, else itself."""
        return (self,)

    @cached_property
    def hardware(self) -> tuple[Rule, ...]:
        """The rules that follow from the launch, beside the space's own."""
        return hardware_rules(self.template, tuple(axis.name for axis in self.space), self.ceilings)

    @cached_property
    def feasible(self) -> FeasibleSet:
        """Every config that passes the static gate."""
        return self.space.feasible(self.problem, self.limits, self.hardware)

    def take(self, feasible: FeasibleSet) -> None:
        """Take over as `feasible` what another process has listed."""
        self.__dict__["feasible"] = feasible

    @property
    def default(self) -> Config:
        """The default config, or the feasible one nearest to it.

        Raises:
            UserError: nothing is feasible.
        """
        if not self.feasible.points:
            refusal = self.static_gate(self.space.default)
            assert refusal is not None, "the default would be feasible"
            raise UserError(
                f"no config of {self.space.name} is feasible for {self.problem.label} within these limits (the default "
                f"breaks {refusal.reason}): relax the limits or choose another shape"
            )
        return self.space.nearest(self.space.default, self.feasible)

    def launch(self, values: Values) -> Launch:
        return self.template.module.launch(values, self.problem)

    def launches(self, records: Iterable[Record]) -> dict[int, Launch]:
        """The launch of every trial whose config the template, which may have changed since, still knows; by number."""
        choices = {axis.name: axis.choices for axis in self.space}

        def fits(values: Values) -> bool:
            return values.keys() == choices.keys() and all(value in choices[name] for name, value in values.items())

        return {one.number: self.launch(one.config.values) for one in records if fits(one.config.values)}

    def build_request(self, values: Values) -> BuildRequest:
        return BuildRequest(self.template.module.defines(values, self.problem), self.launch(values).smem_bytes)

    def identity(self, values: Values, cubin_sha256: str) -> str:
        """What runs: the cubin, its launch and its arguments. Configs of one identity are twins.

        The cubin alone would not do: a grid size or an argument may be a knob that the compiler never sees.
        """
        launch = self.launch(values)
        arguments = [(one.kind, one.value) for one in self.template.module.arguments(values, self.problem)]
        return f"{cubin_sha256} {launch.grid} {launch.block} {launch.smem_bytes} {arguments}"

    def static_gate(self, values: Values) -> Rejection | None:
        return static_gate(self.space, self.hardware, values, self.problem, self.limits)

    def resource_gate(self, values: Values, artifact: Artifact) -> Rejection | None:
        return resource_gate(artifact.resources, self.launch(values), self.limits, self.ceilings)


@dataclass(frozen=True)
class SetQuestion(Question):
    """One config for every problem of a set: what one of them refuses is refused, and says at which shape."""

    problem: ProblemSet

    @cached_property
    def members(self) -> tuple[Question, ...]:
        every = (member.problem for member in self.problem.members)
        return tuple(Question(self.template, self.space, one, self.limits, self.ceilings) for one in every)

    @cached_property
    def hardware(self) -> tuple[Rule, ...]:
        rules = hardware_rules(self.template, tuple(axis.name for axis in self.space), self.ceilings)
        return tuple(map(self._for_all, rules))

    @cached_property
    def feasible(self) -> FeasibleSet:
        return self._strict.feasible(self.problem, self.limits, self.hardware)

    def launch(self, values: Values) -> Launch:
        """The launch that takes the most shared memory a CTA."""
        return max((one.launch(values) for one in self.members), key=lambda launch: launch.smem_bytes)

    def build_request(self, values: Values) -> BuildRequest:
        requests = {one.problem.label: one.build_request(values) for one in self.members}
        first = next(iter(requests.values()))
        return BuildRequest(first.defines, first.smem_bytes, requests)

    def identity(self, values: Values, cubin_sha256: str) -> str:
        return " ".join(one.identity(values, cubin_sha256) for one in self.members)

    def static_gate(self, values: Values) -> Rejection | None:
        return static_gate(self._strict, self.hardware, values, self.problem, self.limits)

    def resource_gate(self, values: Values, artifact: Artifact) -> Rejection | None:
        for one, part in zip(self.members, artifact.members, strict=True):
            refusal = one.resource_gate(values, part)
            if refusal is not None:
                return dataclasses.replace(refusal, reason=f"{one.problem.label}: {refusal.reason}")
        return None

    @cached_property
    def _strict(self) -> SearchSpace:
        return dataclasses.replace(self.space, rules=tuple(map(self._for_all, self.space.rules)))

    def _for_all(self, rule: Rule) -> Rule:
        problems = [member.problem for member in self.problem.members]

        def check(values: Values, _: Problem, limits: DeviceLimits) -> str | None:
            for problem in problems:
                reason = rule.check(values, problem, limits)
                if reason is not None:
                    return f"{problem.label}: {reason}"
            return None

        return Rule(rule.id, rule.axes, check)


def make_question(
    template: Template, space: SearchSpace, problem: Problem, limits: DeviceLimits, ceilings: Ceilings
) -> Question:
    """The question of a problem, or of a set of them."""
    if isinstance(problem, ProblemSet):
        return SetQuestion(template, space, problem, limits, ceilings)
    return Question(template, space, problem, limits, ceilings)
