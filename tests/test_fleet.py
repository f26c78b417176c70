"""Several cards as one judge: who is given what, on which scale, and what a lost card costs."""

from __future__ import annotations

import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evoengine.archive.documents import typed
from evoengine.aside import Aside
from evoengine.cli.running import usual_batch
from evoengine.devices.cuda import references
from evoengine.devices.cuda.results import BaselineTiming, Final, Finals, Setup, make_final
from evoengine.devices.fleet import Fleet
from evoengine.devices.pool import Card
from evoengine.errors import EvoengineError, TemplateError, UserError
from evoengine.oracle import InputSet, make_input_set
from evoengine.recorded.load import load
from evoengine.recorded.space import RecordedSpace
from evoengine.sampler import Seen
from evoengine.sampler.proposer import Proposer
from evoengine.shared_cards import SharedCard
from evoengine.space import Config, Values
from evoengine.template import load_template
from evoengine.verdict import Artifact, Candidate, Gate, Measurement, Rejection, ResourceUsage, Verdict

ARTIFACT = Artifact("d" * 32, Path("nowhere"), "0" * 64, ResourceUsage(32, 0, 0, 0, 0, 1024), 0.1, "nvrtc", "sm_89")
SPACES = Path(__file__).resolve().parent.parent / "studies" / "h200" / "spaces"
WAIT = 30.0
"""Seconds after which a test that waits for another thread has failed."""

Job = tuple[Candidate, Artifact]


def jobs(count: int, first: int = 1) -> list[Job]:
    return [(Candidate(n, Config((("N", n),), f"c{n}"), "random"), ARTIFACT) for n in range(first, first + count)]


def numbers(judged: Iterable[tuple[Candidate, Verdict]]) -> list[int]:
    return sorted(candidate.number for candidate, _ in judged)


class FakeCard:
    """Times every candidate as a fixed ratio to a control that takes `level_us`; `hook` is called in each job."""

    name = "Fake GPU"

    def __init__(self, level_us: float = 10.0, hook: Callable[[Candidate], None] = lambda one: None) -> None:
        self.level_us = level_us
        self.hook = hook
        self.judged: list[int] = []
        self.bests: list[float] = []
        self.interrupted = threading.Event()
        self.closed = 0
        self.at_start: Callable[[], None] = lambda: None
        self.at_finals: Callable[[], None] = lambda: None

    def start(self, values: Values, artifact: Artifact) -> Setup:
        self.at_start()
        sdpa = BaselineTiming("sdpa", (2 * self.level_us,) * 2, (self.level_us,) * 2, 10, 1e-3, 1e-4, 0)
        environment = {"gpu": self.name, "driver": "1", "level": self.level_us}
        return Setup(self._measured(1.0), (sdpa,), {}, environment, (f"warned at {self.level_us}",))

    def judge(self, work: Iterable[Job]) -> Iterator[tuple[Candidate, Verdict]]:
        for candidate, _ in work:
            self.hook(candidate)
            if self.interrupted.is_set():
                raise EvoengineError("interrupted")
            self.judged.append(candidate.number)
            yield candidate, self.verdict(candidate)

    def verdict(self, candidate: Candidate) -> Verdict:
        if candidate.number % 7 == 0:
            return Rejection(Gate.CORRECTNESS, "wrong", {"seed": 1})
        return self._measured(1.0 / candidate.number)

    def _measured(self, ratio: float) -> Measurement:
        windows = (ratio * self.level_us,) * 3
        return Measurement(windows, (self.level_us,) * 3, self.level_us, 10, "warm", "converged")

    def finals(self, work: Any, seed: int) -> Finals:
        self.at_finals()
        control = make_final("default", [self.level_us] * 5, [self.level_us] * 5, 10, seed)
        assert isinstance(control, Final)
        return Finals(control, (), (), {"level": self.level_us}, seed)

    def learn_best(self, best_us: float) -> None:
        self.bests.append(best_us)

    def interrupt(self) -> None:
        self.interrupted.set()

    def close(self) -> None:
        self.closed += 1


class Bench:
    """A fleet that is started, its cards, and what it had to say."""

    def __init__(self, *cards: FakeCard) -> None:
        self.cards = cards
        self.notes: list[str] = []
        self.released = 0
        self.fleet = Fleet(
            "Fake GPU", [Card(f"GPU-{i}", c) for i, c in enumerate(cards)], self.notes.append, self._after
        )
        self.setup = self.fleet.start({}, ARTIFACT)

    def _after(self) -> None:
        self.released += 1


GONE = UserError("the GPU or its driver has failed")


def test_every_candidate_has_one_verdict_that_says_which_card_reached_it() -> None:
    meet = threading.Barrier(3, timeout=WAIT)
    bench = Bench(*(FakeCard(hook=lambda one: meet.wait() and None if one.number <= 3 else None) for _ in range(3)))
    judged = list(bench.fleet.judge(jobs(30)))

    assert list(range(1, 31)) == numbers(judged)
    assert {f"GPU-{i}": sorted(card.judged) for i, card in enumerate(bench.cards)} == {
        name: sorted(one.number for one, verdict in judged if verdict.evidence["card"] == name)
        for name in ("GPU-0", "GPU-1", "GPU-2")
    }
    assert all(card.judged for card in bench.cards)
    assert {1} == {verdict.evidence["seed"] for _, verdict in judged if isinstance(verdict, Rejection)}
    assert "3 x Fake GPU" == bench.fleet.name


@pytest.mark.parametrize(("cards", "gain"), [(2, 1.8), (4, 3.2)])
def test_more_cards_judge_in_proportion(cards: int, gain: float) -> None:
    """Jobs sleep 40 ms, as long as a short one on a card takes, and the caller commits for 2 ms as a database does."""

    def seconds(count: int) -> float:
        bench = Bench(*(FakeCard(hook=lambda one: time.sleep(0.04)) for _ in range(count)))
        started = time.monotonic()
        for _ in bench.fleet.judge(jobs(48)):
            time.sleep(0.002)
        return time.monotonic() - started

    assert max(seconds(1) / seconds(cards) for _ in range(2)) >= gain


def test_a_slow_card_does_not_hold_up_the_others() -> None:
    busy, rest = threading.Event(), threading.Event()
    slow = FakeCard(hook=lambda one: busy.set() or (rest.wait(WAIT) and None))
    fast = FakeCard(hook=lambda one: busy.wait(WAIT) and None)
    bench = Bench(slow, fast)
    for seen, _ in enumerate(bench.fleet.judge(jobs(20)), start=1):
        if seen == 19:
            rest.set()

    assert [1, 19] == [len(slow.judged), len(fast.judged)]


def test_candidates_are_drawn_and_verdicts_handed_out_by_the_callers_thread() -> None:
    drawn = []

    def work() -> Iterator[Job]:
        for job in jobs(10):
            drawn.append(threading.current_thread())
            yield job

    bench = Bench(FakeCard(), FakeCard())
    list(bench.fleet.judge(work()))

    assert {threading.main_thread()} == set(drawn)


def test_no_more_is_drawn_than_the_cards_have_use_for() -> None:
    """What is drawn late is chosen, built and refused with more known."""
    free, drawn = threading.Semaphore(0), []

    def work() -> Iterator[Job]:
        for job in jobs(20):
            drawn.append(job)
            yield job

    bench = Bench(*(FakeCard(hook=lambda one: free.acquire(timeout=WAIT) and None) for _ in range(2)))
    judged = bench.fleet.judge(work())
    for done in range(1, 21):
        free.release()
        next(judged)
        assert len(drawn) <= done + 2 * 2


def test_cards_that_keep_their_verdicts_to_the_end_are_supplied_all_the_same() -> None:
    """As a card does with every time that is too good to be believed."""

    class Doubting(FakeCard):
        def judge(self, work: Iterable[Job]) -> Iterator[tuple[Candidate, Verdict]]:
            yield from super().judge(list(work))

    bench = Bench(Doubting(), Doubting())

    assert list(range(1, 21)) == numbers(bench.fleet.judge(jobs(20)))


class TestScale:
    def test_values_of_all_cards_are_on_the_first_ones(self) -> None:
        meet = threading.Barrier(3, timeout=WAIT)
        bench = Bench(
            *(FakeCard(us, lambda one: meet.wait() and None if one.number <= 3 else None) for us in (10.0, 11.0, 9.0))
        )
        judged = list(bench.fleet.judge(jobs(30)))

        for candidate, verdict in judged:
            if isinstance(verdict, Measurement):
                assert pytest.approx(10.0 / candidate.number) == verdict.median_us
        assert {9.0, 10.0, 11.0} == {one.control_us[0] for _, one in judged if isinstance(one, Measurement)}

    def test_every_card_learns_the_best_on_its_own_scale(self) -> None:
        bench = Bench(FakeCard(10.0), FakeCard(12.0))
        list(bench.fleet.judge(jobs(6)))

        for card in bench.cards:
            assert pytest.approx(card.level_us / 6) == min(card.bests)

    def test_the_set_up_is_the_firsts_with_what_each_was_found_to_be(self) -> None:
        bench = Bench(FakeCard(10.0), FakeCard(11.0))
        setup = bench.setup
        cards = typed(dict[str, SharedCard], setup.environment["cards"])

        assert 10.0 == setup.control_us
        assert ["sdpa"] == [one.name for one in setup.baselines]
        assert ("card GPU-0: warned at 10.0", "card GPU-1: warned at 11.0") == setup.warnings
        assert {"GPU-0": (10.0, {}), "GPU-1": (11.0, {"level": 11.0})} == {
            name: (card.control_us, card.differs) for name, card in cards.items()
        }
        assert [{"sdpa": 20.0}, {"sdpa": 22.0}] == [card.baselines_us for card in cards.values()]


class TestStart:
    def test_is_on_all_cards_at_the_same_time(self) -> None:
        meet = threading.Barrier(3, timeout=WAIT)
        cards = [FakeCard() for _ in range(3)]
        for card in cards:
            card.at_start = lambda: meet.wait() and None
        Bench(*cards)

        assert not meet.broken

    @pytest.mark.parametrize("kind", [UserError, TemplateError, EvoengineError])
    def test_names_the_card_that_is_not_fit(self, kind: type[EvoengineError]) -> None:
        cards = [FakeCard(), FakeCard()]

        def busy() -> None:
            raise kind("the card was 40 % busy")

        cards[1].at_start = busy

        with pytest.raises(kind, match=r"^card GPU-1: the card was 40 % busy"):
            Bench(*cards)

    def test_is_ended_by_the_users_interrupt(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Which reaches the thread that waits for the cards, not theirs."""
        cards = [FakeCard(), FakeCard()]
        cards[0].at_start = lambda: cards[0].interrupted.wait(WAIT) and None
        cards[1].at_start = lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest may run where it is ignored
        try:
            with pytest.raises(KeyboardInterrupt):
                Bench(*cards)
        finally:
            signal.signal(signal.SIGINT, before)

        assert cards[0].interrupted.is_set()
        assert [] == card_threads()


class TestLostCard:
    @pytest.mark.parametrize("error", [GONE, EvoengineError("does not recover from a candidate's fault")])
    def test_costs_its_job_in_flight_which_another_card_does(self, error: EvoengineError) -> None:
        # The healthy card holds its first job until the other has failed.
        lost = threading.Event()

        def fail(one: Candidate) -> None:
            lost.set()
            raise error

        broken = FakeCard(hook=fail)
        healthy = FakeCard(hook=lambda one: lost.wait(WAIT) and None)
        bench = Bench(broken, healthy)
        judged = list(bench.fleet.judge(jobs(20)))

        assert list(range(1, 21)) == numbers(judged)
        assert [0, 20] == [len(broken.judged), len(healthy.judged)]
        assert [f"card GPU-0 is lost, going on with 1 card and what it had in flight: {error}"] == bench.notes
        assert 1 == broken.closed
        assert list(range(21, 31)) == numbers(bench.fleet.judge(jobs(10, 21)))

    def test_at_the_end_its_job_is_still_done(self) -> None:
        """The other card has already been told that there is no more."""
        busy, done = threading.Event(), threading.Event()

        def late(one: Candidate) -> None:
            busy.set()
            done.wait(WAIT)
            raise GONE

        bench = Bench(FakeCard(hook=late), FakeCard(hook=lambda one: busy.wait(WAIT) and None))
        found = []
        for judged in bench.fleet.judge(jobs(8)):
            found.append(judged)
            if len(found) == 7:
                done.set()

        assert list(range(1, 9)) == numbers(found)
        assert 1 == len(bench.notes)

    def test_gives_back_what_it_doubted_too(self) -> None:
        """A card keeps to the end what seems too good to be true."""

        class Doubting(FakeCard):
            def judge(self, work: Iterable[Job]) -> Iterator[tuple[Candidate, Verdict]]:
                for _ in work:
                    pass
                raise GONE
                yield

        bench = Bench(Doubting(), FakeCard())

        assert list(range(1, 13)) == numbers(bench.fleet.judge(jobs(12)))

    def test_the_last_ones_error_ends_the_search(self) -> None:
        bench = Bench(*(FakeCard(hook=lambda one: _raise(GONE) if one.number > 4 else None) for _ in range(2)))
        found: list[tuple[Candidate, Verdict]] = []

        with pytest.raises(UserError, match=r"^no card is left; the last was GPU-[01]: the GPU or its driver has"):
            found.extend(bench.fleet.judge(jobs(9)))
        assert [1, 2, 3, 4] == numbers(found)
        assert 1 == len(bench.notes)

    def test_a_candidate_on_two_lost_cards_is_not_given_to_a_third(self) -> None:
        def hook(one: Candidate) -> None:
            if one.number == 5:
                raise EvoengineError("the driver hangs")

        bench = Bench(*(FakeCard(hook=hook) for _ in range(3)))
        judged = list(bench.fleet.judge(jobs(12)))

        assert [n for n in range(1, 13) if n != 5] == numbers(judged)
        assert "trial 5 was in flight on 2 cards that were lost: left for the next run" == bench.notes[-1]

    def test_in_the_final_run_another_takes_over(self) -> None:
        cards = [FakeCard(10.0), FakeCard(11.0)]
        cards[0].at_finals = lambda: _raise(EvoengineError("the final run fails on the card"))
        bench = Bench(*cards)

        assert {"level": 11.0} == bench.fleet.finals([], 3).environment
        assert ["card GPU-0 is lost"] == [note.partition(",")[0] for note in bench.notes]

    def test_a_broken_template_is_no_cards_fault(self) -> None:
        cards = [FakeCard(), FakeCard()]
        cards[0].at_finals = lambda: _raise(TemplateError("the default config fails"))
        bench = Bench(*cards)

        with pytest.raises(TemplateError):
            bench.fleet.finals([], 3)
        assert [] == bench.notes


def _raise(error: Exception) -> None:
    raise error


class TestEnd:
    @pytest.mark.parametrize("error", [TemplateError("the default config fails"), RuntimeError("a mistake of ours")])
    def test_an_error_of_ours_or_the_templates_ends_all(self, error: Exception) -> None:
        waiting = FakeCard()
        waiting.hook = lambda one: waiting.interrupted.wait(WAIT) and None
        bench = Bench(FakeCard(hook=lambda one: _raise(error)), waiting)

        with pytest.raises(type(error), match=str(error)):
            list(bench.fleet.judge(jobs(9)))
        assert waiting.interrupted.is_set()
        assert [] == card_threads()

    def test_what_is_in_flight_is_judged_before_the_supplys_error(self) -> None:
        """The user's stop comes through the scheduler."""
        stopped = threading.Event()

        def work() -> Iterator[Job]:
            yield from jobs(3)
            stopped.set()
            raise LookupError("stop")

        bench = Bench(*(FakeCard(hook=lambda one: stopped.wait(WAIT) and None) for _ in range(2)))
        found = []
        with pytest.raises(LookupError, match="stop"):
            found.extend(bench.fleet.judge(work()))

        assert 2 <= len(found) <= 3, "one in flight on each card; what only waits is not begun"
        assert numbers(found) == sorted(n for card in bench.cards for n in card.judged)

    def test_a_caller_that_goes_away_leaves_nothing_running(self) -> None:
        cards = [FakeCard(), FakeCard()]
        cards[1].hook = lambda one: cards[1].interrupted.wait(WAIT) and None
        bench = Bench(*cards)
        judged = bench.fleet.judge(jobs(9))
        next(judged)
        judged.close()  # type: ignore[attr-defined]

        assert [] == card_threads()

    def test_closing_ends_what_is_still_being_judged(self) -> None:
        cards = [FakeCard(), FakeCard()]
        cards[1].hook = lambda one: cards[1].interrupted.wait(WAIT) and None
        bench = Bench(*cards)
        judged = bench.fleet.judge(jobs(9))
        next(judged)
        bench.fleet.close()

        assert [] == card_threads()
        assert [1, 1] == [card.closed for card in cards]
        judged.close()  # type: ignore[attr-defined]

    def test_closing_ends_a_final_run_that_another_thread_waits_for_and_begins_none_elsewhere(self) -> None:
        cards, racing = [FakeCard(), FakeCard()], threading.Event()

        def at_finals() -> None:
            racing.set()
            assert cards[0].interrupted.wait(WAIT)
            raise EvoengineError("interrupted")

        cards[0].at_finals = at_finals
        cards[1].at_finals = lambda: _raise(AssertionError("begun elsewhere"))
        bench = Bench(*cards)
        race = Aside(lambda: bench.fleet.finals([], 3), bench.fleet.close)
        with race:
            assert racing.wait(WAIT)
            race.give_up()

        with pytest.raises(EvoengineError, match="interrupted"):
            race.result()
        assert [] == bench.notes

    def test_closing_frees_every_card_whatever_one_of_them_says(self) -> None:
        cards = [FakeCard(), FakeCard(), FakeCard()]
        bench = Bench(*cards)
        cards[1].close = lambda: _raise(EvoengineError("the driver hangs"))  # type: ignore[method-assign]

        with pytest.raises(EvoengineError, match="the driver hangs"):
            bench.fleet.close()
        assert [1, 1, 1] == [cards[0].closed, cards[2].closed, bench.released]


def card_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("GPU-")]


def test_cards_compute_one_reference_between_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes all cores for a minute at 16 k keys."""
    template = load_template(Path(__file__).parent / "templates" / "axpb")
    problem = template.module.PROBLEM()
    made: list[str] = []

    def make(*arguments: Any) -> InputSet:
        made.append(threading.current_thread().name)
        time.sleep(0.2)
        return make_input_set(*arguments)

    monkeypatch.setattr(references, "make_input_set", make)
    found: list[InputSet] = []

    def worker() -> None:
        found.append(references.input_set(template, problem, 7, "timed", tmp_path))

    threads = [threading.Thread(target=worker) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [1, 4] == [len(made), len(found)]
    assert all(np.array_equal(one.reference[name], found[0].reference[name]) for one in found for name in one.reference)


class RecordedCard(FakeCard):
    """Answers from a recorded space, each config after the time it would take, on a clock a thousand times as fast."""

    def __init__(self, space: RecordedSpace, level_us: float) -> None:
        super().__init__(level_us)
        self._space = space
        self._default_us = float(np.nanmedian(space.costs))

    def verdict(self, candidate: Candidate) -> Verdict:
        cost = float(self._space.costs[candidate.config.values["N"]])
        if np.isnan(cost):
            return Rejection(Gate.RUNTIME, "recorded as failed")
        return self._measured(cost / self._default_us)


def searched(space: RecordedSpace, cards: int, seed: int, budget: int, jobs_at_a_time: int) -> float:
    """The best of a search with a fleet, over the optimum of the space."""
    bench = Bench(*(RecordedCard(space, 10.0 + n) for n in range(cards)))
    proposer = Proposer(space.search_space, space.feasible, sampler="evolution", seed=seed)
    batch, done, best = usual_batch(jobs_at_a_time, cards), 0, float("inf")
    while proposals := proposer.propose(min(batch, budget - done)):
        proposed = {done + n: one for n, one in enumerate(proposals)}
        rows = {number: space.row_of[one.point] for number, one in proposed.items()}
        work = [(Candidate(number, Config((("N", row),), ""), ""), ARTIFACT) for number, row in rows.items()]
        for candidate, verdict in bench.fleet.judge(work):
            one = proposed[candidate.number]
            value = verdict.median_us if isinstance(verdict, Measurement) else None
            seen = Seen(candidate.number, one.point, value, "done", one.operator, one.generation, one.parents)
            proposer.observe([seen])
            best = min(best, float("inf") if value is None else float(space.costs[rows[candidate.number]]))
        done += len(proposals)
    return best / float(np.nanmin(space.costs))


def test_four_cards_find_what_one_finds() -> None:
    """On the recorded mission shape: more candidates are proposed at a time, and verdicts come in another order."""
    space = load(SPACES / "mission.jsonl.gz")
    found = {cards: [searched(space, cards, seed, 100, 16) for seed in range(8)] for cards in (1, 4)}
    gap = statistics.mean(found[4]) - statistics.mean(found[1])
    error = (sum(statistics.variance(one) for one in found.values()) / 8) ** 0.5

    assert gap <= 2 * error + 0.005, found


@pytest.mark.parametrize(
    ("jobs", "cards", "batch"),
    [(2, 1, 8), (16, 1, 32), (64, 1, 32), (2, 2, 32), (16, 2, 32), (16, 4, 64), (32, 2, 64), (128, 8, 64)],
)
def test_a_batch_is_for_all_cards_and_never_most_of_a_search(jobs: int, cards: int, batch: int) -> None:
    assert batch == usual_batch(jobs, cards)
