"""One card in a thread of its own: it goes on while its caller commits, and says what it says without one."""

from __future__ import annotations

import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from test_cuda_protocol import ARTIFACT, candidate, wait_for
from test_devices_option import gpu, worker
from test_fleet import WAIT, FakeCard, Job, jobs, numbers

from evoengine.aside import Aside
from evoengine.devices.cuda import CudaDevice
from evoengine.devices.cuda.spares import Spares
from evoengine.devices.single import AHEAD, SingleCard
from evoengine.errors import EvoengineError, TemplateError, UserError
from evoengine.hardware import card
from evoengine.template import load_template
from evoengine.verdict import Candidate, Gate, Measurement, Rejection, Verdict


def card_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "the card"]


def started(fake: FakeCard) -> SingleCard:
    single = SingleCard(fake)
    single.start({}, ARTIFACT)
    return single


def raising(error: Exception) -> Callable[[Candidate], None]:
    def hook(one: Candidate) -> None:
        if one.number == 3:
            raise error

    return hook


class TestJudging:
    def test_goes_on_while_the_caller_has_other_things_to_do(self) -> None:
        drawn, begun = threading.Event(), threading.Event()

        def work() -> Iterator[Job]:
            yield from jobs(2)
            drawn.set()

        def hook(one: Candidate) -> None:
            assert drawn.wait(WAIT) if one.number == 1 else not begun.set()

        judged = started(FakeCard(hook=hook)).judge(work())
        first, _ = next(judged)

        assert 1 == first.number
        assert begun.wait(WAIT), "the second is begun while the first one's verdict is committed"
        assert [2] == numbers(judged)

    def test_no_more_is_drawn_than_it_has_use_for(self) -> None:
        """What is drawn late is chosen, built and refused with more known."""
        free, drawn = threading.Semaphore(0), []

        def work() -> Iterator[Job]:
            for job in jobs(20):
                drawn.append(job)
                yield job

        single = started(FakeCard(hook=lambda one: free.acquire(timeout=WAIT) and None))
        most = 0
        judged = single.judge(work())
        for done in range(1, 21):
            free.release()
            next(judged)
            most = max(most, len(drawn) - done)

        assert most in (AHEAD, AHEAD + 1), "what waits, and what it is busy with"

    def test_changes_nothing_of_what_the_card_says(self) -> None:
        alone, fake = FakeCard(), FakeCard()
        single = started(fake)

        assert "Fake GPU" == single.name
        assert alone.start({}, ARTIFACT) == single.start({}, ARTIFACT)
        assert list(alone.judge(jobs(20))) == list(single.judge(jobs(20)))
        assert alone.finals([], 7) == single.finals([], 7)
        assert [] == fake.bests, "it knows its own best"

    def test_candidates_are_drawn_by_the_callers_thread(self) -> None:
        drawn = []

        def work() -> Iterator[Job]:
            for job in jobs(5):
                drawn.append(threading.current_thread())
                yield job

        list(started(FakeCard()).judge(work()))

        assert {threading.main_thread()} == set(drawn)

    def test_what_the_card_keeps_to_the_end_is_told_too(self) -> None:
        """As it does with every time that is too good to be believed."""

        class Doubting(FakeCard):
            def judge(self, work: Iterable[Job]) -> Iterator[tuple[Candidate, Verdict]]:
                yield from super().judge(list(work))

        assert list(range(1, 21)) == numbers(started(Doubting()).judge(jobs(20)))


class TestFailure:
    @pytest.mark.parametrize(
        "error",
        [
            UserError("the GPU or its driver has failed"),
            EvoengineError("NVIDIA L4 does not recover from a candidate's fault"),
            TemplateError("the default config fails"),
            RuntimeError("a mistake of ours"),
        ],
    )
    def test_is_the_cards_own_after_the_verdicts_before_it(self, error: Exception) -> None:
        found: list[tuple[Candidate, Verdict]] = []

        with pytest.raises(type(error)) as raised:
            found.extend(started(FakeCard(hook=raising(error))).judge(jobs(9)))
        assert error is raised.value
        assert [1, 2] == numbers(found)
        assert [] == card_threads()

    def test_of_the_supply_is_told_after_the_verdict_in_flight(self) -> None:
        """The user's stop comes through the scheduler."""
        begun, stopped = threading.Event(), threading.Event()

        def work() -> Iterator[Job]:
            yield from jobs(2)
            assert begun.wait(WAIT)
            stopped.set()
            raise LookupError("stop")

        def hook(one: Candidate) -> None:
            begun.set()
            stopped.wait(WAIT)

        fake, found = FakeCard(hook=hook), []
        with pytest.raises(LookupError, match="stop"):
            found.extend(started(fake).judge(work()))

        assert numbers(found) == fake.judged
        assert 1 in fake.judged


class TestEnd:
    @pytest.fixture
    def stuck(self) -> FakeCard:
        """Judges one, and is in the second until it is interrupted."""
        fake = FakeCard()
        fake.hook = lambda one: one.number == 1 or (fake.interrupted.wait(WAIT) and None)
        return fake

    def test_a_caller_that_goes_away_leaves_nothing_running(self, stuck: FakeCard) -> None:
        judged = started(stuck).judge(jobs(9))
        next(judged)
        judged.close()  # type: ignore[attr-defined]

        assert [] == card_threads()

    def test_closing_ends_what_is_still_being_judged(self, stuck: FakeCard) -> None:
        single = started(stuck)
        judged = single.judge(jobs(9))
        next(judged)
        single.close()

        assert [] == card_threads()
        assert 1 == stuck.closed
        judged.close()  # type: ignore[attr-defined]

    def test_the_users_interrupt_ends_it(self, stuck: FakeCard) -> None:
        """Which reaches the thread that waits for the card, not the card's."""

        def interrupt() -> None:
            wait_for(lambda: stuck.judged == [1], "the first verdict")
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest may run where it is ignored
        thread = threading.Thread(target=interrupt)
        try:
            judged = started(stuck).judge(jobs(9))
            thread.start()
            with pytest.raises(KeyboardInterrupt):
                list(judged)
        finally:
            thread.join()
            signal.signal(signal.SIGINT, before)

        assert [] == card_threads()


@pytest.mark.usefixtures("no_orphans")
class TestOverAWorker:
    """The device of a card itself, over a stand-in for its worker process."""

    @pytest.fixture
    def single(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SingleCard]:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        template = load_template(Path(__file__).parent / "templates" / "axpb")
        spares = Spares((*worker(tmp_path), gpu(0).uuid))
        device = CudaDevice(template, template.module.PROBLEM(), card("l4"), uuid=gpu(0).uuid, seed=1, spares=spares)
        with closing(SingleCard(device)) as made:
            made.start(candidate(0).config.values, ARTIFACT)
            yield made

    def test_faults_and_doubts_are_what_they_are_without_a_thread(self, single: SingleCard) -> None:
        work = [
            (candidate(1, work=20), ARTIFACT),
            (candidate(2, "dies"), ARTIFACT),
            (candidate(3, "fast once", work=10), ARTIFACT),
            (candidate(4, "wrong"), ARTIFACT),
            (candidate(5, work=9), ARTIFACT),
        ]
        found = {one.number: verdict for one, verdict in single.judge(work)}
        order = list(found)

        assert [1, 2, 4, 5, 3] == order, "what is in doubt comes last"
        assert {2: Gate.RUNTIME, 4: Gate.CORRECTNESS} == {
            number: verdict.gate for number, verdict in found.items() if isinstance(verdict, Rejection)
        }
        assert isinstance(found[3], Measurement)
        assert "rechecked" in found[3].flags

    def test_a_job_in_flight_does_not_hold_up_the_end(self, single: SingleCard) -> None:
        judged = single.judge([(candidate(n, fault), ARTIFACT) for n, fault in ((1, "right"), (2, "hangs"))])
        next(judged)
        began = time.monotonic()
        single.close()

        assert time.monotonic() - began < 9.0, "the job's own deadline is 10 s, its sleep 600"
        assert [] == card_threads()


def test_closing_ends_a_final_run_that_another_thread_waits_for() -> None:
    fake, racing, freed = FakeCard(), threading.Event(), []

    def at_finals() -> None:
        racing.set()
        assert fake.interrupted.wait(WAIT)
        raise EvoengineError("interrupted")

    fake.at_finals = at_finals
    single = SingleCard(fake, lambda: freed.append("scratch"))
    race = Aside(lambda: single.finals([], 3), single.close)
    with race:
        assert racing.wait(WAIT)
        race.give_up()

    with pytest.raises(EvoengineError, match="interrupted"):
        race.result()
    assert ([], 1, ["scratch"]) == (card_threads(), fake.closed, freed)
