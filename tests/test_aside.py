"""A step in a thread of its own: its result, its error, and what an error of its caller does to it."""

from __future__ import annotations

import threading

import pytest

from evoengine.aside import Aside

WAIT = 20.0


def test_its_caller_goes_on_meanwhile_and_gets_the_result() -> None:
    gone_on = threading.Event()
    with Aside(lambda: gone_on.wait(WAIT), gone_on.clear) as step:
        gone_on.set()

        assert step.result()


def test_its_error_is_the_callers() -> None:
    def work() -> None:
        raise LookupError("there")

    with Aside(work, lambda: None) as step, pytest.raises(LookupError, match="there"):
        step.result()


def test_an_error_of_the_caller_ends_it() -> None:
    given_up = threading.Event()
    step = Aside(lambda: given_up.wait(WAIT), given_up.set)

    def caller() -> None:
        with step:
            raise LookupError("here")

    with pytest.raises(LookupError, match="here"):
        caller()
    assert step.result(), "it was told, and has ended"
