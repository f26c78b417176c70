"""The pace of a search: how much is in flight, and which verdicts a proposal may know."""

from __future__ import annotations

import pytest

from evoengine.pace import Pace, visible
from evoengine.sampler import Seen


@pytest.mark.parametrize(
    ("batch", "number", "known", "room"),
    [
        (32, 0, 0, 4),  # the first batch knows nothing
        (32, 28, 0, 4),
        (32, 32, 16, 4),
        (32, 33, 16, 3),  # a step that the budget cut short is filled up
        (32, 36, 20, 4),
        (8, 7, 0, 1),
        (8, 8, 4, 1),
        (1, 0, 0, 1),
        (1, 7, 7, 1),  # one at a time knows all
        (2, 7, 6, 1),
        (17, 16, 0, 1),  # no more than the batch
    ],
)
def test_a_proposal_knows_all_but_the_last_half_batch(batch: int, number: int, known: int, room: int) -> None:
    pace = Pace(batch)

    assert (known, room) == (pace.known(number), pace.room(number))


@pytest.mark.parametrize("batch", range(1, 40))
def test_no_more_than_a_batch_is_ever_in_flight(batch: int) -> None:
    pace = Pace(batch)

    assert batch == max(number + pace.room(number) - pace.known(number) for number in range(200))


def test_what_a_proposal_may_not_know_runs() -> None:
    trials = [Seen(number, (number,), 10.0 + number, "done", expected_gain=0.5) for number in range(3)]
    first, second, third = visible(trials, 2)

    assert trials[:2] == [first, second]
    assert Seen(2, (2,), None, "running", expected_gain=0.5) == third
