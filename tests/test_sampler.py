from __future__ import annotations

import dataclasses
import itertools
import random
import time
from collections.abc import Iterable

import numpy as np
import optuna
import pytest

from evoengine.errors import UserError
from evoengine.hardware import DeviceLimits, card
from evoengine.problem import AttentionProblem, Problem
from evoengine.sampler import SAMPLERS, Proposal, Seen, check_sampler
from evoengine.sampler.encoding import distributions, to_params, to_point
from evoengine.sampler.evolution import OPERATOR, PARENTS, START_SIZE, EvolutionSampler
from evoengine.sampler.proposer import Proposer
from evoengine.sampler.trials import GENERATION
from evoengine.sampler.valid import ValidSet
from evoengine.space import Axis, FeasibleSet, Point, Rule, SearchSpace, Values

pytestmark = pytest.mark.filterwarnings("error")

AXES = (
    Axis("TILE", (16, 32, 48, 64, 96, 128), "t"),
    Axis("STAGES", (1, 2, 3, 4), "st"),
    Axis("LAYOUT", (0, 1, 2), "l", ordered=False, names=("none", "padded", "xor")),
    Axis("ROLES", (0, 1), "r", ordered=False),
    Axis("FIXED", (7,), "f"),
    Axis("WARPS", (1, 2, 4, 8), "w"),
)
SPACE = SearchSpace(
    "toy",
    AXES,
    (),
    default={"TILE": 64, "STAGES": 2, "LAYOUT": 0, "ROLES": 0, "FIXED": 7, "WARPS": 4},
    starts=({"TILE": 128, "STAGES": 4, "LAYOUT": 2, "ROLES": 1, "FIXED": 7, "WARPS": 8},),
)


def fits(point: Point) -> bool:
    return point[0] * (point[1] + 1) <= 10 and (point[3] == 0 or point[5] > 0)


FEASIBLE = FeasibleSet(
    [p for p in itertools.product(*(range(len(a.choices)) for a in AXES)) if fits(p)], {}, SPACE.product
)


def latency(point: Point) -> float | None:
    """A rugged valley with one optimum; some configs are rejected."""
    if point[2] == 1 and point[1] == 0:
        return None
    return 10 + abs(point[0] - 4) + 2 * abs(point[1] - 1) + 3 * (point[2] != 2) + abs(point[5] - 2) + point[3]


def proposer(sampler: str = "evolution", seed: int = 0) -> Proposer:
    return Proposer(SPACE, FEASIBLE, sampler=sampler, seed=seed)


def seen(first: int, proposals: Iterable[Proposal], *, done: bool = True) -> list[Seen]:
    return [
        Seen(
            number,
            p.point,
            latency(p.point) if done else None,
            "done" if done else "running",
            p.operator,
            p.generation,
            p.parents,
            p.system_attrs,
        )
        for number, p in enumerate(proposals, first)
    ]


def search(sampler: str, budget: int, batch: int, seed: int = 0) -> list[Seen]:
    source, trials = proposer(sampler, seed), list[Seen]()
    while len(trials) < budget:
        proposals = source.propose(min(batch, budget - len(trials)))
        source.observe(seen(len(trials), proposals, done=False))
        finished = seen(len(trials), proposals)
        source.observe(finished)
        trials += finished
    return trials


@pytest.mark.parametrize("sampler", SAMPLERS)
class TestEverySampler:
    @pytest.fixture(autouse=True)
    def installed(self, sampler: str) -> None:
        if sampler == "cmaes":
            pytest.importorskip("cmaes")

    def test_proposals_are_feasible_and_distinct(self, sampler: str) -> None:
        points = [one.point for one in search(sampler, 96, 16)]

        assert all(fits(point) for point in points)
        assert 96 == len(set(points))

    def test_takes_every_config_and_then_says_that_there_are_no_more(self, sampler: str) -> None:
        source = proposer(sampler)
        source.observe(seen(0, [Proposal(point, "before") for point in FEASIBLE.points[:-60]]))
        first = source.propose(40)
        source.observe(seen(len(FEASIBLE.points) - 60, first))
        rest = source.propose(40)

        assert 40 == len(first)
        assert 20 == len(rest)
        assert set(FEASIBLE.points[-60:]) == {p.point for p in first + rest}
        assert [] == source.propose(1)

    def test_a_fresh_proposer_proposes_nothing_that_was_observed_or_runs(self, sampler: str) -> None:
        trials = search(sampler, 40, 8)
        running = proposer(sampler, seed=1).propose(30)
        fresh = proposer(sampler)
        fresh.observe(trials)
        fresh.observe(seen(40, running, done=False))
        before = {one.point for one in trials} | {p.point for p in running}

        assert not before & {p.point for p in fresh.propose(30)}

    def test_equal_seeds_give_equal_searches_and_other_seeds_do_not(self, sampler: str) -> None:
        assert search(sampler, 48, 8, seed=3) == search(sampler, 48, 8, seed=3)
        assert [s.point for s in search(sampler, 48, 8, 3)] != [s.point for s in search(sampler, 48, 8, 4)]

    def test_observing_twice_changes_nothing(self, sampler: str) -> None:
        trials = search(sampler, 32, 8)
        once, twice = proposer(sampler), proposer(sampler)
        once.observe(trials)
        twice.observe(trials)
        twice.observe(trials[5:9])

        assert once.propose(4) == twice.propose(4)

    def test_leaves_global_randomness_alone(self, sampler: str) -> None:
        random.seed(5)
        state, legacy = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
        search(sampler, 24, 8)

        assert state == random.getstate()
        assert legacy == np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]


class TestEvolution:
    def test_starts_with_the_default_and_the_hand_picked_config_made_feasible(self) -> None:
        first, second, *rest = proposer().propose(START_SIZE)

        assert SPACE.point(SPACE.default) == first.point
        assert "default" == first.operator
        assert SPACE.point(SPACE.nearest(SPACE.starts[0], FEASIBLE).values) == second.point
        assert {"spread"} == {p.operator for p in rest}

    def test_starts_are_spread_wider_than_chance(self) -> None:
        def gap(proposals: list[Proposal]) -> float:
            pairs = itertools.combinations([p.point for p in proposals], 2)
            return min(SPACE.distance(a, b) for a, b in pairs if a != proposals[1].point and b != proposals[1].point)

        chance = [gap(proposer("random", seed).propose(START_SIZE)) for seed in range(20)]

        assert gap(proposer().propose(START_SIZE)) > max(chance)

    @pytest.mark.parametrize("cut", [8, 20, 37, 64])
    def test_a_resumed_search_goes_on_as_if_it_had_never_stopped(self, cut: int) -> None:
        """After a kill in the middle of a batch the trials are told again, and the batch is filled up."""
        whole = search("evolution", 96, 16)
        resumed = proposer()
        batch = cut - cut % 16
        resumed.observe(whole[:batch])
        resumed.observe(seen(batch, [Proposal(s.point, s.operator) for s in whole[batch:cut]], done=False))

        rest = resumed.propose(16 - cut % 16)

        expected = [(s.point, s.operator, s.generation, s.parents) for s in whole[cut : batch + 16]]
        assert expected == [(p.point, p.operator, p.generation, p.parents) for p in rest]

    def test_parents_are_trials_that_finished_before_and_generations_follow_them(self) -> None:
        trials = {one.number: one for one in search("evolution", 160, 8, seed=1)}
        children = [one for one in trials.values() if one.parents]

        assert len(children) >= 20
        for child in children:
            assert all(parent < child.number - child.number % 8 for parent in child.parents)
            assert all(trials[parent].value is not None for parent in child.parents)
            assert 1 + max(trials[parent].generation for parent in child.parents) == child.generation
        assert {"mutation", "crossover"} == {child.operator for child in children}
        assert "model" in {one.operator for one in trials.values()}

    def test_finds_the_optimum_sooner_than_random(self) -> None:
        best = min(value for p in FEASIBLE.points if (value := latency(p)) is not None)

        def evaluations(sampler: str, seed: int) -> int:
            trials = search(sampler, 150, 4, seed)
            return next((s.number for s in trials if s.value == best), 150)

        ours = sum(evaluations("evolution", seed) for seed in range(8))
        chance = sum(evaluations("random", seed) for seed in range(8))

        assert ours < 0.7 * chance

    def test_a_batch_of_64_does_not_collapse_on_one_peak(self) -> None:
        source = proposer()
        source.observe(seen(0, source.propose(32)))
        batch = source.propose(64)

        def width(points: list[Point]) -> float:
            pairs = list(itertools.combinations(points, 2))
            return sum(SPACE.distance(a, b) for a, b in pairs) / len(pairs)

        assert 64 == len({p.point for p in batch})
        assert width([p.point for p in batch]) > 0.7 * width(FEASIBLE.points)
        for at, axis in enumerate(AXES):
            assert len(axis.choices) == len({p.point[at] for p in batch})

    def test_goes_on_when_everything_was_rejected(self) -> None:
        source = proposer()
        rejected = [Seen(n, p.point, None, "done") for n, p in enumerate(source.propose(40))]
        source.observe(rejected)

        assert not {one.point for one in rejected} & {p.point for p in source.propose(20)}

    def test_a_corrected_value_counts_and_pending_proposals_stay_taken(self) -> None:
        source = proposer()
        trials = seen(0, source.propose(40))
        source.observe(trials)
        pending = source.propose(8)
        best = trials[7]
        source.observe([Seen(7, best.point, 1.0, "done", best.operator)])
        batch = source.propose(40)

        assert not {p.point for p in pending} & {p.point for p in batch}
        assert sum(7 in p.parents for p in batch) >= 4

    def test_is_an_optuna_sampler(self) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(sampler=EvolutionSampler(SPACE, FEASIBLE, seed=1))
        for _ in range(60):
            trial = study.ask(distributions(AXES))
            value = latency(to_point(AXES, trial.params))
            study.tell(trial, value, state=None if value is not None else optuna.trial.TrialState.PRUNED)
        points = [to_point(AXES, trial.params) for trial in study.trials]

        assert 60 == len(set(points))
        assert all(fits(point) for point in points)
        assert {OPERATOR, GENERATION, PARENTS} <= set(study.trials[-1].system_attrs)

    def test_refuses_a_parameter_that_is_no_axis(self) -> None:
        study = optuna.create_study(sampler=EvolutionSampler(SPACE, FEASIBLE, seed=1))

        with pytest.raises(ValueError, match="OTHER"):
            study.ask().suggest_int("OTHER", 0, 3)

    def test_a_hundred_thousand_configs_cost_no_more_than_a_few_thousand(self) -> None:
        """Nothing may loop over the feasible set in Python; a loop would make the large space 30 times as slow."""

        def seconds(choices: int) -> float:
            axes = tuple(Axis(f"A{i}", tuple(range(choices)), f"a{i}") for i in range(5))
            space = SearchSpace("cube", axes, (), default=dict.fromkeys((a.name for a in axes), 0))
            points = list(itertools.product(range(choices), repeat=5))
            source = Proposer(space, FeasibleSet(points, {}, space.product), sampler="evolution", seed=0)
            trials = [Seen(n, p.point, float(9 + sum(p.point)), "done") for n, p in enumerate(source.propose(100))]
            source.observe(trials)
            start = time.process_time()
            source.propose(30)
            return time.process_time() - start

        assert seconds(10) < 8 * seconds(5)


class TestStock:
    def test_counts_what_cost_nothing(self) -> None:
        source = proposer("tpe")
        for first in range(0, 96, 8):
            source.observe(seen(first, source.propose(8)))

        assert source.free["infeasible"] > 0
        assert source.free["repeat"] > 0
        assert source.free["snapped"] > 0

    def test_evolution_and_random_propose_nothing_in_vain(self) -> None:
        for name in ("evolution", "random"):
            source = proposer(name)
            source.observe(seen(0, source.propose(64)))
            source.propose(32)

            assert {} == dict(source.free)

    def test_nsga2_finds_its_generations_again(self) -> None:
        trials = search("nsga2", 100, 10)
        fresh = proposer("nsga2")
        fresh.observe(trials)

        assert max(one.generation for one in trials) >= 3
        assert fresh.propose(1)[0].generation >= max(one.generation for one in trials)

    def test_nothing_that_is_not_json_leaves_the_sampler(self) -> None:
        pytest.importorskip("cmaes")
        for one in search("cmaes", 60, 6):
            assert {} == one.system_attrs

    def test_random_draws_uniformly(self) -> None:
        counts = dict.fromkeys(FEASIBLE.points, 0)
        for seed in range(300):
            for proposal in proposer("random", seed).propose(4):
                counts[proposal.point] += 1
        expected = 1200 / len(counts)
        chi2 = sum((count - expected) ** 2 / expected for count in counts.values())

        # 99.99 % of a chi-square with k degrees of freedom lies below k + 4 * sqrt(2 k).
        assert chi2 < len(counts) + 4 * (2 * len(counts)) ** 0.5

    def test_a_missing_package_is_named_with_its_remedy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

        with pytest.raises(UserError, match="pip install cmaes"):
            proposer("cmaes")


class TestErrors:
    def test_unknown_sampler_names_the_nearest(self) -> None:
        with pytest.raises(UserError, match="did you mean nsga2"):
            check_sampler("nsga")
        with pytest.raises(UserError, match="known are evolution, tpe"):
            proposer("zzz")

    @pytest.mark.parametrize("sampler", ["evolution", "tpe"])
    def test_an_empty_feasible_set_is_the_users_to_mend(self, sampler: str) -> None:
        with pytest.raises(UserError, match="rule smem"):
            Proposer(SPACE, FeasibleSet([], {"smem": 9}, 9), sampler=sampler, seed=0).propose(1)


class TestEncoding:
    def test_every_point_comes_back(self) -> None:
        for ordinal in (False, True):
            for point in FEASIBLE.points:
                params = to_params(AXES, point, ordinal=ordinal)
                assert point == to_point(AXES, params, ordinal=ordinal)

    def test_ordered_axes_are_indices_and_unordered_ones_words(self) -> None:
        kinds = distributions(AXES)

        assert optuna.distributions.IntDistribution(0, 5) == kinds["TILE"]
        assert optuna.distributions.CategoricalDistribution(("none", "padded", "xor")) == kinds["LAYOUT"]
        assert optuna.distributions.CategoricalDistribution((0, 1)) == kinds["ROLES"]


def grouped() -> FeasibleSet:
    """Two axes that a rule ties together, with others between them, and axes of no rule."""

    def many(values: Values, problem: Problem, limits: DeviceLimits) -> str | None:
        return "many" if values["STAGES"] * values["WARPS"] > 8 else None

    rules = (Rule("many", ("STAGES", "WARPS"), many),)
    return dataclasses.replace(SPACE, rules=rules).feasible(AttentionProblem(), card("l4"))


@pytest.fixture(params=["listed", "grouped"])
def feasible(request: pytest.FixtureRequest) -> FeasibleSet:
    """A list is in no order here: its rows follow it all the same."""
    if request.param == "grouped":
        return grouped()
    drawn = np.random.default_rng(5).permutation(len(FEASIBLE.points))
    return FeasibleSet([FEASIBLE.points[row] for row in drawn], {}, FEASIBLE.product)


class TestValidSet:
    def test_agrees_with_the_space_on_distance_and_membership(self) -> None:
        valid = ValidSet(SPACE, FEASIBLE)
        for point in itertools.product(*(range(len(a.choices)) for a in AXES)):
            row = valid.row(point)
            assert fits(point) == (row is not None)
            assert row is None or point == valid.point(row)
        middle = FEASIBLE.points[len(FEASIBLE.points) // 2]
        expected = [SPACE.distance(middle, point) for point in FEASIBLE.points]
        # From Python 3.12 on `sum` rounds once, at the end.
        assert expected == pytest.approx(valid.distances(middle, valid.at(np.arange(len(valid)))), rel=1e-15)

    @pytest.mark.parametrize("taken_share", [0.0, 0.3, 1.0])
    def test_nearest_is_the_closest_that_is_free(self, feasible: FeasibleSet, taken_share: float) -> None:
        valid = ValidSet(SPACE, feasible)
        every = np.arange(len(valid))
        rng = np.random.default_rng(7)
        for point in itertools.product(*(range(len(a.choices)) for a in AXES)):
            taken = set(rng.choice(len(valid), round(taken_share * len(valid)), replace=False).tolist())
            far = valid.distances(point, valid.at(every))
            far[list(taken)] = np.inf
            assert (int(far.argmin()) if far.min() < np.inf else None) == valid.nearest(point, taken)

    def test_rows_and_points_belong_together(self, feasible: FeasibleSet) -> None:
        valid = ValidSet(SPACE, feasible)
        every = np.arange(len(valid))

        assert [list(point) for point in feasible.points] == valid.at(every).tolist()
        assert every.tolist() == valid.rows(list(feasible.points)).tolist()

    def test_a_hundred_million_configs_are_searched_in_the_memory_of_their_groups(self) -> None:
        """2^27 feasible configs: pairs of axes that must differ, and axes that nothing ties."""
        axes = tuple(Axis(f"A{i}", (0, 1, 2, 3), f"a{i}") for i in range(14))

        def differ(values: Values, problem: Problem, limits: DeviceLimits) -> str | None:
            return "equal" if values["A0"] == values["A1"] else None

        default = dict.fromkeys((axis.name for axis in axes), 0) | {"A1": 1}
        space = SearchSpace("vast", axes, (Rule("differ", ("A0", "A1"), differ),), default)
        feasible = space.feasible(AttentionProblem(), card("l4"))
        proposer = Proposer(space, feasible, sampler="evolution", seed=3)
        seen: list[Seen] = []
        for number in range(24):
            (proposal,) = proposer.propose(1)
            seen.append(Seen(number, proposal.point, 1.0 + sum(proposal.point), "done", proposal.operator))
            proposer.observe(seen[-1:])

        assert 12 * 4**12 == len(feasible.points)
        assert {True} == {one.point in feasible.points for one in seen}
        assert 24 == len({one.point for one in seen})
        assert min(sum(one.point) for one in seen[8:]) < min(sum(one.point) for one in seen[2:8])

    def test_a_product_without_a_64_bit_code_is_refused(self) -> None:
        axes = tuple(Axis(f"A{i}", (0, 1), f"a{i}") for i in range(64))
        space = SearchSpace("wide", axes, (), default=dict.fromkeys((a.name for a in axes), 0))

        with pytest.raises(UserError, match="drop some choices"):
            ValidSet(space, FeasibleSet([(0,) * 64], {}, space.product))
