"""The pace of a search: how much is in flight, and which verdicts a proposal may know."""

from __future__ import annotations

import pytest

from evoengine.cli.running import informed_pace, usual_batch
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


@pytest.mark.parametrize(
    ("number", "known", "room"),
    [
        (64, 0, 8),  # beyond the batch, within the head start
        (95, 0, 1),
        (96, 8, 8),  # the first step after it need not wait for half of it
        (104, 24, 8),
        (112, 40, 8),
        (120, 56, 8),
        (127, 56, 1),
        (128, 72, 8),
        (136, 88, 8),
        (144, 104, 8),
        (152, 120, 8),  # all but half a batch
        (160, 128, 8),
        (168, 136, 8),
    ],
)
def test_a_head_start_knows_nothing_and_then_knowledge_catches_up(number: int, known: int, room: int) -> None:
    pace = Pace(64, 96)

    assert (known, room) == (pace.known(number), pace.room(number))


@pytest.mark.parametrize("batch", range(1, 70, 3))
@pytest.mark.parametrize("head_start", [0, 5, 48, 96, 97])
def test_no_more_than_the_head_start_is_ever_in_flight(batch: int, head_start: int) -> None:
    pace = Pace(batch, head_start)
    known = [pace.known(number) for number in range(300)]

    assert pace.most == max(number + pace.room(number) - known[number] for number in range(300))
    assert known == sorted(known)
    assert max(batch, head_start - pace.step) < pace.most + 1
    assert [number - number % pace.step - batch // 2 for number in range(250, 300)] == known[250:]


def test_what_a_proposal_may_not_know_runs() -> None:
    trials = [Seen(number, (number,), 10.0 + number, "done", expected_gain=0.5) for number in range(3)]
    first, second, third = visible(trials, 2)

    assert trials[:2] == [first, second]
    assert Seen(2, (2,), None, "running", expected_gain=0.5) == third


@pytest.mark.parametrize(
    ("jobs", "budget", "batch", "most"),
    [
        (16, 200, 64, 80),
        (16, 1000, 64, 80),
        (16, 90, 32, 36),  # never most of a search
        (16, 40, 32, 32),
        (2, 200, 8, 10),
        (64, 200, 64, 80),
    ],
)
def test_an_informed_search_has_a_head_start_of_five_builds_a_core(
    jobs: int, budget: int, batch: int, most: int
) -> None:
    fresh, begun = (informed_pace(jobs, usual_batch(jobs, 1), budget, begun=begun) for begun in (False, True))

    assert (batch, most) == (fresh.batch, fresh.most)
    assert batch == begun.most, "its verdicts are there to be known"


@pytest.mark.parametrize(
    ("jobs", "cards", "budget", "batch"),
    [(32, 2, 200, 66), (32, 2, 1000, 128), (64, 4, 1000, 256), (64, 4, 90, 64), (4, 2, 1000, 32)],
)
def test_several_cards_have_up_to_a_third_of_the_budget_in_flight(
    jobs: int, cards: int, budget: int, batch: int
) -> None:
    usual = usual_batch(jobs, cards)
    for begun in (False, True):
        pace = informed_pace(jobs, usual, budget, cards=cards, begun=begun)

        assert (batch, batch) == (pace.batch, pace.most)
