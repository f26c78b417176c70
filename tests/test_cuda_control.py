"""The watch over the control: drift, throttling and noise on a simulated card whose state is a function of time."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from fake_card import SimulatedEvents

from evoengine.devices.cuda import control, timer
from evoengine.devices.cuda.control import Control, Timed

STEADY: Callable[[float], float] = lambda now_us: 1.0  # noqa: E731
LAUNCHES = 100


@dataclass
class Card:
    """A card whose launches take `slowness(now_us)` times as long as they should, at `clock(now_us)` MHz."""

    slowness: Callable[[float], float] = STEADY
    clock: Callable[[float], float | None] = lambda now_us: 2000.0
    events: SimulatedEvents = field(default_factory=lambda: SimulatedEvents(0.001))

    def clocks(self) -> dict[str, Any]:
        return {"sm_clock_mhz": self.clock(self.events.now_us)}

    def window(self, launch_us: float) -> Window:
        return Window(self, launch_us)

    def control(self, reference_us: float | None = None) -> Control:
        return Control(None, self.window(10.0), self, reference_us)  # type: ignore[arg-type]


@dataclass
class Window:
    """Launches with 0.1 % of noise that repeats every seven windows."""

    card: Card
    launch_us: float
    launches: int = LAUNCHES
    replays: int = 0

    def replay(self) -> None:
        self.replays += 1
        events = self.card.events
        noise = 1 + 0.001 * (self.replays * 3 % 7 - 3) / 3
        events.now_us += self.launches * self.launch_us * self.card.slowness(events.now_us) * noise

    def destroy(self) -> None: ...


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "RECOVERY_SECONDS", 0.0)


def judge(made: Control, card: Card, launch_us: float = 10.0, best_us: float = 10.0) -> Timed:
    return made.time(card.window(launch_us), launch_us, best_us)


def slower_from(start_us: float, factor: float) -> Callable[[float], float]:
    return lambda now_us: factor if now_us >= start_us else 1.0


def test_a_steady_card_raises_no_flag() -> None:
    card = Card()
    made = card.control()
    timed = [judge(made, card) for _ in range(25)]

    assert {()} == {one.flags for one in timed}
    assert 10.0 == pytest.approx(made.reference_us, rel=0.002)
    assert all(abs(one.evidence["control_moved"]) < 0.002 for one in timed)
    assert all("earlier_ratios" not in one.evidence for one in timed)
    assert all(one.evidence["half_width"] < timer.HALF_WIDTH for one in timed)


def test_the_control_is_timed_alone_every_ten_candidates() -> None:
    card = Card()
    made = card.control()
    before = made.window.replays  # type: ignore[attr-defined]
    beside = []
    for _ in range(2 * control.WATCH_EVERY):
        start = made.window.replays  # type: ignore[attr-defined]
        pairs = judge(made, card).pairs
        beside.append(made.window.replays - start - len(pairs.control_us) - 1)  # type: ignore[attr-defined]

    assert before > control.WINDOWS
    alone = control.WATCH_WINDOWS + 1  # and, as beside each candidate, the one that keeps the card busy
    assert ([0] * 9 + [alone]) * 2 == beside


def test_an_interval_in_which_the_control_moves_is_flagged_and_then_over() -> None:
    card = Card()
    made = card.control()
    card.slowness = lambda now_us: 1.03
    flags = [judge(made, card, launch_us=15.0).flags for _ in range(20)]

    assert [("control_drifted",)] * 10 + [()] * 10 == flags, "the new level is known after the tenth"


def test_a_contender_in_drifting_times_is_timed_again_at_the_new_level() -> None:
    card = Card()
    made = card.control()
    card.slowness = lambda now_us: 1.03
    first, second = judge(made, card, launch_us=9.0), judge(made, card, launch_us=9.0)

    assert ("control_drifted",) == first.flags
    assert 0.9 == pytest.approx(first.evidence["earlier_ratios"][0], rel=0.005)
    assert 0.03 == pytest.approx(first.evidence["control_moved"], abs=0.003)
    assert () == second.flags, "its second timing moved the level"


def test_two_per_cent_is_the_line() -> None:
    for factor, flags in ((1.015, ()), (0.985, ()), (1.025, ("control_drifted",)), (0.975, ("control_drifted",))):
        card = Card()
        made = card.control()
        card.slowness = lambda now_us, factor=factor: factor
        assert flags == judge(made, card, launch_us=15.0).flags, factor


def test_drift_between_windows_does_not_bend_the_ratio() -> None:
    """5 % slower over the windows of one candidate: both of a pair are slowed alike."""
    card = Card()
    made = card.control()
    start = card.events.now_us
    card.slowness = lambda now_us: 1 + 0.05 * min((now_us - start) / 20_000, 1.0)
    timed = judge(made, card, launch_us=9.5, best_us=8.0)

    ratios = sorted(w / c for w, c in zip(timed.pairs.windows_us, timed.pairs.control_us, strict=True))
    assert 0.95 == pytest.approx(ratios[len(ratios) // 2], rel=0.003)


def test_throttled_windows_are_taken_again_until_the_clock_is_back() -> None:
    card = Card()
    made = card.control()
    readings = itertools.chain([1700.0, 1750.0], itertools.repeat(2000.0))
    card.clock = lambda now_us: next(readings)
    timed = judge(made, card)

    assert () == timed.flags
    assert 2 == len(timed.evidence["earlier_ratios"])
    assert {"sm_clock_mhz": 2000.0} == timed.clocks


def test_windows_that_stay_throttled_are_kept_and_flagged() -> None:
    card = Card()
    made = card.control()
    card.clock = lambda now_us: 1799.0
    timed, following = judge(made, card), judge(made, card)

    assert ("throttled",) == timed.flags
    assert control.THROTTLE_TRIES == len(timed.evidence["earlier_ratios"])
    assert timer.MIN_PAIRS == len(timed.pairs.windows_us)
    assert () == following.flags, "the control's own clock is as low now: a power limit is no candidate's fault"


@pytest.mark.parametrize("clock", [1801.0, None])
def test_a_clock_close_to_the_controls_or_unknown_is_no_throttling(clock: float | None) -> None:
    card = Card()
    made = card.control()
    card.clock = lambda now_us: clock

    assert () == judge(made, card).flags


def test_the_noise_is_of_the_best_of_three_tries() -> None:
    card = Card(slowness=lambda now_us: 1.3 if now_us < 30_000 and int(now_us / 1000) % 2 else 1.0)
    settled = card.control()
    restless = Card(slowness=lambda now_us: 1.3 if int(now_us / 1000) % 2 else 1.0).control()

    assert settled.noise < control.NOISY < restless.noise


def test_a_fresh_worker_keeps_the_reference_but_not_the_level() -> None:
    card = Card(slowness=lambda now_us: 1.05)
    made = card.control(reference_us=10.0)

    assert 10.0 == made.reference_us
    assert () == judge(made, card).flags


def test_a_beaten_candidate_is_not_timed_again_for_drift() -> None:
    card = Card()
    made = card.control()
    card.slowness = lambda now_us: 1.05
    timed = judge(made, card, launch_us=30.0)

    assert "beaten" == timed.pairs.stopped
    assert ("control_drifted",) == timed.flags
    assert "earlier_ratios" not in timed.evidence
