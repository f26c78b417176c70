"""Knob liveness: does every knob of a space change what runs, and where?

A knob is tried on pairs of configs that differ in nothing else, for each two choices that are neighbours there. What
runs is the cubin, its launch and its arguments (`Question.identity`), so that a knob of the host alone counts too. A
knob that never changes it is dead: the search pays for it and learns nothing, and nothing that is said of it is true.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from evoengine.build import Builder, BuildRequest
from evoengine.errors import TemplateError
from evoengine.question import Question
from evoengine.space import Axis, FeasibleSet, Point
from evoengine.verdict import Artifact, Rejection

State = Literal["live", "rare", "dead", "fixed", "never alone", "unbuilt"]

BASES = 200_000
"""Configs drawn to start pairs from, 200 bytes each."""
RARE = 0.25
"""Up to this share of its pairs a knob that changes anything is called rare. A judgement: such a knob mostly doubles
the space with twins, and may deserve a rule that says where it acts."""

Link = tuple[int, int]
"""Two choices, as indices, that are neighbours among those that go with the same rest of a config."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What the pairs of one link showed. `refused` pairs have a side that does not build or takes too much."""

    choices: tuple[int, int]
    compared: int
    changed: int
    refused: int
    unchanged: str
    """Label of the first config that its neighbour equals; empty where all differ."""


@dataclass(frozen=True, slots=True)
class Knob:
    """One axis. `never` are the choices that no feasible config of this problem and these limits has.

    `fixed`: one choice is left. `never alone`: no two configs differ in this axis only. `unbuilt`: no pair was left.
    """

    axis: str
    state: State
    links: tuple[Tally, ...]
    never: tuple[int, ...]

    @property
    def compared(self) -> int:
        return sum(link.compared for link in self.links)

    @property
    def changed(self) -> int:
        return sum(link.changed for link in self.links)


def liveness(
    question: Question,
    builder: Builder,
    pairs: int,
    seed: int,
    on_done: Callable[[int, int], None] = lambda done, of: None,
) -> list[Knob]:
    """Every axis of the space, tried on up to `pairs` pairs a link. `on_done` hears of builds: done, of how many.

    The pairs come from the default config, the space's starts and then random feasible configs drawn with `seed`.

    Raises:
        TemplateError: none of the configs builds and fits; or, as UserError, see `Builder.build`.
    """
    drawn = _draw(question, pairs, seed)
    points = list(
        dict.fromkeys(point for links in drawn for found in links.values() for pair in found for point in pair)
    )
    built = _build(question, builder, points, on_done)
    return [_judge(question, axis, number, drawn[number], built) for number, axis in enumerate(question.space)]


def _draw(question: Question, pairs: int, seed: int) -> list[dict[Link, list[tuple[Point, Point]]]]:
    """For every axis its links, each with the pairs to try."""
    space, feasible = question.space, question.feasible
    known = feasible.points
    bases = [point for values in (space.default, *space.starts) if (point := space.point(values)) in known]
    drawn = random.Random(seed).sample(range(len(known)), min(BASES, len(known)))
    bases += [known[row] for row in drawn]
    return [_links(number, feasible, bases, pairs) for number in range(len(space.axes))]


def _links(
    number: int, feasible: FeasibleSet, bases: Sequence[Point], pairs: int
) -> dict[Link, list[tuple[Point, Point]]]:
    used = feasible.used(number)
    links: dict[Link, list[tuple[Point, Point]]] = {link: [] for link in itertools.pairwise(used)}
    expected = set(links)  # others turn up where a rule takes out a choice between two
    seen: dict[Link, set[Point]] = defaultdict(set)
    for base in bases:
        if all(len(links[link]) == pairs for link in expected):
            break
        for one, other in itertools.pairwise(_siblings(base, number, used, feasible.points)):
            link = one[number], other[number]
            if len(links.setdefault(link, [])) < pairs and one not in seen[link]:
                seen[link].add(one)
                links[link].append((one, other))
    return links


def _siblings(base: Point, number: int, used: Sequence[int], known: Sequence[Point]) -> Iterator[Point]:
    """The feasible configs that differ from `base` in one axis at most, in the order of its choices."""
    before, after = base[:number], base[number + 1 :]
    for choice in used:
        point = (*before, choice, *after)
        if point in known:
            yield point


def _build(
    question: Question, builder: Builder, points: Sequence[Point], on_done: Callable[[int, int], None]
) -> dict[Point, str | None]:
    """What runs, by config; None where the compiler or the resource gate refuses it."""
    module, problem, space = question.template.module, question.problem, question.space
    configs = [space.config_at(point).values for point in points]
    requests = [BuildRequest(module.defines(v, problem), module.launch(v, problem).smem_bytes) for v in configs]
    identities: dict[Point, str | None] = dict.fromkeys(points)
    refusals: dict[int, Rejection] = {}
    for done, (index, result) in enumerate(builder.stream(requests), start=1):
        refusal = result if isinstance(result, Rejection) else question.resource_gate(configs[index], result)
        if isinstance(result, Artifact) and refusal is None:
            identities[points[index]] = question.identity(configs[index], result.cubin_sha256)
        elif refusal is not None:
            refusals[index] = refusal
        on_done(done, len(requests))
    if refusals and len(refusals) == len(requests):
        first = min(refusals)
        label = space.config_at(points[first]).label
        raise TemplateError(
            f"none of {len(requests)} configs builds and fits, {label} for one: {refusals[first].gate}: "
            f"{refusals[first].reason}"
        )
    return identities


def _judge(
    question: Question,
    axis: Axis,
    number: int,
    links: dict[Link, list[tuple[Point, Point]]],
    built: dict[Point, str | None],
) -> Knob:
    tallies = []
    for link, found in sorted(links.items()):
        sides = [(one, built[one], built[other]) for one, other in found]
        compared = [(one, a != b) for one, a, b in sides if a is not None and b is not None]
        same = next((one for one, differ in compared if not differ), None)
        tallies.append(
            Tally(
                (axis.choices[link[0]], axis.choices[link[1]]),
                len(compared),
                sum(differ for _, differ in compared),
                len(sides) - len(compared),
                "" if same is None else question.space.config_at(same).label,
            )
        )
    used = question.feasible.used(number)
    never = tuple(choice for index, choice in enumerate(axis.choices) if index not in used)
    return Knob(axis.name, _state(len(used), tallies), tuple(tallies), never)


def _state(used: int, links: Sequence[Tally]) -> State:
    compared, changed = sum(link.compared for link in links), sum(link.changed for link in links)
    if used < 2:
        return "fixed"
    if not compared:
        return "unbuilt" if any(link.refused for link in links) else "never alone"
    if not changed:
        return "dead"
    return "rare" if changed <= RARE * compared else "live"
