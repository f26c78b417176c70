"""The end of a search: its best configs meet default and baselines in a fresh process; what holds becomes an elite."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from evoengine import confirm
from evoengine.archive.study import Study
from evoengine.aside import Aside
from evoengine.build import Builder
from evoengine.devices import TimingDevice
from evoengine.devices.cuda.results import Finals
from evoengine.progress import Listener
from evoengine.question import Question
from evoengine.screening import Screening, annotated
from evoengine.verdict import Artifact, Candidate, Evidence, Rejection

FINALISTS = 8
"""Configs that meet in the final run: as many as Helion re-times (autotuner/base_search.py)."""
TURNS = 3
"""Final runs at most, where one refuses all its finalists: what 24 configs have wrong is the template's."""
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
    meanwhile: Callable[[], None],
) -> Finals | None:
    """Time the best against default and baselines, together; keep what is confirmed. None where nothing is right.

    A finalist that is refused loses its measurement: the verdict of the stricter gate replaces it. Where all are, the
    next best have their turn. `meanwhile` is called while they run.

    Raises:
        TemplateError: the default config fails.
        UserError: the database or the card is gone, or somebody else took the study over.
    """
    finals: Finals | None = None
    for _ in range(TURNS):
        best = study.best(FINALISTS)
        if not best:
            break
        listener.phase(f"confirming {len(best)} finalists")
        candidates = [Candidate(one.number, one.config, one.operator, one.generation, one.parents) for one in best]
        builds = builder.build([question.build_request(candidate.config.values) for candidate in candidates])
        work = [
            (candidate, built)
            for candidate, built in zip(candidates, builds, strict=True)
            if isinstance(built, Artifact)
        ]
        notes: dict[int, Evidence] = {}
        if screening is not None:
            work, notes = screening(work, study, listener, check_stop)
        with Aside(partial(timing.finals, work, study.spec.seed + FINAL_SEED), timing.close) as race:
            meanwhile()
            finals = race.result()
        study.renew()  # whoever has taken it over meanwhile keeps elites of its own
        artifacts = {candidate.number: artifact for candidate, artifact in work}
        elites = confirm.elites(finals, artifacts, question.template.digest)
        for candidate, final in finals.finalists:
            if isinstance(final, Rejection):
                study.overrule(candidate.number, final)
                listener.note(f"trial {candidate.number} is refused in the final run: {final.gate}: {final.reason}")
        known = {baseline.name: baseline for baseline in study.baselines()}
        for baseline in confirm.baselines_at_end(finals, known):
            study.add_baseline(baseline)
        study.replace_elites(annotated(elites, notes))  # last: `confirmed` goes by them
        if elites:
            break
    return finals


def confirmed(study: Study) -> bool:
    """Whether the best have met already, so that another final run would replace their verdicts and add nothing."""
    best = {one.number for one in study.best(FINALISTS)}
    return bool(best) and best == {elite.number for elite in study.elites()}
