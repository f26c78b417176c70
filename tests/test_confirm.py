"""The final verdict: what is called faster, how often wrongly so, and which numbers are kept and exported."""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from evoengine import confirm
from evoengine.devices.cuda.results import Finals, make_final, ratio_interval
from evoengine.errors import UserError
from evoengine.export import chosen
from evoengine.verdict import Artifact, Candidate, Gate, Rejection

FINALISTS, ROUNDS = 8, 50


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.90, 0.990, "FASTER"),
        (0.90, 0.991, "SAME"),
        (0.97, 1.0, "SAME"),
        (0.99, 1.01, "SAME"),
        (1.005, 1.2, "SAME"),
        (1.011, 1.2, "SLOWER"),
    ],
)
def test_only_an_interval_that_lies_beyond_one_per_cent_decides(low: float, high: float, word: str) -> None:
    assert word == confirm.compare(low, high)


@pytest.mark.parametrize(("finalists", "level"), [(0, 0.95), (1, 0.95), (8, 0.99375)])
def test_the_error_is_shared_by_all_finalists(finalists: int, level: float) -> None:
    assert level == pytest.approx(confirm.confidence(finalists))


def family(seed: int, true_ratio: float) -> list[tuple[list[float], list[float]]]:
    """Windows of a final run: the clock wanders, each round has its own, and each window 1 % of noise.

    A window in fifty is an outlier, 10 % slow.
    """
    draw = np.random.default_rng(seed)
    clock = np.cumsum(draw.normal(0, 0.002, ROUNDS)) + draw.normal(0, 0.01, ROUNDS)

    def windows(us: float) -> list[float]:
        outliers = 0.1 * (draw.random(ROUNDS) < 0.02)
        return list(us * np.exp(clock + draw.normal(0, 0.01, ROUNDS) + outliers))

    control = windows(10.0)
    return [(windows(10.0 * true_ratio), control) for _ in range(FINALISTS)]


def called_faster(true_ratio: float, level: float, families: int) -> int:
    """In how many final runs any finalist is called faster than the default config."""
    return sum(
        any(
            confirm.compare(low, high) == "FASTER"
            for low, _, high in (
                ratio_interval(us, control_us, seed, level) for us, control_us in family(seed, true_ratio)
            )
        )
        for seed in range(families)
    )


def test_at_most_one_family_in_twenty_has_a_false_winner() -> None:
    """At the null hypothesis' edge: each of eight finalists is faster by just what is not worth shipping."""
    edge = 1 / (1 + confirm.MARGIN)

    assert called_faster(edge, confirm.confidence(FINALISTS), 100) <= 5
    assert called_faster(edge, 0.95, 100) > 5, "the correction is needed"


def test_equal_configs_never_win() -> None:
    assert 0 == called_faster(1.0, confirm.confidence(FINALISTS), 50)


def test_three_per_cent_is_found() -> None:
    assert 50 == called_faster(0.97, confirm.confidence(FINALISTS), 50)


@pytest.mark.parametrize("count", [5, 50, 51])
def test_the_interval_is_the_bootstraps(count: int) -> None:
    """The quick resampling of ranks against the plain one of values."""
    draw = np.random.default_rng(count)
    logs = draw.normal(0.0, 0.01, count)
    plain = np.median(logs[draw.integers(0, count, (20_000, count))], axis=1)
    low, middle, high = np.log(ratio_interval(list(np.exp(logs)), [1.0] * count, 3, 0.99))

    assert np.median(logs) == pytest.approx(middle)
    assert np.percentile(plain, [0.5, 99.5]) == pytest.approx([low, high], abs=0.0006)


def test_an_elite_keeps_what_its_verdict_rests_on(tmp_path: Any) -> None:
    from fakes import FakeBuilder

    (built,) = FakeBuilder(tmp_path).build([dataclasses.replace(request())])
    assert isinstance(built, Artifact)
    draw = np.random.default_rng(1)
    control_us, us = (list(m * np.exp(draw.normal(0, 0.01, 50))) for m in (10.0, 9.5))
    cold_us = (12.0, 13.0, 12.5)
    finalists = tuple(
        (Candidate(n, candidate_config(), "random"), make_final("c", us, control_us, 100, 7, cold_us=cold_us))
        for n in range(4)
    )
    control = make_final("default", control_us, control_us, 100, 7, cold_us=(14.0,))
    finals = Finals(control, finalists, (), {"gpu": "x"}, 7, cold_copies=126)
    elite = confirm.elites(finals, dict.fromkeys(range(4), built), "digest")[0]
    low, _, high = ratio_interval(us, control_us, 7, 0.9875)

    assert "FASTER" == elite.verdict
    kept = elite.evidence
    assert (low, high, 0.9875) == (kept["verdict_low"], kept["verdict_high"], pytest.approx(kept["verdict_confidence"]))
    assert low < kept["control_ratio_low"] < kept["control_ratio_high"] < high, "95 % for one, more for all"
    assert (cold_us, 126) == (kept["cold_windows_us"], kept["cold_copies"])
    assert (tuple(control_us), control.noise) == (kept["default_windows_us"], kept["default_noise"])
    assert (14.0,) == kept["default_cold_windows_us"]


def request() -> Any:
    from evoengine.build import BuildRequest

    return BuildRequest({"TILE": 64, "UNROLL": 4, "PAD": 0}, 1024)


def candidate_config() -> Any:
    import fakes

    return fakes.SPACE.config(fakes.SPACE.default)


def summary(*verdicts: str, default_tried: bool = True) -> dict[str, Any]:
    """What `export` chooses from: elites with these verdicts, the fastest first, and the default if it was tried."""
    elites = [
        {"trial": n, "config": {"A": n}, "median_us": 5.0 + n, "verdict": verdict}
        for n, verdict in enumerate(verdicts, 1)
    ]
    tried = [{"trial": 0, "config": {"A": 0}, "median_us": 7.5, "ratio_to_default": 0.99, "noise": 0.02}]
    measured = [{"trial": 9, "config": {"A": 9}, "median_us": 4.0}, *(tried if default_tried else [])]
    default = {"median_us": 8.0, "noise": 0.01, "ratio_to_default": 1.0, "verdict": "SAME", "cold_median_us": None}
    winner = "trial N" if "FASTER" in verdicts else "no significant winner: keep the default"
    return dict(study="s", elites=elites, measured=measured, shortlist=[], default=default, winner=winner)


class Asked:
    """As much of a question as an export needs."""

    class default:
        values = {"A": 0}  # noqa: RUF012


@pytest.mark.parametrize(
    ("verdicts", "trial", "expected"),
    [
        (("SAME", "FASTER", "FASTER"), None, (2, 7.0)),  # the fastest that is faster for sure
        (("SAME", "SLOWER"), None, (0, 8.0)),  # the default, with its time in the final run and not the search's 7.5
        (("SAME", "SLOWER"), 1, (1, 6.0)),
        ((), None, (9, 4.0)),  # no final run yet
    ],
)
def test_export_keeps_the_default_where_nothing_wins(
    verdicts: tuple[str, ...], trial: int | None, expected: tuple[int, float]
) -> None:
    row = chosen.chosen_row(summary(*verdicts), Asked, (), trial)  # type: ignore[arg-type]

    assert expected == (row["trial"], row["median_us"])


def test_without_a_trial_of_the_default_nothing_is_exported_in_its_place() -> None:
    with pytest.raises(UserError, match=r"no significant winner: keep the default.*--trial N"):
        chosen.chosen_row(summary("SAME", default_tried=False), Asked, (), None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("trial", "words"),
    [
        (4, "study s has no trial 4: its last is 3"),
        (1, "trial 1 of s did not pass every gate (compile: too many registers): name another with --trial, or none"),
        (2, "trial 2 of s is the same kernel as trial 1: name that one"),
        (3, "trial 3 of s is not judged yet"),
    ],
)
def test_a_trial_that_cannot_be_exported_is_told_why(trial: int, words: str) -> None:
    refused = Rejection(Gate.COMPILE, "too many registers")
    told: Any = [
        SimpleNamespace(number=number, twin_of=twin_of, verdict=verdict)
        for number, twin_of, verdict in ((1, None, refused), (2, 1, refused), (3, None, None))
    ]

    with pytest.raises(UserError, match=re.escape(words)):
        chosen.chosen_row(summary(), Asked, told, trial)  # type: ignore[arg-type]


def test_a_header_says_where_its_number_comes_from() -> None:
    assert "SAME against the default config" in chosen._method({"median_us": 1.0, "verdict": "SAME"})
    assert "not confirmed by a final run" in chosen._method({"median_us": 1.0})
    assert "none" == chosen._method({"estimated_us": 1.0})
