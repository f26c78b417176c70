"""A search that is told of another one: what is carried over, what it is worth, what it may cost when it misleads."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import fakes
import numpy as np
import pytest
from command_line import QUESTION
from recorded_files import Row, t4, write

from evoengine.archive.archive import Archive
from evoengine.archive.documents import typed
from evoengine.archive.lease import Owner
from evoengine.archive.records import StudySpec
from evoengine.cli import main
from evoengine.cli.resolve import Target
from evoengine.cli.warm_start import NEAREST, find_sources
from evoengine.errors import UserError
from evoengine.gates import Ceilings
from evoengine.hardware import card
from evoengine.problem import AttentionProblem, problem_digest, problem_fields
from evoengine.sampler import Proposal, Seen
from evoengine.sampler.features import Features
from evoengine.sampler.prior import Prior, trend
from evoengine.sampler.proposer import Proposer
from evoengine.sampler.source import KEPT, Source, make_source
from evoengine.sampler.starts import TRANSFERRED
from evoengine.sampler.transfer import Transfer
from evoengine.sampler.valid import ValidSet
from evoengine.space import Axis, FeasibleSet, Point, SearchSpace
from evoengine.verdict import Estimate, Gate, Measurement, Rejection, Verdict

pytestmark = pytest.mark.filterwarnings("error")

AXES = (
    Axis("TILE", (16, 24, 32, 64), "t"),
    Axis("STAGES", (1, 2, 3, 4), "st"),
    Axis("LAYOUT", (0, 1, 2), "l", ordered=False, names=("none", "padded", "xor")),
    Axis("WARPS", (1, 2, 4, 8), "w"),
)
SPACE = SearchSpace("toy", AXES, (), default={"TILE": 24, "STAGES": 3, "LAYOUT": 0, "WARPS": 2})
POINTS = list(itertools.product(*(range(len(axis.choices)) for axis in AXES)))
FEASIBLE = FeasibleSet(POINTS, {}, SPACE.product)


def here(point: Point) -> float:
    """Rugged: features say little about it."""
    return 10.0 + (7919 * (3 + sum(at * 31**n for n, at in enumerate(point)))) % 101


def there(point: Point) -> float:
    """Another card: three times slower, and not quite the same order."""
    return 3.0 * here(point) + 7 * (sum(point) % 3)


def source(values: Sequence[float | None], points: Sequence[Point] = POINTS) -> Source:
    made = make_source("other", "card", "shape", zip(points, values, strict=True), theirs=AXES, ours=AXES)
    assert made is not None
    return made


def searched(sources: Sequence[Source], seed: int, budget: int = 32) -> list[Seen]:
    proposer = Proposer(SPACE, FEASIBLE, sampler="evolution", seed=seed, sources=sources)
    trials: list[Seen] = []
    while len(trials) < budget:
        for one in proposer.propose(4):
            trials.append(Seen(len(trials), one.point, here(one.point), "done", one.operator))
        proposer.observe(trials[-4:])
    return trials


def guided(sources: Sequence[Source]) -> float:
    """How good the configs are that the model picks: their mean time, over three searches."""
    return float(np.mean([one.value for seed in range(3) for one in searched(sources, seed)[16:]]))


class TestSource:
    def test_configs_are_carried_over_by_the_words_for_their_choices(self) -> None:
        """Axes in another order, a choice more and a choice less: what has no word here is left out."""
        theirs = (
            Axis("WARPS", (2, 4, 32), "w"),
            Axis("LAYOUT", (5, 6), "l", ordered=False, names=("xor", "none")),
            Axis("TILE", (64, 16), "t"),
            Axis("STAGES", (4, 1), "s"),
        )
        trials = [((0, 0, 0, 0), 5.0), ((1, 1, 1, 1), None), ((2, 0, 0, 0), 1.0)]

        made = make_source("a", "b", "c", trials, theirs=theirs, ours=AXES)

        assert Source("a", "b", "c", ((3, 3, 2, 1), (0, 0, 0, 2)), (5.0, None)) == made

    def test_a_knob_that_one_side_alone_varies_is_a_constant_of_the_other(self) -> None:
        """Of theirs only what has our constant is carried over, and it lies at their constant on our knob."""
        theirs, ours = (*AXES[:3], Axis("ROLES", (0, 1), "r")), AXES
        trials = [((1, 1, 1, 1), 2.0), ((2, 1, 1, 0), 3.0)]

        def made(their_constants: dict[str, str], our_constants: dict[str, str]) -> Source | None:
            return make_source(
                "a", "b", "c", trials, theirs=theirs, ours=ours,
                their_constants=their_constants, our_constants=our_constants,
            )  # fmt: skip

        assert Source("a", "b", "c", ((2, 1, 1, 3),), (3.0,)) == made({"WARPS": "8"}, {"ROLES": "0"})
        assert made({"WARPS": "7"}, {"ROLES": "0"}) is None
        assert made({"WARPS": "8"}, {"ROLES": "2"}) is None
        assert made({}, {"ROLES": "0"}) is None
        assert made({"WARPS": "8"}, {}) is None

    def test_nothing_to_carry_over_is_no_source(self) -> None:
        renamed = (replace(AXES[0], name="OTHER"), *AXES[1:])

        assert make_source("", "", "", [((0, 0, 0, 0), 1.0)], theirs=renamed, ours=AXES) is None
        assert make_source("", "", "", [((0, 0, 0, 0), 1.0)], theirs=AXES[:3], ours=AXES) is None
        assert make_source("", "", "", [((0, 0, 0, 0), None)], theirs=AXES, ours=AXES) is None

    def test_of_many_trials_the_fastest_are_kept_and_some_of_every_kind(self) -> None:
        axes = (Axis("A", tuple(range(40)), "a"), Axis("B", tuple(range(40)), "b"))
        points = list(itertools.product(range(40), repeat=2))
        values = [None if n % 5 == 0 else float((n * 37) % 1600 + 1) for n in range(1600)]
        made = make_source("", "", "", zip(points, values, strict=True), theirs=axes, ours=axes)

        assert made is not None
        assert KEPT == len(set(made.points))
        ran = sorted(value for value in values if value is not None)
        assert ran[: KEPT // 2] == sorted(value for value in made.values if value is not None)[: KEPT // 2]
        assert ran[-100] < max(value for value in made.values if value is not None)
        assert 20 < sum(value is None for value in made.values) < 80
        assert list(made.points) == sorted(made.points)

    def test_comes_back_from_json_and_its_digest_says_what_it_holds(self) -> None:
        one = source([here(point) for point in POINTS[:50]], POINTS[:50])
        back = typed(Source, json.loads(json.dumps(one.as_json())))
        other = replace(one, values=(one.values[0], None, *one.values[2:]))

        assert one == back
        assert one.digest == back.digest != other.digest
        assert one.known == other.known + 1


class TestTrend:
    X = np.random.default_rng(3).standard_normal((60, 3))

    def test_an_opinion_counts_as_much_as_it_agrees(self) -> None:
        y = 0.9 * self.X[:, 0] - 0.8 * self.X[:, 2] + 0.3 * np.random.default_rng(4).standard_normal(60)
        weights = trend(self.X, y - y.mean()).weights

        assert weights[0] == pytest.approx(0.9, abs=0.15)
        assert weights[1] < 0.2
        assert 0.0 == weights[2]  # the opposite of a wrong opinion is no opinion

    def test_a_few_trials_do_not_convince(self) -> None:
        weights = [trend(self.X[:n, :1], self.X[:n, 0] - self.X[:n, 0].mean()).weights[0] for n in (2, 8, 60)]

        assert weights[0] < 0.6 < weights[1] < 0.95 < weights[2]

    def test_without_opinions_there_is_none(self) -> None:
        valid = ValidSet(SPACE, FEASIBLE)
        opinions = Prior([], valid, seed=0).of(np.arange(7))

        assert (7, 0) == opinions.shape
        assert np.zeros(7).tolist() == trend(opinions, np.arange(7.0)).of(opinions).tolist()

    def test_a_source_says_what_it_measured_and_guesses_the_rest(self) -> None:
        def smooth(point: Point) -> float:
            return 50.0 - 4 * point[0] + 3 * abs(point[1] - 2) + 6 * (point[2] != 2)

        order = np.random.default_rng(5).permutation(len(POINTS))
        known = [POINTS[at] for at in order[:90]]
        opinion = Transfer(source([smooth(point) for point in known], known), Features(AXES))
        said = opinion(np.array(POINTS, dtype=np.int16))
        ranks = np.argsort(np.argsort([smooth(point) for point in POINTS]))

        exact = said[order[:90]]
        times = np.array([smooth(point) for point in known])
        assert np.array_equal(np.argsort(exact, kind="stable"), np.argsort(times, kind="stable"))
        assert np.corrcoef(ranks[order[90:]], said[order[90:]])[0, 1] > 0.9


class TestSearch:
    def test_begins_with_the_best_of_every_source_in_turn(self) -> None:
        some = POINTS[::4]
        first = source([there(point) for point in some], some)
        second = source([400 - there(point) for point in some], some)
        proposals = Proposer(SPACE, FEASIBLE, sampler="evolution", seed=0, sources=[first, second]).propose(6)
        ranked = sorted(some, key=there)
        one, two = ranked[:2], ranked[:-3:-1]

        assert [one[0], two[0], one[1], two[1]] == [proposal.point for proposal in proposals[1:5]]
        assert ["default", *["transfer"] * TRANSFERRED, "spread"] == [proposal.operator for proposal in proposals]

    def test_a_good_source_helps_beyond_its_best_and_a_misleading_one_does_little_harm(self) -> None:
        """What is best there is no good here: the model, not the starts, must make use of all the rest."""
        dull = sorted(POINTS, key=here)[30 : 30 + TRANSFERRED]
        times = [25.0 if point in dull else there(point) for point in POINTS]
        shuffled = list(np.random.default_rng(6).permutation(times))
        cold, warm, misled = (guided(sources) for sources in ((), [source(times)], [source(shuffled)]))

        assert warm < 0.5 * cold
        assert misled < 1.25 * cold

    def test_a_resumed_search_goes_on_as_if_it_had_never_stopped(self) -> None:
        sources = [source([there(point) for point in POINTS[::3]], POINTS[::3])]
        whole = searched(sources, seed=2, budget=40)
        kept = [typed(Source, json.loads(json.dumps(one.as_json()))) for one in sources]
        resumed = Proposer(SPACE, FEASIBLE, sampler="evolution", seed=2, sources=kept)
        resumed.observe(whole[:24])

        assert [one.point for one in whole[24:28]] == [one.point for one in resumed.propose(4)]

    def test_other_samplers_cannot_use_one(self) -> None:
        with pytest.raises(UserError, match="sampler tpe cannot use a warm start"):
            Proposer(SPACE, FEASIBLE, sampler="tpe", seed=0, sources=[source([1.0], POINTS[:1])])


HERE = Target(card("l4"), card("l4"), None)
SPEC = StudySpec(
    name="near", template="scale", template_digest="t", template_folder="t", space="fake", space_digest="d",
    space_path="s", axes=fakes.SPACE.axes, default=fakes.SPACE.default, problem={}, problem_label="", problem_digest="",
    device="NVIDIA H200", limits={}, arch="sm_89", toolchain="fake 1", sampler="evolution", seed=3, budget=24,
    seconds=None, ceilings={}, command="", measures=True, created_at="2026-01-02T03:04:05+00:00",
)  # fmt: skip
TIMES = {(0, 0, 0, 0): 9.0, (1, 0, 0, 0): 7.0, (2, 0, 0, 0): 8.0}


def measured(us: float) -> Measurement:
    return Measurement((us,), (1.0,), 1.0, 10, "warm", "converged")


def spec(name: str, problem: AttentionProblem, **others: object) -> StudySpec:
    fields = problem_fields(problem)
    described = replace(SPEC, name=name, problem=fields, problem_digest=problem_digest(problem))
    return replace(described, problem_label=problem.label, **others)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    archive = Archive.open(str(tmp_path_factory.mktemp("archive") / "warm.db"))
    verdicts: list[Verdict] = [measured(us) for us in TIMES.values()]
    verdicts += [Rejection(Gate.CORRECTNESS, "wrong"), Rejection(Gate.RESOURCES, "too large for that card")]
    points = [*TIMES, (3, 0, 0, 0), (3, 1, 0, 0), (0, 0, 1, 0)]

    def study(of: StudySpec, verdicts: Sequence[Verdict] = verdicts, twin: bool = True) -> None:
        made = archive.create_study(of)
        made.acquire(Owner.current())
        candidates = made.claim([Proposal(point, "spread") for point in points[: len(verdicts) + twin]])
        for candidate, verdict in zip(candidates, verdicts, strict=False):
            made.commit(candidate, verdict, None)
        if twin:
            made.commit(candidates[-1], verdicts[0], None, twin_of=0)
        made.release()

    study(spec("far", AttentionProblem(seq_q=8192)))
    study(spec("near", AttentionProblem(seq_q=1024)))
    study(spec("same-shape-other-card", fakes.PROBLEM))
    study(spec("resumable", fakes.PROBLEM, device="NVIDIA L4"))
    study(spec("other-template", AttentionProblem(seq_q=1024), template="attention"))
    axes = (Axis("T", (16, 32, 64, 128), "t"), *(Axis(name, (0, 1, 2, 3), name) for name in "VPG"))
    study(spec("other-axes", AttentionProblem(seq_q=1024), axes=axes, default=dict(T=16, V=0, P=0, G=0)))
    study(spec("estimated", AttentionProblem(seq_q=1024)), [Estimate(3.0)], twin=False)
    yield archive
    archive.close()


class TestStudies:
    def test_a_study_gives_what_it_measured_and_what_was_wrong_anywhere(self, archive: Archive) -> None:
        [made] = find_sources(["near", "near"], archive, fakes.question(), HERE)

        assert ("near", "NVIDIA H200", "B1_H8_S1024_D64_fp16") == (made.name, made.device, made.problem)
        assert (*TIMES, (3, 0, 0, 0)) == made.points
        assert (*TIMES.values(), None) == made.values

    def test_auto_takes_the_nearest_shapes_first_and_not_what_resume_is_for(self, archive: Archive) -> None:
        made = find_sources(["auto"], archive, fakes.question(), HERE)
        named = find_sources(["auto", "far", "resumable"], archive, fakes.question(), HERE)

        assert ["same-shape-other-card", "near", "far"] == [one.name for one in made]
        assert ["far", "resumable", "same-shape-other-card", "near"] == [one.name for one in named]
        assert NEAREST >= 3

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("neer", "unknown study 'neer': did you mean near"),
            ("other-template", "that study is of template attention, this search of scale"),
            ("other-axes", "has other axes"),
            ("estimated", "has measured no config"),
        ],
    )
    def test_a_study_that_cannot_be_used_is_one_clear_line(self, archive: Archive, name: str, words: str) -> None:
        with pytest.raises(UserError, match=words) as error:
            find_sources([name], archive, fakes.question(), HERE)

        assert "\n" not in str(error.value)

    def test_a_new_study_keeps_a_copy_of_its_sources(self, archive: Archive) -> None:
        sources = find_sources(["near", "far"], archive, fakes.question(Ceilings()), HERE)
        archive.create_study(replace(SPEC, name="copy", sources=sources))

        assert sources == archive.open_study("copy").spec.sources
        assert () == archive.open_study("near").spec.sources


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("recordings")

    def rows(card: float) -> list[Row]:
        return [
            ({"tile": t, "warps": w}, 1.0 + abs(t - 5) + card * abs(w - 3) + 0.3 * ((t * w) % 5))
            for t in range(12)
            for w in range(9)
        ]

    return (write(folder / "here.T4.json.gz", t4(rows(1.0))), write(folder / "there.T4.json.gz", t4(rows(1.2))))


def test_an_unknown_study_ends_with_code_2_and_leaves_no_study(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 2 == main(["search", *QUESTION, "--warm-start", "nowhere"])
    error = capsys.readouterr().err
    assert "holds no study yet" in error
    assert 1 == len(error.strip().splitlines())
    assert 0 == main(["studies", "--json"])
    assert [] == json.loads(capsys.readouterr().out)


class TestReplay:
    def test_another_recording_helps_and_is_named(
        self, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        def replayed(*options: str) -> str:
            assert 0 == main(["replay", str(files[0]), "--budget", "30", "--runs", "4", "--json", *options])
            return capsys.readouterr().out

        cold, warm = (json.loads(replayed(*options)) for options in ((), ("--warm-start", str(files[1]))))

        assert [] == cold["warm_start"]
        assert [("there", 108)] == [(one["name"], one["known"]) for one in warm["warm_start"]]
        scores = [one["over_runs"]["score_over_random"]["mean"] for one in (warm, cold)]
        assert scores[0] > scores[1] + 0.05
        assert json.dumps(warm) == json.dumps(json.loads(replayed("--warm-start", str(files[1]))))

    def test_a_recording_of_something_else_ends_with_code_2(
        self, files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        other = write(tmp_path / "other.T4.json.gz", t4([({"x": x}, 1.0 + x) for x in range(5)]))

        assert 2 == main(["replay", str(files[0]), "--warm-start", str(other)])
        error = capsys.readouterr().err
        assert "no config that works has the parameters of here (tile, warps)" in error
        assert 1 == len(error.strip().splitlines())
