"""The parser of every verb. Imports nothing heavy: `evoengine --help` must be quick."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator
from importlib import metadata
from typing import NoReturn

from evoengine import __version__
from evoengine.cli import search_verbs, study_verbs
from evoengine.cli.arguments import Parser


class _Version(argparse.Action):
    """Prints evoengine's version and what it would compile and search with."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print("\n".join(version_lines()))
        parser.exit()


def version_lines() -> Iterator[str]:
    """evoengine and the packages that decide what it does, as installed; nothing is imported or started for it."""
    yield f"evoengine {__version__}"
    for package in ("nvidia-cuda-nvrtc", "cuda-bindings", "torch", "optuna", "sqlalchemy", "ninja", "numpy"):
        try:
            yield f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            yield f"{package} not installed"
    yield f"python {platform.python_version()}"


def make_parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = Parser(
        prog="evoengine",
        description="Evolutionary autotuner for templated CUDA kernels: compile, prove right, time, keep the best.",
        epilog="Exit codes: 0 done; 1 evoengine or the template is broken, nothing passed, a knob is dead, `verify` "
        "found a kernel wrong, otherwise built or slower, or `doctor` found something missing; 2 bad input, or a "
        "machine that cannot go on (disk full, GPU lost); 130 stopped by Ctrl-C.",
    )
    parser.add_argument("--version", nargs=0, action=_Version, help="versions of evoengine, compiler and packages")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    search_verbs.add_search(verbs)
    search_verbs.add_resume(verbs)
    search_verbs.add_worker(verbs)
    search_verbs.add_space(verbs)
    search_verbs.add_knobs(verbs)
    study_verbs.add_studies(verbs)
    study_verbs.add_show(verbs)
    study_verbs.add_profile(verbs)
    study_verbs.add_report(verbs)
    study_verbs.add_export(verbs)
    study_verbs.add_compare(verbs)
    study_verbs.add_verify(verbs)
    search_verbs.add_replay(verbs)
    study_verbs.add_doctor(verbs)
    study_verbs.add_completion(verbs)
    return parser
