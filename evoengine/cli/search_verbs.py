"""Arguments of the verbs that search."""

from __future__ import annotations

import argparse

from evoengine.cli.arguments import (
    FORCE_HELP,
    Verbs,
    cache,
    devices,
    name,
    natural,
    own_code,
    percent,
    question,
    quiet_or_verbose,
    run_options,
    storage,
    until_converged,
    verb,
    whole,
)
from evoengine.sampler import SAMPLERS


def add_search(verbs: Verbs[argparse.ArgumentParser]) -> None:
    parser = verb(verbs, "search", "early", "search a space for the fastest correct config")
    parser.add_argument("--budget", metavar="N", type=natural, default=200, help="candidates sent to the compiler")
    question(parser, several=True)
    devices(parser)
    parser.add_argument(
        "--per-device",
        action="store_true",
        help="with --devices of unlike models: a study for each model, on all its cards, one after the other, each "
        "with the whole budget and begun with what those before it measured; at the end a table of the config for "
        "each. The same command again goes on where it was stopped",
    )
    parser.add_argument("--sampler", metavar="NAME", default="evolution", help=f"one of {', '.join(SAMPLERS)}")
    parser.add_argument("--seed", metavar="N", type=whole, default=0, help="seed of sampler, inputs and final run")
    parser.add_argument("--compiler", choices=("nvrtc", "nvcc"), default="nvrtc", help="compiler")
    parser.add_argument(
        "--study",
        metavar="NAME",
        type=name,
        help="name of the new study; with --per-shape or --per-device it stands before each shape or model "
        "(default: made from the question)",
    )
    parser.add_argument(
        "--warm-start",
        metavar="STUDY|auto",
        action="append",
        help="begin with the best configs of this study of the same template, and believe its times as far as they "
        "prove right; may be given again. auto: the four studies in the database with the nearest shapes, on any card",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the space and stop, as `evoengine space` does")
    parser.add_argument("--force", action="store_true", help=FORCE_HELP)
    run_options(parser)
    storage(parser)


def add_resume(verbs: Verbs[argparse.ArgumentParser]) -> None:
    parser = verb(verbs, "resume", "early", "go on with a study, from what its database holds")
    parser.add_argument("study", metavar="STUDY", nargs="?", help="name (default: the last one)")
    parser.add_argument("--budget", metavar="N", type=natural, help="new total of candidates (default: as it was)")
    parser.add_argument("--device", metavar="DEVICE", default="auto", help="auto, cuda, cuda:N, or none")
    devices(parser)
    parser.add_argument(
        "--force",
        action="store_true",
        help=f"go on though an elite, or the template, has changed since; {FORCE_HELP}",
    )
    run_options(parser)
    own_code(parser)
    storage(parser)


def add_worker(verbs: Verbs[argparse.ArgumentParser]) -> None:
    text = "work on a database's studies beside other machines, as long as there is work or until it is stopped"
    parser = verb(verbs, "worker", "worker", text)
    parser.set_defaults(budget=None, seconds=None, until_converged=False, sanitize=False)
    parser.add_argument(
        "--study",
        metavar="NAME",
        type=name,
        help="this study alone (default: every unfinished one that fits this machine)",
    )
    parser.add_argument("--device", metavar="DEVICE", default="auto", help="auto, cuda, cuda:N, or none")
    devices(parser)
    parser.add_argument(
        "--no-gpu",
        action="store_true",
        help="only help those that measure: propose, compile and prove ahead of them, and leave them the builds",
    )
    parser.add_argument(
        "--ahead",
        metavar="N",
        type=natural,
        default=64,
        help="candidates of a study that may wait for a GPU before --no-gpu makes no more",
    )
    parser.add_argument("--until-done", action="store_true", help="end as soon as no study is unfinished")
    parser.add_argument("--jobs", metavar="N", type=natural, help="compiles at a time (default: all cores)")
    cache(parser)
    parser.add_argument("--batch", metavar="N", type=natural, help="candidates claimed at once (default: as of search)")
    parser.add_argument(
        "--force", action="store_true", help=f"go on though an elite, or the template, has changed since; {FORCE_HELP}"
    )
    quiet_or_verbose(parser)
    own_code(parser)
    storage(parser)


def add_space(verbs: Verbs[argparse.ArgumentParser]) -> None:
    parser = verb(verbs, "space", "space", "print axes, size, feasible share, and what refuses the rest")
    question(parser)


def add_knobs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    text = "report knobs that do not change what runs, by building pairs of configs that differ in one"
    parser = verb(verbs, "knobs", "knobs", text)
    question(parser)
    parser.add_argument(
        "--pairs", metavar="N", type=natural, default=4, help="pairs built for any two neighbouring choices of a knob"
    )
    parser.add_argument("--seed", metavar="N", type=whole, default=0, help="seed of the random configs among them")
    parser.add_argument("--compiler", choices=("nvrtc", "nvcc"), default="nvrtc", help="compiler")
    parser.add_argument("--jobs", metavar="N", type=natural, help="compiles at a time (default: all cores)")


def add_replay(verbs: Verbs[argparse.ArgumentParser]) -> None:
    parser = verb(verbs, "replay", "replay", "search a recorded space, to see what a sampler is worth")
    parser.add_argument(
        "file", metavar="FILE", help="every config's time: T4 results, a Kernel Tuner cachefile, or our own recording"
    )
    parser.add_argument("--sampler", metavar="NAME", default="evolution", help=f"one of {', '.join(SAMPLERS)}")
    parser.add_argument("--budget", metavar="N", type=natural, default=200, help="configs tried, failing ones too")
    parser.add_argument("--batch", metavar="N", type=natural, default=1, help="as in a search")
    parser.add_argument("--seed", metavar="N", type=whole, default=0, help="seed of the first run")
    parser.add_argument("--runs", metavar="K", type=natural, default=1, help="runs, with seeds N, N+1, ...")
    parser.add_argument(
        "--noise",
        metavar="PCT",
        type=percent,
        default=0.0,
        help="error of the times the sampler is told, in percent (log-normal, the same whenever a seed meets a "
        "config); the result is judged by true times",
    )
    until_converged(parser)
    parser.add_argument(
        "--no-estimate",
        action="store_true",
        help="keep the estimate from the sampler, which a recording of our own has as a search has it",
    )
    parser.add_argument(
        "--warm-start",
        metavar="FILE",
        action="append",
        help="another recording of the same parameters, as a study that was searched before; may be given again",
    )
