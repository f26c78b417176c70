"""`evoengine space`: what there is to search, before anything is built."""

from __future__ import annotations

import argparse
import json

from evoengine.cli.question import ceilings, enumerate_space, find_target, find_template, make_problem, space_path
from evoengine.cli.tables import console, table
from evoengine.hardware import DeviceLimits
from evoengine.problem import Problem, problem_fields
from evoengine.space import FeasibleSet, SearchSpace, load_space


def run(arguments: argparse.Namespace) -> int:
    template = find_template(arguments.template)
    problem = make_problem(template, arguments.shape)
    target = find_target(arguments.device, arguments.target, arguments.limits)
    space = load_space(space_path(arguments.space, template))
    feasible = enumerate_space(template, space, problem, target.limits, ceilings(arguments))
    if arguments.json:
        print(json.dumps(describe(space, problem, target.limits, feasible), indent=2))
    else:
        show_space(space, problem, target.limits, feasible)
    return 0


def describe(
    space: SearchSpace, problem: Problem, limits: DeviceLimits, feasible: FeasibleSet
) -> dict[str, object]:
    """The space as JSON: axes, sizes and rejections by rule."""
    default = space.nearest(space.default, feasible)
    return {
        "space": space.name,
        "space_digest": space.digest,
        "problem": problem_fields(problem),
        "limits": limits.as_json(),
        "axes": [
            {"name": axis.name, "choices": axis.choices, "names": axis.names, "ordered": axis.ordered}
            for axis in space
        ],
        "product": feasible.product,
        "feasible": len(feasible.points),
        "infeasible_by_rule": feasible.rejected,
        "default": default.values,
        "default_label": default.label,
    }


def show_space(space: SearchSpace, problem: Problem, limits: DeviceLimits, feasible: FeasibleSet) -> None:
    out = console()
    axes = table(f"{space.name}: {len(space.axes)} axes", "axis", "choices", "meaning")
    for axis in space:
        axes.add_row(axis.name, " ".join(axis.show(choice) for choice in axis.choices), axis.about)
    out.print(axes)
    share = len(feasible.points) / feasible.product
    out.print(
        f"\n{problem.label} within the limits of {limits.name}: {len(feasible.points):,} of {feasible.product:,} "
        f"configs are feasible ({share:.1%})\n"
    )
    rules = table("why the rest is not (first rule broken)", "rule", ">configs", ">share")
    for rule, count in sorted(feasible.rejected.items(), key=lambda item: -item[1]):
        if count:
            rules.add_row(rule, f"{count:,}", f"{count / feasible.product:.1%}")
    out.print(rules)
    out.print(f"\ndefault config: {space.nearest(space.default, feasible).label}")
