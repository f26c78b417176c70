"""The end of a search: its best configs meet default and baselines in a fresh process; what holds becomes an elite."""

from __future__ import annotations

from collections.abc import Callable

from evoengine import confirm
from evoengine.archive.study import Study
from evoengine.build import Builder
from evoengine.devices import TimingDevice
from evoengine.devices.cuda.results import Finals
from evoengine.progress import Listener
from evoengine.question import Question
from evoengine.screening import Screening, annotated
from evoengine.verdict import Artifact, Candidate, Evidence

FINALISTS = 8
"""Configs that meet in the final run: as many as Helion re-times (autotuner/base_search.py)."""
FINAL_SEED = 1_000_003
"""Added to the run's seed for the final run, so that it judges on inputs that no search has seen."""


def confirm_best(
    question: Question,
    study: Study,
    builder: Builder,
    timing: TimingDevice,
    listener: Listener,
    *,
    screening: Screening | None,
    check_stop: Callable[[], None],
) -> Finals | None:
    """Time the best against default and baselines, together; keep what is confirmed. None where nothing is right.

    Raises:
        TemplateError: the default config fails.
        UserError: the database or the card is gone.
    """
    best = study.best(FINALISTS)
    if not best:
        return None
    listener.phase(f"confirming {len(best)} finalists")
    candidates = [Candidate(one.number, one.config, one.operator, one.generation, one.parents) for one in best]
    builds = builder.build([question.build_request(candidate.config.values) for candidate in candidates])
    work = [
        (candidate, built) for candidate, built in zip(candidates, builds, strict=True) if isinstance(built, Artifact)
    ]
    notes: dict[int, Evidence] = {}
    if screening is not None:
        work, notes = screening(work, study, listener, check_stop)
    finals = timing.finals(work, study.spec.seed + FINAL_SEED)
    artifacts = {candidate.number: artifact for candidate, artifact in work}
    confirmed = confirm.elites(finals, artifacts, question.template.digest)
    study.replace_elites(annotated(confirmed, notes))
    known = {baseline.name: baseline for baseline in study.baselines()}
    for baseline in confirm.baselines_at_end(finals, known):
        study.add_baseline(baseline)
    return finals
