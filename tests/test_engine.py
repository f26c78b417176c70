"""The loop: which candidate meets which gate, what is paid for, what survives a stop, and who becomes an elite."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import archive_databases
import fakes
import optuna
import pytest
from fakes import FakeBuilder, FakeDevice, FakeGpu, OwnThread, Script, Silent, fate, true_us
from optuna.trial import TrialState

from evoengine import convergence
from evoengine.archive import heartbeat, history, lease
from evoengine.archive import study as studies
from evoengine.archive.archive import Archive
from evoengine.archive.lease import Owner
from evoengine.archive.records import Record, StudySpec
from evoengine.archive.study import Study
from evoengine.engine import Search
from evoengine.errors import TemplateError
from evoengine.gates import Ceilings
from evoengine.observations import Observations
from evoengine.pace import Pace
from evoengine.peers import Peers
from evoengine.progress import Budget, End, Outcome
from evoengine.sampler import Seen
from evoengine.sampler.proposer import Proposer
from evoengine.space import SearchSpace, Values
from evoengine.summary import summarise, winner
from evoengine.verdict import Artifact, Candidate, Estimate, Gate, Measurement, Rejection, Verdict

SPEC = StudySpec(
    name="fake", template="fake", template_digest="t", template_folder="t", space="fake",
    space_digest=fakes.SPACE.digest, space_path="s", axes=fakes.SPACE.axes, default=fakes.SPACE.default, problem={},
    problem_label=fakes.PROBLEM.label, problem_digest="p", device="NVIDIA L4", limits={"name": "NVIDIA L4"},
    arch="sm_89", toolchain="fake 1", sampler="evolution", seed=3, budget=24, seconds=None, ceilings={}, command="",
    measures=True, created_at="2026-01-02T03:04:05+00:00",
)  # fmt: skip
FEASIBLE = 60
"""Configs of the space that keep its rule: 64 less the 4 with 128 * 8 rows."""
RIGHT = sorted(
    (
        dict(TILE=tile, UNROLL=unroll, GRID=grid)
        for tile in (16, 32, 64, 128)
        for unroll in (1, 2, 4, 8)
        for grid in (1, 2)
        if fate(dict(TILE=tile, UNROLL=unroll)) is None
    ),
    key=true_us,
)
"""Every config that is right, twins left out, the fastest first."""
JUDGED = (None, Gate.CORRECTNESS, Gate.RUNTIME, Gate.TIMEOUT)
"""Fates that only a device can tell."""


class Late(Proposer):
    """Answers at the first look after so many, or where it is waited for."""

    def __init__(self, answers_after: int) -> None:
        asked = fakes.question()
        super().__init__(asked.space, asked.feasible, sampler="evolution", seed=3)
        self._answers_after = answers_after
        self._looks = 0

    def ask(self, seen: Iterable[Seen], n: int) -> None:
        self._looks = 0
        super().ask(seen, n)

    def answer(self, *, wait: bool) -> Any:
        self._looks += 1
        return super().answer(wait=wait) if wait or self._looks > self._answers_after else None


class Killed(BaseException):
    """Stands for kill -9: nothing that handles errors handles it."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> archive_databases.Sqlite:
    """Databases that evoengine has opened before: making Optuna's tables takes a second."""
    made = archive_databases.Sqlite(tmp_path_factory.mktemp("sqlite"))
    Archive.open(made.template).close()
    return made


WAIT = 20.0
"""Seconds after which a test gives up."""


@dataclass
class Bench:
    """One study on a database of its own, and runs over it with whatever parts a test gives."""

    url: str
    folder: Path
    archive: Archive = field(init=False)
    builder: FakeBuilder = field(init=False)
    search: Search | None = None

    def __post_init__(self) -> None:
        self.builder = FakeBuilder(self.folder)
        self.archive = Archive.open(self.url)
        self.archive.create_study(SPEC)

    def study(self) -> Study:
        return self.archive.open_study("fake")

    def run(
        self,
        device: FakeDevice | OwnThread,
        *,
        budget: int = 12,
        seconds: float | None = None,
        until_converged: bool = False,
        batch: int = 8,
        head_start: int = 0,
        sampler: str = "evolution",
        proposer: Any = None,
        listener: Silent | None = None,
        ceilings: Ceilings | None = None,
        owner: Owner | None = None,
        shared: bool = False,
        screening: Any = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Outcome:
        """As the command line runs it; a `Killed` run does not give its study back."""
        question = fakes.question(ceilings)
        study = self.study()
        study.acquire(owner or Owner.current(), shared=shared)
        self.search = Search(
            question,
            study,
            proposer=proposer or Proposer(question.space, question.feasible, sampler=sampler, seed=3),
            builder=self.builder,  # type: ignore[arg-type]
            device=device,
            timing=device if isinstance(device, FakeGpu | OwnThread) else None,
            budget=Budget(budget, seconds, until_converged),
            pace=Pace(batch, head_start),
            listener=listener or Silent(),
            screening=screening,
            meanwhile=meanwhile,
        )
        try:
            return self.search.run()
        except Killed:
            study = None
            raise
        finally:
            if study is not None:
                study.release()

    def records(self) -> list[Record]:
        return self.study().records()

    def summary(self) -> dict[str, Any]:
        return summarise(self.study(), self.study().records(), {}, fakes.question().limits, top=100)


@pytest.fixture
def bench(server: archive_databases.Sqlite, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(server.copy(), tmp_path)
    yield made
    made.archive.close()


@pytest.fixture
def dead_owner() -> Owner:
    return archive_databases.dead_owner()


def gate(record: Record) -> Gate | None:
    assert record.verdict is not None, f"trial {record.number} has no verdict"
    return record.verdict.gate if isinstance(record.verdict, Rejection) else None


def population(records: list[Record]) -> list[tuple[Any, ...]]:
    """All of a study that a resume must not change."""
    return [
        (one.number, one.config, one.operator, one.generation, one.parents, one.state, one.verdict, one.twin_of)
        for one in records
    ]


def identity(values: Values) -> tuple[int, int, int]:
    return values["TILE"], values["UNROLL"], values["GRID"]


class TestGates:
    @pytest.mark.parametrize("device", [FakeDevice(), FakeGpu()], ids=["estimates", "measures"])
    def test_the_whole_space_gets_the_verdicts_it_deserves_once_each(self, bench: Bench, device: FakeDevice) -> None:
        outcome = bench.run(device, budget=1000, sampler="random", batch=16)
        records = bench.records()
        right = {identity(one.config.values) for one in records if fate(one.config.values) is None}
        tried = {identity(v) for one in records if fate(v := one.config.values) in JUDGED}
        refused = [one for one in records if fate(one.config.values) in (Gate.COMPILE, Gate.RESOURCES)]

        assert "every feasible config has been tried" == outcome.stopped
        assert FEASIBLE == len(records) == len({one.config for one in records})
        assert [fate(one.config.values) for one in records] == [gate(one) for one in records]
        assert sorted(tried) == sorted(identity(values) for values in device.judged)
        assert len(refused) + len(tried) == outcome.spent == bench.summary()["spent"]
        assert len(right) == len(bench.summary()["measured"] + bench.summary()["shortlist"])

    def test_an_infeasible_proposal_is_refused_before_the_compiler_sees_it(self, bench: Bench) -> None:
        device = FakeGpu()
        outcome = bench.run(device, proposer=Script(dict(TILE=128, UNROLL=8), dict(TILE=128, UNROLL=2)))
        refused, measured = bench.records()

        assert Gate.STATIC == gate(refused)
        assert "rows: more than 512 rows" == refused.verdict.reason  # type: ignore[union-attr]
        assert None is gate(measured)
        assert 1 == outcome.spent == bench.summary()["spent"]

    def test_the_users_ceilings_refuse_before_anything_is_judged(self, bench: Bench) -> None:
        device = FakeDevice()
        bench.run(device, budget=6, ceilings=Ceilings(max_registers=39))

        assert {Gate.RESOURCES, Gate.COMPILE} >= {gate(one) for one in bench.records()}
        assert [fakes.SPACE.default] == device.judged  # as the template's proof, not as a candidate

    def test_default_is_proven_and_judged_in_one(self, bench: Bench) -> None:
        device = FakeDevice()
        bench.run(device, proposer=Script({}, dict(UNROLL=2)))

        assert [fakes.SPACE.default, {**fakes.SPACE.default, "UNROLL": 2}] == device.judged
        assert [Estimate, Estimate] == [type(one.verdict) for one in bench.records()]

    def test_a_candidate_is_judged_as_soon_as_it_is_built(self, bench: Bench) -> None:
        built: list[int] = []

        class Watching(FakeGpu):
            def _verdict(self, values: Values) -> Verdict:
                built.append(len(bench.builder.built))
                return super()._verdict(values)

        bench.run(Watching(), proposer=Script(dict(TILE=32), dict(TILE=64), dict(UNROLL=2)), batch=3)

        assert [2, 3, 4] == built[:3], "the default first, then one more for each"


class TestTwins:
    @pytest.mark.parametrize("unroll", [2, 8], ids=["right", "crashes"])
    def test_equal_cubins_in_one_batch_are_judged_once(self, bench: Bench, unroll: int) -> None:
        device = FakeGpu()
        first = dict(TILE=32, UNROLL=unroll)
        outcome = bench.run(device, proposer=Script(first, {**first, "PAD": 1}))
        one, twin = bench.records()

        assert 1 == len(device.judged) == outcome.spent
        assert (None, 0) == (one.twin_of, twin.twin_of)
        assert one.verdict == twin.verdict
        assert {"twin": 1} == {k: v for k, v in bench.summary()["verdicts"].items() if k == "twin"}

    def test_equal_cubins_are_known_after_a_resume(self, bench: Bench) -> None:
        bench.run(FakeGpu(), proposer=Script(dict(TILE=32, UNROLL=2)))
        device = FakeGpu()
        outcome = bench.run(device, proposer=Script(dict(TILE=32, UNROLL=2, PAD=1)))

        assert [] == device.judged
        assert [None, 0] == [one.twin_of for one in bench.records()]
        assert 1 == outcome.spent
        assert [0] == [one.number for one in bench.study().best(9)]

    def test_one_cubin_launched_in_two_ways_is_two_candidates(self, bench: Bench) -> None:
        device = FakeGpu()
        outcome = bench.run(device, proposer=Script(dict(GRID=1), dict(GRID=2)))
        first, second = bench.records()

        assert first.build.cubin_sha256 == second.build.cubin_sha256  # type: ignore[union-attr]
        assert [None, None] == [first.twin_of, second.twin_of]
        assert 2 == len(device.judged) == outcome.spent
        assert first.verdict.median_us < second.verdict.median_us  # type: ignore[union-attr]

    def test_an_estimate_is_no_verdict_for_a_twin_that_can_be_measured(self, bench: Bench) -> None:
        bench.run(FakeDevice(), proposer=Script(dict(TILE=32, UNROLL=2)))
        device = FakeGpu()
        bench.run(device, proposer=Script(dict(TILE=32, UNROLL=2, PAD=1)))

        assert [Measurement, Measurement] == [type(one.verdict) for one in bench.records()]
        assert 1 == len(device.judged)

    def test_what_was_estimated_elsewhere_and_proves_to_be_a_twin_is_free(self, bench: Bench) -> None:
        """Two that a process without a card has estimated are paid for, until one of them is the other's twin: what
        others have measured since, or this process."""
        bench.run(FakeGpu(), proposer=Script(first := dict(TILE=32, UNROLL=2), {**first, "PAD": 1}))
        one, twin = bench.records()
        guessed = [replace(each, verdict=Estimate(5.0, {}), twin_of=None) for each in (one, twin)]
        paid = []
        for measured_here in (False, True):
            known = Observations(fakes.question(), measures=True)
            known.remember(guessed)
            paid.append(known.paid)
            if measured_here and twin.verdict is not None:
                known.judged(Candidate(twin.number, twin.config, twin.operator), twin.verdict, one.number)
            else:
                known.remember([one, twin])
            paid.append(known.paid)

        assert [2, 1, 2, 1] == paid


class TestBudget:
    @pytest.mark.parametrize("budget", [1, 7, 19])
    def test_is_spent_and_never_overdrawn(self, bench: Bench, budget: int) -> None:
        listener = Silent()
        outcome = bench.run(FakeGpu(), budget=budget, sampler="random", listener=listener)
        records = bench.records()

        assert ("budget spent", budget, budget) == (outcome.stopped, outcome.spent, bench.summary()["spent"])
        assert sorted(listener.spent) == listener.spent
        assert budget == sum(one.twin_of is None for one in records)
        assert budget == listener.spent[-1]

    def test_covers_the_study_over_all_its_runs(self, bench: Bench) -> None:
        bench.run(FakeGpu(), budget=6)
        assert End.SPENT_BEFORE == bench.run(FakeGpu(), budget=6).stopped
        outcome = bench.run(FakeGpu(), budget=9)

        assert ("budget spent", 9) == (outcome.stopped, outcome.spent)
        assert 9 == bench.summary()["spent"]

    def test_nothing_is_judged_again_when_nothing_is_to_do(self, bench: Bench) -> None:
        bench.run(FakeDevice(), budget=6)
        before = population(bench.records())
        device = FakeDevice()
        bench.run(device, budget=6)

        assert [] == device.judged
        assert before == population(bench.records())

    def test_what_was_in_flight_waits_when_the_budget_is_lowered(self, bench: Bench) -> None:
        stop_after(bench, 3, FakeGpu(), proposer=Script(*RIGHT[:8]))
        outcome = bench.run(FakeGpu(), budget=5)

        assert 5 == outcome.spent == bench.summary()["spent"]
        states = [one.state for one in bench.records()]
        assert 0 < len(states) - 5 == states.count("waiting")

    def test_seconds_end_a_run_and_what_is_there_is_confirmed(self, bench: Bench) -> None:
        outcome = bench.run(FakeGpu(), budget=24, seconds=1e-9, batch=4)

        assert "1e-09 s are over" == outcome.stopped
        assert ["done"] * 4 == [one.state for one in bench.records()], "what is in flight is finished"
        assert outcome.finals is not None
        assert bench.study().elites()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five small promises in a row are enough in a space of 60 configs."""
    monkeypatch.setattr(convergence, "PATIENCE", 5)


@pytest.mark.usefixtures("impatient")
class TestUntilConverged:
    @pytest.mark.parametrize("batch", [1, 8])
    @pytest.mark.parametrize("device", [FakeDevice, FakeGpu])
    def test_ends_before_the_budget_and_says_why(self, bench: Bench, device: type[FakeDevice], batch: int) -> None:
        listener = Silent()
        outcome = bench.run(device(), budget=60, batch=batch, until_converged=True, listener=listener)
        promises = [one.expected_gain for one in bench.records()]
        [summary] = bench.archive.studies()

        assert outcome.spent < FEASIBLE / 2
        assert outcome.stopped.startswith(f"converged after {outcome.spent} of 60: none of the last 5 configs was")
        assert "(noise 0.5%: what the timer resolves)" in outcome.stopped
        assert [outcome.stopped] == listener.notes
        assert outcome.stopped == summary.status
        assert all(promise is not None and promise < 0.005 for promise in promises[-5:])
        assert any(promise is None or promise >= 0.005 for promise in promises[-5 - batch : -batch])
        assert isinstance(device(), FakeGpu) == bool(bench.study().elites())

    def test_is_as_far_after_a_stop_as_without_one(self, bench: Bench, server: Any, tmp_path: Path) -> None:
        whole = Bench(server.copy(), tmp_path)
        outcome = whole.run(FakeGpu(), budget=60, batch=4, until_converged=True)
        expected = population(whole.records())
        whole.archive.close()
        stop_after(bench, outcome.spent - 3, FakeGpu(), budget=60, batch=4, until_converged=True)
        resumed = bench.run(FakeGpu(), budget=60, batch=4, until_converged=True)
        again = bench.run(FakeGpu(), budget=60, batch=4, until_converged=True)

        assert expected == population(bench.records())
        assert outcome.stopped == resumed.stopped == again.stopped

    def test_goes_on_without_the_rule(self, bench: Bench) -> None:
        first = bench.run(FakeGpu(), budget=60, until_converged=True)
        outcome = bench.run(FakeGpu(), budget=first.spent + 8)

        assert ("budget spent", first.spent + 8) == (outcome.stopped, outcome.spent)

    def test_the_budget_stays_the_bound(self, bench: Bench) -> None:
        assert "budget spent" == bench.run(FakeGpu(), budget=10, until_converged=True).stopped

    def test_what_an_estimate_promised_is_not_held_against_measurements(self, bench: Bench) -> None:
        estimated = bench.run(FakeDevice(), budget=60, until_converged=True)
        measured = bench.run(FakeGpu(), budget=60, until_converged=True)

        assert measured.stopped.startswith("converged after")
        assert measured.spent >= estimated.spent + 5


class TestTemplateBroken:
    @pytest.mark.parametrize(
        ("device", "broken", "says"),
        [
            (FakeDevice, Gate.COMPILE, "does not build: error: expected a ';'"),
            (FakeDevice, Gate.CORRECTNESS, "is rejected: refused by correctness"),
            (FakeGpu, Gate.COMPILE, "does not build"),
            (FakeGpu, Gate.CORRECTNESS, "is wrong"),
        ],
    )
    def test_stops_before_the_first_verdict_and_what_was_begun_waits(
        self, bench: Bench, device: type[FakeDevice], broken: Gate, says: str
    ) -> None:
        bench.builder.fate = lambda values: broken if broken is Gate.COMPILE else None
        with pytest.raises(TemplateError, match=says) as raised:
            bench.run(device(lambda values: broken))

        assert 1 == raised.value.exit_code
        assert {("waiting", None)} == {(one.state, one.verdict) for one in bench.records()}
        [summary] = bench.archive.studies()
        assert says in summary.status


class TestCommits:
    @pytest.mark.parametrize("device", [FakeDevice(), FakeGpu()], ids=["estimates", "measures"])
    def test_all_verdicts_but_those_of_half_a_batch_are_in_the_database_before_the_next_are_asked_for(
        self, bench: Bench, device: FakeDevice
    ) -> None:
        question = fakes.question()
        proposer = Proposer(question.space, question.feasible, sampler="evolution", seed=3)
        propose, other, known = proposer.propose, bench.study(), []

        def asked(n: int) -> Any:
            records = other.records()
            known.append([one.verdict is not None for one in records])
            return propose(n)

        proposer.propose = asked  # type: ignore[method-assign]
        bench.run(device, budget=10, batch=4, proposer=proposer)

        assert list(range(8)) == [len(verdicts) for verdicts in known[:8]]
        assert not any(any(verdicts) for verdicts in known[:4]), "the first batch"
        assert all(all(verdicts[:-2]) for verdicts in known[4:8])

    def test_a_proposal_does_not_know_the_last_half_batch_though_the_database_does(self, bench: Bench) -> None:
        """Else a search that was stopped there would go on differently."""
        bench.run(FakeGpu(), budget=8, batch=4)
        count = len(bench.records())
        question = fakes.question()
        proposer = Proposer(question.space, question.feasible, sampler="evolution", seed=3)
        propose, told = proposer.propose, []

        def asked(n: int) -> Any:
            told.append({number: one.state for number, one in proposer._seen.items()})
            return propose(n)

        proposer.propose = asked  # type: ignore[method-assign]
        bench.run(FakeGpu(), budget=10, batch=4, proposer=proposer)

        assert ["done"] * (count - 2) + ["running"] * 2 == [told[0][number] for number in range(count)]

    @pytest.mark.parametrize("answers_after", [1, 3, 50])
    @pytest.mark.parametrize("made", [FakeGpu, OwnThread])
    def test_proposals_that_take_their_time_are_the_same(
        self, bench: Bench, tmp_path: Path, made: type[FakeGpu], answers_after: int
    ) -> None:
        """They know what they may know, however much is judged until they are there."""
        bench.run(FakeGpu(), budget=30, batch=8)
        at_once = [record.config for record in bench.records()]
        again = Bench(f"sqlite:///{tmp_path}/late.db", tmp_path)
        outcome = again.run(made(), budget=30, batch=8, proposer=Late(answers_after))
        late = [record.config for record in again.records()]
        again.archive.close()

        assert ("budget spent", 30) == (outcome.stopped, outcome.spent)
        assert at_once == late

    def test_they_take_their_time_beside_others_too(self, bench: Bench) -> None:
        outcome = bench.run(OwnThread(), budget=30, batch=8, shared=True, proposer=Late(3))

        assert ("budget spent", 30) == (outcome.stopped, outcome.spent)
        assert outcome.spent <= len(bench.records())

    def test_the_next_are_built_while_those_before_them_are_judged(self, bench: Bench) -> None:
        begun: list[int] = []
        stream = bench.builder.stream

        def watched(requests: Any) -> Any:
            begun.append(len(requests))
            return stream(requests)

        bench.builder.stream = watched  # type: ignore[method-assign]
        judging: list[int] = []

        class Watching(FakeGpu):
            def _verdict(self, values: Values) -> Verdict:
                judging.append(sum(begun[1:]))  # without the default's
                return super()._verdict(values)

        bench.run(Watching(), proposer=Script(*RIGHT[:8]), budget=8, batch=4)

        assert [4, 4, 5, 6, 7, 8, 8, 8] == judging

    def test_the_default_is_proven_while_the_first_are_built(self, bench: Bench) -> None:
        begun: list[int] = []

        class Watching(FakeGpu):
            def start(self, values: Values, artifact: Any) -> Any:
                begun.append(len(bench.records()))
                assert [None] * 4 == [one.verdict for one in bench.records()]
                return super().start(values, artifact)

        bench.run(Watching(), budget=8, batch=4)

        assert [4] == begun

    def test_a_head_start_is_had_while_the_default_is_proven(self, bench: Bench) -> None:
        class Slow(FakeGpu):
            def start(self, values: Values, artifact: Any) -> Any:
                deadline = time.monotonic() + WAIT
                while len(bench.records()) < 8 and time.monotonic() < deadline:
                    time.sleep(0.01)
                assert [None] * 8 == [one.verdict for one in bench.records()]
                return super().start(values, artifact)

        outcome = bench.run(Slow(), budget=12, batch=4, head_start=8)

        assert 12 == outcome.spent

    def test_a_stop_during_the_head_start_does_not_wait_for_the_card(self, bench: Bench) -> None:
        closed = threading.Event()

        class Slow(FakeGpu):
            def start(self, values: Values, artifact: Any) -> Any:
                bench.search.request_stop()
                assert closed.wait(WAIT)
                raise TemplateError("the worker was ended")

            def close(self) -> None:
                closed.set()

        outcome = bench.run(Slow(), budget=12, batch=4, head_start=8)

        assert outcome.interrupted
        assert {None} == {one.verdict for one in bench.records()}

    def test_optuna_is_told_of_rejections_as_pruned_and_never_of_estimates(self, bench: Bench) -> None:
        bench.run(FakeDevice(), budget=16)
        before = optuna_trials(bench.url)
        bench.run(FakeGpu(), budget=20)
        after = optuna_trials(bench.url)
        records = bench.records()

        refused = [isinstance(one.verdict, Rejection) for one in records]
        assert any(refused)
        for trial, is_refused in zip(before, refused[: len(before)], strict=True):
            state = TrialState.PRUNED if is_refused else TrialState.WAITING
            assert (state, None) == (trial.state, trial.values)
        for trial, record in zip(after, records, strict=True):
            if isinstance(record.verdict, Measurement):
                assert (TrialState.COMPLETE, [record.verdict.median_us]) == (trial.state, trial.values)
            else:
                assert (TrialState.PRUNED, None) == (trial.state, trial.values)


def optuna_trials(url: str) -> list[optuna.trial.FrozenTrial]:
    storage = optuna.storages.RDBStorage(url)
    try:
        return optuna.load_study(study_name="fake", storage=storage).get_trials()
    finally:
        storage.engine.dispose()


def stop_after(
    bench: Bench, count: int, device: FakeDevice | OwnThread, *, event: str = "judged", **options: Any
) -> Outcome:
    """A run that is asked to stop at the `count`-th event."""
    heard: Counter[str] = Counter()

    def hook(what: str) -> None:
        heard[what] += 1
        if heard[event] == count:
            assert bench.search is not None
            bench.search.request_stop()

    return bench.run(device, listener=Silent(hook), **options)


@pytest.fixture(scope="module")
def undisturbed(
    server: archive_databases.Sqlite, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[tuple[Any, ...]]]:
    """The population of a whole run by kind of device, into the second generation."""
    found = {}
    for kind in ("FakeDevice", "FakeGpu", "OwnThread"):
        bench = Bench(server.copy(), tmp_path_factory.mktemp("cubins"))
        bench.run(DEVICES[kind](), budget=24)
        found[kind] = population(bench.records())
        bench.archive.close()
        assert any(parents for *_, parents, _, _, _ in found[kind])
    assert found["FakeGpu"] == found["OwnThread"]
    return found


DEVICES: dict[str, type[FakeDevice | OwnThread]] = {
    "FakeDevice": FakeDevice,
    "FakeGpu": FakeGpu,
    "OwnThread": OwnThread,
}


@pytest.mark.parametrize("kind", list(DEVICES))
class TestStops:
    @pytest.mark.parametrize(("event", "count"), [("judged", 13), ("building", 12), ("phase", 1)])
    def test_a_stopped_search_goes_on_as_if_it_had_not_been(
        self, bench: Bench, undisturbed: Any, kind: str, event: str, count: int
    ) -> None:
        outcome = stop_after(bench, count, DEVICES[kind](), event=event, budget=24)
        states = Counter(one.state for one in bench.records() if one.verdict is None)
        done = sum(one.verdict is not None for one in bench.records())

        assert ("stopped by the user", True, None) == (outcome.stopped, outcome.interrupted, outcome.finals)
        assert {"waiting"} >= set(states)
        if event == "judged":
            assert count <= done < count + 8
        elif kind == "OwnThread":
            assert done < count  # the verdict in flight is committed; what was built for later waits, too
        else:
            assert count - 1 == done  # what was built before has been judged, the rest of the batch waits

        after = bench.run(DEVICES[kind](), budget=24)
        assert undisturbed[kind] == population(bench.records())
        assert not after.interrupted

    @pytest.mark.parametrize(("event", "count"), [("judged", 1), ("judged", 13), ("building", 13)])
    def test_a_killed_search_goes_on_as_if_it_had_not_been(
        self, bench: Bench, undisturbed: Any, kind: str, event: str, count: int, dead_owner: Owner
    ) -> None:
        heard: Counter[str] = Counter()

        def hook(what: str) -> None:
            heard[what] += 1
            if heard[event] == count:
                raise Killed

        with pytest.raises(Killed):
            bench.run(DEVICES[kind](), listener=Silent(hook), budget=24, owner=dead_owner)
        kept = {one.number: one.verdict for one in bench.records() if one.verdict is not None}
        assert any(one.state == "running" for one in bench.records())

        device = DEVICES[kind]()
        bench.run(device, budget=24)
        after = bench.records()
        assert undisturbed[kind] == population(after)
        assert kept == {one.number: one.verdict for one in after if one.number in kept}
        assert {identity(v) for v in device.judged}.isdisjoint(
            identity(after[number].config.values) for number in kept if fate(after[number].config.values) in JUDGED
        )


def test_a_search_that_is_stopped_in_its_head_start_goes_on_as_if_it_had_not_been(
    bench: Bench, server: archive_databases.Sqlite, tmp_path: Path
) -> None:
    whole = Bench(server.copy(), tmp_path / "whole")
    (tmp_path / "whole").mkdir()
    whole.run(FakeGpu(), budget=24, batch=4, head_start=12)
    stop_after(bench, 6, FakeGpu(), budget=24, batch=4, head_start=12)
    assert 6 <= sum(one.verdict is not None for one in bench.records()) < 12
    bench.run(FakeGpu(), budget=24, batch=4, head_start=12)

    assert population(whole.records()) == population(bench.records())
    whole.archive.close()


class TestEstimatedThenMeasured:
    def test_the_shortlist_is_measured_first_best_estimate_first_and_for_free(self, bench: Bench) -> None:
        bench.run(FakeDevice(), budget=16, sampler="random")
        shortlist = bench.study().shortlist(99)
        device = FakeGpu()
        outcome = bench.run(device, budget=20, sampler="random", batch=4)
        records = bench.records()

        best_first = [one.config.values for one in shortlist]
        assert sorted(best_first, key=true_us) == best_first
        assert best_first == device.judged[: len(best_first)]
        assert (20, 20) == (outcome.spent, bench.summary()["spent"])
        assert [] == bench.study().shortlist(99)
        assert Estimate not in {type(one.verdict) for one in records}
        by_number = {one.number: one for one in records}
        assert [one.verdict for one in shortlist] == [by_number[one.number].estimate for one in shortlist]

    def test_without_new_budget_only_the_shortlist_is_measured(self, bench: Bench) -> None:
        bench.run(FakeDevice(), budget=16)
        before = [one.number for one in bench.records()]
        outcome = bench.run(FakeGpu(), budget=16)

        assert ("budget spent", 16) == (outcome.stopped, outcome.spent)
        assert before == [one.number for one in bench.records()]
        assert bench.study().elites()


class TestConfirm:
    def test_elites_hold_the_final_runs_numbers_and_not_the_searchs(self, bench: Bench) -> None:
        device = FakeGpu(finals_us=lambda values: 50.0 + true_us(values))
        bench.run(device)
        elites = bench.study().elites()
        best = bench.study().best(8)
        control_us = 1.1 * true_us(fakes.SPACE.default)

        assert [SPEC.seed + 1_000_003] == device.final_seeds
        assert {one.number for one in best} == {one.number for one in elites} == set(device.finalists)
        by_number = {one.number: one for one in best}
        for elite in elites:
            us = 50.0 + true_us(by_number[elite.number].config.values)
            assert us == elite.median_us
            assert us / control_us == pytest.approx(elite.control_ratio)
            assert us / control_us / 2 == pytest.approx(elite.baseline_ratios["sdpa"])
            assert elite.cubin == (bench.folder / elite.cubin_sha256 / "kernel.cubin").read_bytes()
        assert sorted(elites, key=lambda one: one.median_us) == elites

    def test_a_slower_lot_leaves_the_default(self, bench: Bench) -> None:
        bench.run(FakeGpu(finals_us=lambda values: 500.0))

        assert {"SLOWER"} == {one.verdict for one in bench.study().elites()}
        assert "no significant winner: keep the default" == bench.summary()["winner"]

    def test_the_fastest_confirmed_config_wins(self, bench: Bench) -> None:
        bench.run(FakeGpu())
        [first, *_] = bench.study().elites()

        assert "FASTER" == first.verdict
        assert f"trial {first.number}" == bench.summary()["winner"]
        assert "none confirmed" == winner([])

    def test_something_else_can_be_done_meanwhile(self, bench: Bench) -> None:
        done = threading.Event()

        class Slow(FakeGpu):
            def finals(self, work: Any, seed: int) -> Any:
                assert done.wait(WAIT)
                return super().finals(work, seed)

        outcome = bench.run(Slow(), meanwhile=done.set)

        assert outcome.finals is not None

    def test_a_finalist_that_fails_is_no_elite(self, bench: Bench) -> None:
        device = FakeGpu(finals_us=lambda values: None if values["GRID"] == 1 else true_us(values))
        bench.run(device, proposer=Script(*RIGHT[:8]))
        grids = {one.number: one.config.values["GRID"] for one in bench.records()}

        assert set(grids) == set(device.finalists)
        assert {1, 2} == set(grids.values())
        assert {number for number, grid in grids.items() if grid == 2} == {one.number for one in bench.study().elites()}

    def test_a_finalist_that_fails_loses_its_measurement_and_its_place(self, bench: Bench) -> None:
        listener = Silent()
        device = FakeGpu(finals_us=lambda values: None if values["GRID"] == 1 else true_us(values))
        bench.run(device, proposer=Script(*RIGHT[:8]), listener=listener)
        refused = {one.number for one in bench.records() if one.config.values["GRID"] == 1}
        summary = bench.summary()
        bench.run(device, proposer=Script(*RIGHT[8:12]), budget=20)

        assert {"measured": 8 - len(refused), "correctness": len(refused)} == summary["verdicts"]
        assert refused.isdisjoint(row["trial"] for row in summary["measured"])
        assert refused == {int(note.split()[1]) for note in listener.notes if "is refused in the final run" in note}
        assert refused.isdisjoint(device.finalists), "others have their places"

    def test_where_all_finalists_fail_the_next_have_their_turn(self, bench: Bench) -> None:
        slowest = true_us(RIGHT[7])
        device = FakeGpu(finals_us=lambda values: None if true_us(values) <= slowest else true_us(values))
        bench.run(device, proposer=Script(*RIGHT[:11]))

        assert 2 == len(device.final_seeds)
        assert {8, 9, 10} == set(device.finalists) == {one.number for one in bench.study().elites()}

    def test_a_template_of_which_nothing_holds_is_given_up(self, bench: Bench) -> None:
        device = FakeGpu(finals_us=lambda values: None)
        bench.run(device, budget=40, proposer=Script(*RIGHT))

        assert 3 == len(device.final_seeds)
        assert [] == bench.study().elites()

    def test_what_was_confirmed_is_not_raced_again_for_nothing(self, bench: Bench) -> None:
        bench.run(FakeGpu(), proposer=Script(*RIGHT[:8]), budget=8)
        before = bench.study().elites(), bench.study().baselines()
        again = FakeGpu(finals_us=lambda values: 500.0)
        outcome = bench.run(again, proposer=Script(), budget=8)

        assert (End.SPENT_BEFORE, None, []) == (outcome.stopped, outcome.finals, again.final_seeds)
        assert before == (bench.study().elites(), bench.study().baselines())

    def test_what_was_killed_before_its_final_run_has_it_when_it_is_resumed(
        self, bench: Bench, dead_owner: Owner
    ) -> None:
        class Cut(FakeGpu):
            def finals(self, work: Any, seed: int) -> Any:
                raise Killed

        bench.run(FakeGpu(), proposer=Script(*RIGHT[4:10]), budget=6)
        with pytest.raises(Killed):
            bench.run(Cut(), proposer=Script(*RIGHT[:4]), budget=10, owner=dead_owner)
        device = FakeGpu()
        outcome = bench.run(device, proposer=Script(), budget=10)

        assert End.SPENT_BEFORE == outcome.stopped
        assert set(device.finalists) == {one.number for one in bench.study().elites()}
        assert {6, 7, 8, 9} < set(device.finalists)

    def test_the_lease_is_renewed_while_the_card_is_busy_for_long(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lease, "LEASE_SECONDS", 1.0)
        monkeypatch.setattr(studies, "RENEW_SECONDS", 0.2)
        monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.05)
        turns = []

        class Slow(FakeGpu):
            def start(self, values: Values, artifact: Artifact) -> Any:
                time.sleep(1.5)
                return super().start(values, artifact)

            def finals(self, work: Any, seed: int) -> Any:
                time.sleep(1.5)
                other = bench.study()
                other.acquire(Owner.current(), shared=True)
                turns.append(other.peers.take_turn())
                other.release()
                return super().finals(work, seed)

        bench.run(Slow(), proposer=Script(*RIGHT[:8]), shared=True)

        assert ["another's"] == turns
        assert 8 == len(bench.study().elites())

    def test_a_later_final_run_replaces_the_elites_of_the_one_before(self, bench: Bench) -> None:
        bench.run(FakeGpu(), proposer=Script(*RIGHT[-3:]))
        before = {one.number for one in bench.study().elites()}
        device = FakeGpu(finals_us=lambda values: 3 * true_us(values))
        bench.run(device, proposer=Script(*RIGHT[:9]))
        elites = bench.study().elites()

        assert {0, 1, 2} == before
        assert set(range(3, 11)) == set(device.finalists) == {one.number for one in elites}
        assert {"SLOWER"} == {one.verdict for one in elites}

    def test_baselines_keep_their_errors_and_the_reasons_why_they_do_not_run(self, bench: Bench) -> None:
        bench.run(FakeGpu())
        flash, sdpa = bench.summary()["baselines"]

        assert {"name": "flash", "unavailable": "no kernel here"} == flash
        assert ("sdpa", 1e-4, "warm", 300.0) == (sdpa["name"], sdpa["error"], sdpa["mode"], sdpa["cold_median_us"])
        assert 2.2 * true_us(fakes.SPACE.default) == pytest.approx(sdpa["median_us"])

    def test_without_a_gpu_nothing_is_confirmed(self, bench: Bench) -> None:
        outcome = bench.run(FakeDevice())
        summary = bench.summary()

        assert outcome.finals is None
        assert ([], [], "none confirmed") == (summary["elites"], summary["measured"], summary["winner"])
        assert all("median_us" not in row for row in summary["shortlist"])

    def test_the_environment_of_the_session_is_that_of_its_verdicts(self, bench: Bench) -> None:
        bench.run(FakeGpu(), budget=3)

        assert [{"driver": "1"}] * 3 == [dict(one.environment) for one in bench.records()]


@pytest.mark.parametrize(
    ("verdict", "trials"),
    [(Rejection(Gate.COMPILE, "too wide", {}), 2), (Rejection(Gate.STATIC, "breaks a rule", {}), 3)],
    ids=["paid", "free"],
)
def test_what_another_finishes_between_two_looks_is_not_missed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, verdict: Rejection, trials: int
) -> None:
    """It has the last of the budget in flight when this process has nothing to do: that is spent, or given back."""
    other = bench.study()
    other.acquire(Owner.current(), shared=True)
    [theirs] = other.claim(Script({}).propose(1))
    asked = Peers.may_leave_work

    def finish_it(peers: Peers) -> bool:
        if bench.records()[0].verdict is None and bench.search and bench.search._known.paid:
            other.commit(theirs, verdict, None)
            other.release()
        return asked(peers)

    monkeypatch.setattr(Peers, "may_leave_work", finish_it)
    outcome = bench.run(FakeGpu(), budget=2, shared=True, proposer=Script(dict(TILE=16), dict(TILE=32)))

    assert ("budget spent", 2) == (outcome.stopped, outcome.spent)
    assert trials == len(bench.records())
    assert "budget spent" == bench.archive.summary("fake").status


class Forgetful(FakeGpu):
    """Leaves the second candidate without a verdict, as several cards do with one on which two of them were lost."""

    def judge(self, work: Iterable[tuple[Candidate, Artifact]]) -> Iterator[tuple[Candidate, Verdict]]:
        yield from super().judge(one for one in work if one[0].number != 1)


def test_what_a_device_leaves_is_not_waited_for_in_company(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else can take it before this process ends."""
    monkeypatch.setattr(Search, "_wait", lambda search: pytest.fail("waits for itself"))
    outcome = bench.run(Forgetful(), budget=3, shared=True, proposer=Script({}, dict(TILE=16), dict(TILE=32)))

    assert 2 == outcome.spent
    assert ["done", "waiting", "done"] == [one.state for one in bench.records()]


def test_rejections_are_summed_up_by_reason_whatever_their_numbers(bench: Bench) -> None:
    study = bench.study()
    study.acquire(Owner.current())
    script = Script({}, dict(UNROLL=1), dict(UNROLL=2), dict(TILE=16))
    reasons = ["300 registers", "too wide", "290 registers", "4 registers"]
    gates = [Gate.RESOURCES, Gate.COMPILE, Gate.RESOURCES, Gate.RESOURCES]
    for candidate, why, at in zip(study.claim(script.propose(4)), reasons, gates, strict=True):
        study.commit(candidate, Rejection(at, why, {}), None)
    study.release()

    assert [
        {"gate": "resources", "count": 3, "example": "300 registers", "trial": 0},
        {"gate": "compile", "count": 1, "example": "too wide", "trial": 1},
    ] == bench.summary()["rejections"]


def test_who_shares_a_study_reads_a_trial_only_when_it_has_changed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claimed and judged: twice, and once more where a look falls between the two tables."""
    read: list[int] = []
    record = history._record

    def counted(space: SearchSpace, row: Mapping[Any, Any], *parts: Any) -> Record:
        read.append(row["number"])
        return record(space, row, *parts)

    monkeypatch.setattr(history, "_record", counted)
    bench.run(FakeGpu(), budget=16, batch=4, shared=True)

    assert 16 <= len(set(read))
    assert 3 >= max(Counter(read).values())
