"""The pace of a search: how much is in flight, and which verdicts a proposal may know."""

from __future__ import annotations

import pytest

from evoengine.pace import Pace, visible
from evoengine.sampler import Seen


@pytest.mark.parametrize(
    ("batch", "number", "known", "room"),
    [
        (48, 0, 0, 6),
        (48, 24, 0, 6),  # the first 30 know nothing
        (48, 30, 6, 6),
        (48, 32, 6, 4),  # a step that the budget cut short is filled up
        (48, 36, 12, 6),
        (8, 8, 4, 1),
        (2, 7, 6, 1),
        (1, 0, 0, 1),
        (1, 7, 7, 1),  # one at a time knows all
    ],
)
def test_a_proposal_knows_all_but_the_last_half_batch(batch: int, number: int, known: int, room: int) -> None:
    pace = Pace(batch)

    assert (known, room) == (pace.known(number), pace.room(number))


@pytest.mark.parametrize("batch", range(1, 60))
def test_the_most_in_flight_is_less_than_a_batch(batch: int) -> None:
    pace = Pace(batch)

    assert pace.most == max(number + pace.room(number) - pace.known(number) for number in range(200))
    assert pace.most <= max(batch, 2) if batch < 4 else pace.most < batch


def test_what_a_proposal_may_not_know_runs() -> None:
    trials = [Seen(number, (number,), 10.0 + number, "done", expected_gain=0.5) for number in range(3)]
    first, second, third = visible(trials, 2)

    assert trials[:2] == [first, second]
    assert Seen(2, (2,), None, "running", expected_gain=0.5) == third
