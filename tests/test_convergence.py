"""When a search has converged: the rule, the noise it compares with, and where it stops."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from evoengine.convergence import PATIENCE, Noise, check_can_converge, converged, timer_noise
from evoengine.devices.cuda.timer import HALF_WIDTH
from evoengine.errors import UserError
from evoengine.sampler import SAMPLERS, Seen
from evoengine.verdict import Estimate, Gate, Measurement, Rejection

NOISE = Noise(0.01, "a test")


def trials(promised: Sequence[float | None], values: Sequence[float | None] | None = None) -> list[Seen]:
    times = [10.0] * len(promised) if values is None else values
    return [
        Seen(number, (number,), value, "done", expected_gain=gain)
        for number, (gain, value) in enumerate(zip(promised, times, strict=True))
    ]


def timed(*windows_us: float, stopped: str = "converged") -> Measurement:
    return Measurement(windows_us, (1.0,) * len(windows_us), 1.0, 10, "warm", stopped)  # type: ignore[arg-type]


def test_enough_small_promises_in_a_row_that_were_kept() -> None:
    found = converged(trials([None] * 8 + [0.2, 0.011] + [0.004] * (PATIENCE - 1) + [0.006]), NOISE)

    assert found is not None
    assert (10 + PATIENCE, PATIENCE, 0.006) == (found.proposals, found.patience, found.expected_gain)
    assert str(found).startswith(f"none of the last {PATIENCE} configs was expected to gain more than 0.60% (")
    assert str(found).endswith("(noise 1.0%: a test)")


@pytest.mark.parametrize(
    "promised",
    [
        [],
        [0.001] * (PATIENCE - 1),
        [None] * 8 + [0.001] * (PATIENCE - 1),
        [0.5] * 8 + [0.001] * (PATIENCE - 1) + [0.01],
        [0.001] * 60 + [None],
    ],
    ids=["no trial", "too few", "a start among them", "one promise as large as the noise", "one without a model"],
)
def test_not_yet(promised: Sequence[float | None]) -> None:
    assert converged(trials(promised), NOISE) is None


@pytest.mark.parametrize(("gained_us", "over"), [(9.85, False), (9.95, True), (None, True)])
def test_a_promise_that_was_exceeded_is_not_believed(gained_us: float | None, over: bool) -> None:
    values: list[float | None] = [10.0] * (20 + PATIENCE)
    values[30] = gained_us

    assert over == (converged(trials([0.001] * (20 + PATIENCE), values), NOISE) is not None)


def test_trials_in_flight_say_nothing_and_order_is_by_number() -> None:
    done = trials([0.5] * 5 + [0.001] * PATIENCE)
    running = [Seen(number, (number,), None, "running", expected_gain=0.5) for number in (60, 61)]

    assert converged([*running, *reversed(done)], NOISE) == converged(done, NOISE) is not None


def test_noise_is_the_median_over_the_timed_configs() -> None:
    spread = [timed(10.0, 10.0 + 2 * width, 10.0 + 4 * width) for width in (0.1, 0.2, 0.4)]
    noise = timer_noise([Rejection(Gate.COMPILE, "no"), *spread, timed(1.0, 50.0, 99.0, stopped="beaten")])

    assert spread[1].noise == pytest.approx(noise.share)
    assert "median of 3 timed configs" == noise.source


def test_noise_is_at_least_what_the_timer_resolves() -> None:
    floor = Noise(HALF_WIDTH, "what the timer resolves")

    assert floor == timer_noise([timed(10.0, 10.001, 10.002)])
    assert floor == timer_noise([Estimate(3.0)])
    assert floor == timer_noise([])


def test_a_sampler_without_a_model_is_a_clear_error() -> None:
    check_can_converge("evolution")
    for sampler in set(SAMPLERS) - {"evolution"}:
        with pytest.raises(UserError, match=f"'{sampler}' does not: choose --sampler evolution, or leave"):
            check_can_converge(sampler)
