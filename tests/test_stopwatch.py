"""Wall time by activity: every moment counts once, for the innermost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from evoengine.stopwatch import OUTSIDE, Stopwatch


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_innermost_activity_is_booked_and_the_sum_is_the_whole_time() -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    clock.now += 1
    with watch("judging"):
        clock.now += 2
        with watch("database"):
            clock.now += 4
        clock.now += 8
    clock.now += 16
    with watch("database"):
        clock.now += 32

    assert {OUTSIDE: 17.0, "judging": 10.0, "database": 36.0} == watch.seconds()
    assert clock.now - 100.0 == sum(watch.seconds().values())


def test_waiting_for_items_is_booked_and_what_is_done_with_them_is_not() -> None:
    clock = Clock()
    watch = Stopwatch(clock)

    def items() -> Iterator[int]:
        for item in range(3):
            clock.now += 1
            yield item
        clock.now += 1

    for _ in watch.each("waiting", items()):
        clock.now += 10

    assert {OUTSIDE: 30.0, "waiting": 4.0} == watch.seconds()


def test_an_error_ends_the_activity() -> None:
    clock = Clock()
    watch = Stopwatch(clock)

    def fail() -> None:
        with watch("judging"):
            clock.now += 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    clock.now += 2

    assert {OUTSIDE: 2.0, "judging": 1.0} == watch.seconds()
