"""One run of a search over one study: lease, devices, display, and what Ctrl-C does to it."""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FrameType

from evoengine.archive.lease import Owner
from evoengine.archive.study import Study
from evoengine.build import Builder
from evoengine.cli.display import Display
from evoengine.cli.early import Early
from evoengine.cli.judges import device_for, screening_for
from evoengine.cli.panel import Workers
from evoengine.cli.resolve import Target
from evoengine.cli.storage import shared_store
from evoengine.cli.tables import console
from evoengine.engine import Search
from evoengine.errors import EvoengineError, TemplateError
from evoengine.pace import Pace
from evoengine.progress import Budget, Outcome
from evoengine.question import Question
from evoengine.sampler import Proposing
from evoengine.stopwatch import Stopwatch

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Run:
    """A study, and all that searching it needs. `go_on` is the command that goes on after a stop."""

    question: Question
    target: Target
    builder: Builder
    proposer: Proposing
    study: Study
    budget: Budget
    go_on: str
    early: Early | None = None
    watch: Stopwatch = field(default_factory=Stopwatch)


@dataclass(frozen=True)
class Ran:
    """How it ended, after how many verdicts. `told_to_stop` also where the stop came too late to interrupt anything."""

    outcome: Outcome
    told_to_stop: bool
    verdicts: int


@dataclass(frozen=True)
class Joining:
    """How a worker takes part: `told_to_stop` is set by a signal, `ahead` is that of a process that only helps."""

    told_to_stop: threading.Event
    ahead: int | None


def search_study(
    arguments: argparse.Namespace,
    run: Run,
    joining: Joining | None = None,
    *,
    meanwhile: Callable[[], None] = lambda: None,
) -> Ran:
    """Search a study until its budget is spent or the user stops it. `meanwhile` is called during the final run.

    On a database server others may search it at the same time; a file is searched by one process, or by workers.

    Raises:
        TemplateError: the default config or the reference fails.
        EvoengineError: the machine cannot go on; says how to.
    """
    question, target, builder, study, budget = run.question, run.target, run.builder, run.study, run.budget
    feasible = question.feasible
    measures = target.ordinal is not None
    out = console(stderr=True)
    with ExitStack() as stack:
        stack.enter_context(signals_given_back())
        stack.callback(run.proposer.close)
        if joining is None:  # a worker goes on by itself
            stack.enter_context(_saying(run.go_on))
        study.acquire(Owner.current(), shared=joining is not None or study.on_server)
        stack.callback(study.release)
        builder.store = shared_store(arguments.cache, study)
        raised = budget.candidates > study.spec.budget
        if raised:
            study.set_budget(budget.candidates)
        stack.enter_context(builder)
        display = Display(out, budget, measures=measures, quiet=arguments.quiet, verbose=arguments.verbose)
        display.continues(study.records())
        device, timing = device_for(
            question, target, study, builder.jobs, force=arguments.force, note=display.note, early=run.early
        )
        stack.callback(device.close)
        display.watch(lambda: Workers(builder.unfinished, builder.jobs, device.in_hand()))
        search = Search(
            question,
            study,
            proposer=run.proposer,
            builder=builder,
            device=device,
            timing=timing,
            budget=budget,
            pace=_pace(arguments, run, alone=joining is None and not study.on_server, begun=raised),
            listener=stack.enter_context(display),
            screening=screening_for(question, target, study) if arguments.sanitize else None,
            stopwatch=run.watch,
            ahead=None if joining is None else joining.ahead,
            meanwhile=meanwhile,
        )
        stop = threading.Event() if joining is None else joining.told_to_stop
        _stop_on_signals(search, display, stop)
        display.note(
            f"study {study.name}: {len(feasible.points):,} feasible of {feasible.product:,} configs, "
            f"limits of {question.limits.name}"
        )
        for source in study.spec.sources:
            display.note(f"known beforehand: {source.name}, {source.known} configs, digest {source.digest}")
        if not measures:
            display.note(
                f"no GPU: candidates are compiled for {target.device.name}, proven in the PTX interpreter and "
                "ranked by an estimate; nothing is measured"
            )
        with run.watch("engine"):
            outcome = search.run()
    return Ran(outcome, stop.is_set(), display.verdicts)


@contextmanager
def _saying(go_on: str) -> Iterator[None]:
    """The study exists and nothing that is committed is lost, whatever ended the run: say how it goes on."""
    try:
        yield
    except TemplateError:
        raise
    except KeyboardInterrupt:  # the second Ctrl-C, or the first before the search heeds it
        raise KeyboardInterrupt(f"stopped at once; every verdict is stored, go on with: {go_on}") from None
    except EvoengineError as error:
        raise error.saying(f"{error}; then go on with: {go_on}") from error


def _pace(arguments: argparse.Namespace, run: Run, *, alone: bool, begun: bool) -> Pace:
    """At `--batch`, else as fast as the cards and their compilers can go where a search knows what to begin with, else
    at the usual batch. A study that was `begun` with a smaller budget has verdicts that need not be waited for."""
    jobs, cards = run.builder.jobs, len(run.target.cards)
    if arguments.batch:
        return Pace(arguments.batch)
    usual = usual_batch(jobs, cards)
    if run.study.spec.sources and alone and run.target.ordinal is not None:
        return informed_pace(jobs, usual, run.budget.candidates, cards=cards, begun=begun)
    return Pace(usual)


def informed_pace(jobs: int, usual: int, budget: int, *, cards: int = 1, begun: bool) -> Pace:
    """Of a search that is told of its space: on one card five builds a core before the first verdict, then as many in
    flight as keep all cores busy, in spite of the slowest compile (40 for 16 cores), and never most of the budget.

    Replayed on four recorded spaces of 5,000 to 8,300 configs with the estimate (benchmarks/replay_spaces.py, 20 seeds,
    budget 200) 78 of 80 runs come within 1 % of the optimum, with six builds a core 73, one at a time all. Without the
    estimate a head start costs 5 % after 100, and on public spaces still 0.7 % after 200.

    Several cards have no head start, and up to four a core in flight: 55 candidates a second on 64 cores in a model
    (studies/simulated_fleet.json). Replayed likewise (8 seeds) a batch of a third of the budget (66 of 200, 256 of 800)
    comes within 1 % in all runs, of half of it in 29 of 32.
    """
    batch = min(4 * jobs, budget // 3)
    if cards > 1:
        return Pace(max(usual, batch))
    return Pace(max(usual, min(batch, 64)), 0 if begun else min(5 * jobs, 80, 2 * budget // 5))


def usual_batch(jobs: int, cards: int) -> int:
    """Candidates in flight at most: enough to keep compilers and cards busy, few enough to learn from one another.

    Each of several cards has up to two, one of which waits. Replayed on two recorded shapes (budget 200, 20 seeds) the
    best was 0.3 % over the optimum with whole batches of 32, 0.7 % of 64, 3.1 % of 128.
    """
    if cards < 2:
        return min(max(2 * jobs, 8), 32)
    return min(max(2 * jobs, 16 * cards), 64)


@contextmanager
def signals_given_back() -> Iterator[None]:
    """Ctrl-C and SIGTERM do afterwards what they did before, whatever was made of them meanwhile."""
    before = [(number, signal.getsignal(number)) for number in STOP_SIGNALS]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _stop_on_signals(search: Search, display: Display, came: threading.Event) -> None:
    """The first Ctrl-C (or SIGTERM) finishes the verdict in flight; the second stops at once. `came` is set by one."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        display.note_from_signal("stopping after the verdict in flight; press Ctrl-C again to stop at once")
        search.request_stop()
        came.set()

    for number in STOP_SIGNALS:
        signal.signal(number, stop)
