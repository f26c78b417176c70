"""Many processes that search one study at once, and what each of them did."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from benchmarks.trust import replayed
from benchmarks.trust.lives import Ended, Life, Orders, Place
from evoengine.archive.archive import Archive
from evoengine.verdict import is_paid

BUDGET_EACH = 6
"""Units of the budget for every worker: more than one batch of each."""


@dataclass(frozen=True, slots=True)
class Shared:
    """A study that `workers` searched: its `trials` and what was `spent` of its `budget`; verdicts beyond one a config
    and one a trial number; verdicts of the workers that are not in the study; what was left unfinished; and what
    stopped a worker before its end."""

    workers: int
    trials: int
    budget: int
    spent: int
    doubled_configs: int
    doubled_numbers: int
    lost: int
    unfinished: int
    errors: list[str]


def share(url: str, folder: Path, workers: int) -> Shared:
    """The workers spend one budget together and propose at random, so that they want the same configs."""
    place = Place(url, "shared", folder)
    with closing(Archive.open(url)) as archive:
        archive.create_study(replayed.spec(place.name, sampler="random", seed=0, budget=BUDGET_EACH * workers))
    # Every second one has the seed of the one before, and so wants just what that one wants.
    lives = [Life(place, worker // 2, Orders(shared=True)) for worker in range(workers)]
    ends = [end for life in lives if (end := life.end()) is not None]
    with closing(Archive.open(url)) as archive:
        records = archive.open_study(place.name).records()
    done = {(one.number, one.config.digest) for one in records if one.state == "done"}
    return Shared(
        workers=len(ends),
        trials=len(records),
        budget=BUDGET_EACH * workers,
        spent=sum(is_paid(one.verdict, one.twin_of) for one in records),
        doubled_configs=_repeats([digest for end in ends for _, digest in end.verdicts]),
        doubled_numbers=_repeats([number for end in ends for number, _ in end.verdicts]),
        lost=sum(verdict not in done for end in ends for verdict in end.verdicts),
        unfinished=len(records) - len(done),
        errors=_errors(ends),
    )


def _repeats(found: Sequence[object]) -> int:
    return len(found) - len(set(found))


def _errors(ends: Sequence[Ended]) -> list[str]:
    return [end.error for end in ends if end.error]
