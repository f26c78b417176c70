"""Arguments of the verbs that show, judge and use what was found, and of those about evoengine itself."""

from __future__ import annotations

import argparse
from pathlib import Path

from evoengine.cli.arguments import (
    FORCE_HELP,
    SHAPE_HELP,
    Verbs,
    factor,
    natural,
    own_code,
    storage,
    template_and_space,
    verb,
    whole,
)
from evoengine.cli.manage_verbs import add_management


def add_studies(verbs: Verbs[argparse.ArgumentParser]) -> None:
    parser = verb(
        verbs, "studies", "studies", "list the studies of a database; rename, delete, copy, merge them; prune"
    )
    storage(parser)
    add_management(parser)


def add_show(verbs: Verbs[argparse.ArgumentParser]) -> None:
    parser = verb(verbs, "show", "studies", "show a study: best configs, verdicts by gate, baselines")
    parser.add_argument("study", metavar="STUDY", nargs="?", help="name (default: the last one)")
    parser.add_argument("--top", metavar="N", type=natural, default=8, help="rows of the table")
    parser.add_argument(
        "--factor",
        metavar="F",
        type=factor,
        help="judge every stored check again, with F times the baseline's error allowed, and say what changes",
    )
    own_code(parser)
    storage(parser)


def add_report(verbs: Verbs[argparse.ArgumentParser]) -> None:
    parser = verb(verbs, "report", "report", "write a study as one offline page, as Markdown, or as a figure")
    parser.add_argument("study", metavar="STUDY", nargs="?", help="name (default: the last one)")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, required=True, help="file to write")
    parser.add_argument(
        "--format",
        choices=("html", "md", "png"),
        help="html: an interactive page, all in one file; md: tables for a pull request; png: one figure for a paper "
        "(default: by the suffix of FILE)",
    )
    parser.add_argument("--top", metavar="N", type=natural, default=8, help="rows of the tables of configs")
    parser.add_argument("--force", action="store_true", help="overwrite FILE")
    own_code(parser)
    storage(parser)


def add_profile(verbs: Verbs[argparse.ArgumentParser]) -> None:
    text = "say what bounds a study's elites, by Nsight Compute's counters (its clocks and times are left alone)"
    parser = verb(verbs, "profile", "profile", text)
    parser.add_argument("study", metavar="STUDY", nargs="?", help="name (default: the last one)")
    parser.add_argument("--top", metavar="N", type=natural, default=3, help="elites profiled, the fastest first")
    parser.add_argument("--device", metavar="DEVICE", default="auto", help="auto, cuda or cuda:N")
    own_code(parser)
    storage(parser)


EXPORTS = {
    "header": "C header; of several, one with an #if block for each card and shape",
    "bundle": "folder with kernel, launcher, CMakeLists and test",
    "wisdom": "JSON lines, merged with those that PATH holds",
    "t4": "every trial as T4 results",
    "cachefile": "every trial as Kernel Tuner's cachefile",
    "json": "the study and every trial in full",
    "torch": "folder for evoengine.load",
}


def add_export(verbs: Verbs[argparse.ArgumentParser]) -> None:
    parser = verb(verbs, "export", "export", "write the best config, or every trial, for other programs to use")
    parser.add_argument(
        "study",
        metavar="STUDY|HEADER",
        nargs="*",
        help="study (default: the last one, passing over those without a config unless the format holds all trials; so "
        "the last shape's of search --per-shape, which ends with the commands for all) or exported header; several for "
        "header, wisdom and torch",
    )
    parser.add_argument(
        "--format",
        choices=tuple(EXPORTS),
        default="header",
        help="; ".join(f"{name}: {about}" for name, about in EXPORTS.items()),
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        type=Path,
        required=True,
        help="file, or folder for bundle and torch, to write",
    )
    parser.add_argument("--trial", metavar="N", type=whole, help="this trial instead of the best")
    parser.add_argument("--force", action="store_true", help="overwrite PATH, or export a config that went stale")
    own_code(parser)
    storage(parser)


def add_compare(verbs: Verbs[argparse.ArgumentParser]) -> None:
    parser = verb(verbs, "compare", "compare", "time a config beside SDPA, FlexAttention, a tuned Triton kernel, ...")
    parser.add_argument(
        "what",
        metavar="WHAT",
        nargs="*",
        help="an exported header, a study (its best elite), a config as its label (wm_4.bn_64) or as a list "
        "(STAGES=2,BLOCK_N=64; other axes as in the default config); the default config where nothing is given",
    )
    parser.add_argument(
        "--shape",
        metavar="SHAPE",
        action="append",
        help=f"{SHAPE_HELP}; may be given again; default: the shape of the header or study, else the template's own",
    )
    parser.add_argument("--shapes", metavar="FILE", type=Path, help="more shapes, one a line; # begins a comment")
    template_and_space(parser)
    parser.add_argument("--device", metavar="DEVICE", default="auto", help="auto, cuda or cuda:N (default: auto)")
    parser.add_argument("--limits", metavar="CARD", help="refuse a config that would not fit this card, such as l4")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        help="also write the JSON document here, after every shape; a file that is not there yet",
    )
    parser.add_argument("--force", action="store_true", help=FORCE_HELP)
    storage(parser)


def add_verify(verbs: Verbs[argparse.ArgumentParser]) -> None:
    parser = verb(verbs, "verify", "verify", "build a config anew, prove it at the full gate and time it again")
    parser.description = (
        "Build a study's config or an exported header anew, say what has changed since, prove it at the full gate and "
        "time it again beside the default config in a fresh process. Exit code 0: right, rebuilt as it was, and no "
        "slower against the default than recorded; 1: not so. Without a GPU it is proven in the interpreter."
    )
    parser.add_argument(
        "what", metavar="STUDY|HEADER", help="a study (its winner or best config) or an exported header"
    )
    parser.add_argument("--trial", metavar="N", type=whole, help="this trial of the study")
    own_code(parser)
    parser.add_argument("--device", metavar="DEVICE", default="auto", help="auto, cuda, cuda:N, or none")
    parser.add_argument("--force", action="store_true", help=FORCE_HELP)
    storage(parser)


def add_doctor(verbs: Verbs[argparse.ArgumentParser]) -> None:
    storage(verb(verbs, "doctor", "doctor", "check GPU, driver, compilers, packages, database, cache"))


def add_completion(verbs: Verbs[argparse.ArgumentParser]) -> None:
    parser = verb(verbs, "completion", "completion", "print a script that completes evoengine's commands in a shell")
    parser.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "tcsh"), help="bash, zsh or tcsh")
