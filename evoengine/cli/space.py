"""`evoengine space`: what there is to search, before anything is built."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from rich.table import Table

from evoengine.cli.resolve import find_question, find_target
from evoengine.cli.tables import Label, console, table
from evoengine.problem import Problem, ProblemSet, problem_fields
from evoengine.question import Question
from evoengine.space import FeasibleSet


def run(arguments: argparse.Namespace) -> int:
    return show_spaces(arguments, [[arguments.shape or ""]])


def show_spaces(arguments: argparse.Namespace, sets: Sequence[Sequence[str]]) -> int:
    """The space at every shape, or set of shapes; as JSON a list where there are several."""
    target = find_target(arguments.device, arguments.target, arguments.limits)
    questions = [find_question(arguments, target, *shapes)[0] for shapes in sets]
    if arguments.json:
        described = [describe(question) for question in questions]
        print(json.dumps(described if len(described) > 1 else described[0], indent=2))
    else:
        for question in questions:
            show_space(question)
    return 0


def describe(question: Question) -> dict[str, object]:
    """The space as JSON: axes, sizes and rejections by rule."""
    space, feasible = question.space, question.feasible
    return {
        "space": space.name,
        "space_digest": space.digest,
        "problem": problem_fields(question.problem),
        **shapes_of(question.problem),
        "limits": question.limits.as_json(),
        "axes": [
            {"name": axis.name, "choices": axis.choices, "names": axis.names, "ordered": axis.ordered} for axis in space
        ],
        "product": feasible.product,
        "feasible": len(feasible.points),
        "infeasible_by_rule": feasible.rejected,
        "default": question.default.values,
        "default_label": question.default.label,
    }


def shapes_of(problem: Problem) -> dict[str, object]:
    """What the document of a set has beside what all shapes share."""
    if not isinstance(problem, ProblemSet):
        return {}
    return {
        "shapes": [
            {"shape": one.problem.label, "weight": one.weight, "problem": problem_fields(one.problem)}
            for one in problem.members
        ]
    }


def show_space(question: Question) -> None:
    space, feasible = question.space, question.feasible
    out = console()
    axes = table(f"{space.name}: {len(space.axes)} axes", "axis", "choices", "meaning")
    for axis in space:
        axes.add_row(axis.name, " ".join(axis.show(choice) for choice in axis.choices), axis.about)
    out.print(axes)
    share = len(feasible.points) / feasible.product
    out.print(
        f"\n{question.problem.label} within the limits of {question.limits.name}: {len(feasible.points):,} of "
        f"{feasible.product:,} configs are feasible ({share:.1%})\n"
    )
    if len(feasible.points) < feasible.product:
        out.print(_refusals(feasible))
    out.print()
    out.print(Label(f"default config: {question.default.label}"))


def _refusals(feasible: FeasibleSet) -> Table:
    rules = table("why the rest is not (first rule broken)", "rule", ">configs", ">share")
    for rule, count in sorted(feasible.rejected.items(), key=lambda item: -item[1]):
        if count:
            rules.add_row(rule, f"{count:,}", f"{count / feasible.product:.1%}")
    return rules
