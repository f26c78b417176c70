"""From the set-ups and final runs of every problem of a set to those of the set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from evoengine.devices.combine import Judged, coupled, measured, refused
from evoengine.devices.cuda.results import BaselineTiming, Deviation, Final, Finals, Setup, mean_interval
from evoengine.problem import Member
from evoengine.verdict import Artifact, Candidate, Rejection


def one_setup(members: Sequence[Member], artifact: Artifact, setups: Sequence[Setup]) -> Setup:
    """The control's and the baselines' means; a baseline that one problem lacks is not there.

    The environment is the first's, which found the card before any process of ours computed there.
    """
    judged = [Judged(m, part, one.control) for m, part, one in zip(members, artifact.parts, setups, strict=True)]
    timed = [{one.name: one for one in setup.baselines} for setup in setups]
    weights = [member.weight for member in members]
    return Setup(
        measured(judged),
        tuple(_baseline([one[name] for one in timed], weights) for name in timed[0] if all(name in o for o in timed)),
        _unavailable(members, [setup.unavailable for setup in setups]),
        setups[0].environment,
        tuple(dict.fromkeys(warning for setup in setups for warning in setup.warnings)),
    )


def _baseline(every: Sequence[BaselineTiming], weights: Sequence[float]) -> BaselineTiming:
    ratios = coupled([[w / c for w, c in zip(b.windows_us, b.control_us, strict=True)] for b in every], weights)
    control_us = coupled([one.control_us for one in every], weights)
    level = control_us[len(control_us) // 2]
    return BaselineTiming(
        every[0].name,
        tuple(ratio * level for ratio in ratios),
        (level,) * len(ratios),
        min(one.launches_per_window for one in every),
        max(one.max_abs for one in every),
        max(one.rel_fro for one in every),
        sum(one.nonfinite for one in every),
    )


def _unavailable(members: Sequence[Member], every: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Why a baseline has no mean: what the first shape says at which it did not run."""
    found: dict[str, str] = {}
    for member, unavailable in zip(members, every, strict=True):
        for name, why in unavailable.items():
            found.setdefault(name, f"{member.problem.label}: {why}")
    return found


def one_race(
    members: Sequence[Member],
    work: Sequence[tuple[Candidate, Artifact]],
    races: Sequence[Finals],
    rejected: Mapping[int, Rejection],
    seed: int,
) -> Finals:
    """The means of what was raced at every problem; `rejected` (by trial) are those that one race refused."""
    weights = [member.weight for member in members]
    control = _final([race.control for race in races], [race.control for race in races], weights, seed)
    laps = [{candidate.number: final for candidate, final in race.finalists} for race in races]

    def mean(finals: Sequence[Final]) -> Final:
        return _final(finals, control.members, weights, seed)

    finalists: list[tuple[Candidate, Final | Rejection]] = []
    for candidate, _ in work:
        own = [final for lap in laps if isinstance(final := lap.get(candidate.number), Final)]
        finalists.append((candidate, rejected.get(candidate.number) or mean(own)))
    baselines = [{one.name: one for one in race.baselines} for race in races]
    floors = [race.floor for race in races if race.floor is not None]
    return Finals(
        control,
        tuple(finalists),
        tuple(mean([one[name] for one in baselines]) for name in baselines[0] if all(name in o for o in baselines)),
        races[0].environment,
        seed,
        {member.problem.label: dict(race.clocks) for member, race in zip(members, races, strict=True)},
        mean(floors) if len(floors) == len(races) else None,
        _unavailable(members, [race.unavailable for race in races]),
        min(race.cold_copies for race in races),
        tuple((member.problem.label, member.weight) for member in members),
    )


def refused_in(member: Member, race: Finals) -> dict[int, Rejection]:
    """By trial, the finalists that a race refused."""
    return {c.number: refused(member, final) for c, final in race.finalists if isinstance(final, Rejection)}


def _final(every: Sequence[Final], controls: Sequence[Final], weights: Sequence[float], seed: int) -> Final:
    pairs = [(one.windows_us, control.windows_us) for one, control in zip(every, controls, strict=True)]
    low, ratio, high = mean_interval(pairs, weights, seed, 0.95)
    colds = [one.cold_us for one in every]
    deviations = [one.deviation for one in every if one.deviation is not None]
    return replace(
        every[0],
        windows_us=coupled([one.windows_us for one in every], weights),
        launches_per_window=min(one.launches_per_window for one in every),
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
        checks=tuple(check for one in every for check in one.checks),
        deviation=_worst(deviations) if len(deviations) == len(every) else None,
        cold_us=coupled(colds, weights) if all(colds) else (),
        members=tuple(every),
    )


def _worst(deviations: Sequence[Deviation]) -> Deviation:
    return Deviation(
        max(one.max_abs for one in deviations),
        max(one.rel_fro for one in deviations),
        sum(one.nonfinite for one in deviations),
    )
