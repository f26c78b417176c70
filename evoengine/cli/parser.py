"""Every option of every verb. Imports nothing heavy: `evoengine --help` must be quick."""

from __future__ import annotations

import argparse
import difflib
import platform
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from evoengine import __version__
from evoengine.sampler import SAMPLERS

STORAGE = "studies/evoengine.db"
SHAPE = "1,8,512,64"
SHAPE_HELP = (
    "batch,heads,seq,head_dim (32, 64, 96, 128 or 256) and then name=value or flags, such as "
    "1,8,512,64,causal,dtype=bf16"
)
FORCE_HELP = "time on a card that is busy, or whose default config varies by more than 3 %%, and only warn of it"


class _Help(argparse.HelpFormatter):
    """Appends an option's default, where it has one and its help does not say it in words."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        unsaid = action.default is None or action.default is False or action.default == argparse.SUPPRESS
        if unsaid or "default: " in str(action.help):
            return action.help
        return f"{action.help} (default: %(default)s)"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the command line in one line, with the nearest name there is."""

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)|unrecognized arguments: (\S+)", message)
        if wrong is not None:
            known = re.findall(r"[\w-]+", wrong[2]) if wrong[2] else self.option_names()
            near = difflib.get_close_matches((wrong[1] or wrong[3] or "").partition("=")[0], known, n=1)
            message += f"; did you mean {near[0]}?" if near else ""
        self.exit(2, f"{self.prog}: {message}; see: {self.prog} --help\n")

    def option_names(self) -> list[str]:
        """Every option of this parser and of its verbs."""
        below = [verb for action in self._actions if isinstance(action, Verbs) for verb in action.choices.values()]
        names = [name for action in self._actions for name in action.option_strings]
        return [*names, *(name for verb in below for name in verb.option_names())]


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
    parser: argparse.ArgumentParser = _Parser(
        prog="evoengine",
        description="Evolutionary autotuner for templated CUDA kernels: compile, prove right, time, keep the best.",
        epilog="Exit codes: 0 done; 1 evoengine or the template is broken, or nothing passed; 2 bad input; 130 stopped "
        "by Ctrl-C.",
    )
    parser.add_argument("--version", nargs=0, action=_Version, help="versions of evoengine, compiler and packages")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    _search(verbs)
    _resume(verbs)
    _space(verbs)
    _knobs(verbs)
    _studies(verbs)
    _show(verbs)
    _profile(verbs)
    _report(verbs)
    _export(verbs)
    _compare(verbs)
    _verify(verbs)
    _replay(verbs)
    _doctor(verbs)
    _completion(verbs)
    return parser


Verbs = argparse._SubParsersAction  # argparse has no public name for what add_subparsers returns


def _verb(verbs: Verbs[argparse.ArgumentParser], name: str, module: str, help: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=help, description=help, formatter_class=_Help)
    parser.set_defaults(module=module, verb=name)
    parser.add_argument("--json", action="store_true", help="print one JSON document on standard output")
    return parser


def _storage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--storage",
        metavar="URL",
        default=STORAGE,
        help="study database: a file (SQLite) or any SQLAlchemy URL, such as postgresql+psycopg://user@host/db",
    )


def _own_code(parser: argparse.ArgumentParser) -> None:
    """Where the code of a study is: a database from elsewhere may name any folder, and what it names does not run."""
    parser.add_argument(
        "--template",
        metavar="DIR",
        help="the study's template, where it is your own and was not used on this machine yet; code that runs",
    )
    parser.add_argument("--space", metavar="FILE", help="the same for its search space")


def _question(parser: argparse.ArgumentParser) -> None:
    """What to search: template, space, shape, target."""
    parser.add_argument(
        "--template",
        metavar="DIR",
        help="template: a shipped name or a folder with code that runs (default: attention)",
    )
    parser.add_argument(
        "--space", metavar="FILE", help="search space: a Python file that runs (default: the template's own)"
    )
    parser.add_argument(
        "--shape",
        metavar="SHAPE",
        help=f"problem (default: the template's own, for attention {SHAPE}): {SHAPE_HELP}",
    )
    parser.add_argument(
        "--device",
        metavar="DEVICE",
        default="auto",
        help="auto, cuda, cuda:N, or none (compile and prove without a GPU; nothing is measured)",
    )
    parser.add_argument("--target", metavar="CARD", default="l4", help="card to compile for when there is no GPU")
    parser.add_argument("--limits", metavar="CARD", help="refuse what would not fit this card, such as l4")
    parser.add_argument("--max-registers", metavar="N", type=_natural, help="refuse more registers a thread")
    parser.add_argument("--max-smem", metavar="BYTES", type=_natural, help="refuse more shared memory a CTA")
    parser.add_argument(
        "--max-spill-bytes", metavar="BYTES", type=_whole, help="refuse more register spills a thread (default: keep)"
    )


def _run_options(parser: argparse.ArgumentParser) -> None:
    """How to run, whatever the question."""
    parser.add_argument("--seconds", metavar="S", type=_positive, help="stop this run after so many seconds")
    _until_converged(parser)
    parser.add_argument(
        "--sanitize",
        action="store_true",
        help="run compute-sanitizer (memcheck, initcheck, racecheck, synccheck) over the finalists before the final "
        "run; a finding rejects",
    )
    parser.add_argument("--jobs", metavar="N", type=_natural, help="compiles at a time (default: all cores)")
    parser.add_argument(
        "--batch", metavar="N", type=_natural, help="candidates proposed at once (default: twice the jobs, 8 to 32)"
    )
    parser.add_argument("--top", metavar="N", type=_natural, default=8, help="rows of the final table")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("-q", "--quiet", action="store_true", help="no progress, only the result")
    group.add_argument("-v", "--verbose", action="store_true", help="a line for every verdict")


def _until_converged(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--until-converged",
        action="store_true",
        help="stop before the budget is spent once 50 configs in a row were expected to gain less than the noise, and "
        "did (evolution only; noise: the median IQR of the timed configs' windows, at least 0.5 %%)",
    )


def _search(verbs: Verbs[argparse.ArgumentParser]) -> None:
    parser = _verb(verbs, "search", "search", "search a space for the fastest correct config")
    parser.add_argument("--budget", metavar="N", type=_natural, default=200, help="candidates sent to the compiler")
    _question(parser)
    parser.add_argument("--sampler", metavar="NAME", default="evolution", help=f"one of {', '.join(SAMPLERS)}")
    parser.add_argument("--seed", metavar="N", type=_whole, default=0, help="seed of sampler, inputs and final run")
    parser.add_argument("--compiler", choices=("nvrtc", "nvcc"), default="nvrtc", help="compiler")
    parser.add_argument("--study", metavar="NAME", help="name of the new study (default: made from the question)")
    parser.add_argument(
        "--warm-start",
        metavar="STUDY|auto",
        action="append",
        help="begin with the best configs of this study of the same template, and believe its times as far as they "
        "prove right; may be given again. auto: the four studies in the database with the nearest shapes, on any card",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the space and stop, as `evoengine space` does")
    parser.add_argument("--force", action="store_true", help=FORCE_HELP)
    _run_options(parser)
    _storage(parser)


def _resume(verbs: Verbs[argparse.ArgumentParser]) -> None:
    parser = _verb(verbs, "resume", "search", "go on with a study, from what its database holds")
    parser.add_argument("study", metavar="STUDY", nargs="?", help="name (default: the last one)")
    parser.add_argument("--budget", metavar="N", type=_natural, help="new total of candidates (default: as it was)")
    parser.add_argument("--device", metavar="DEVICE", default="auto", help="auto, cuda, cuda:N, or none")
    parser.add_argument(
        "--force",
        action="store_true",
        help=f"go on though an elite, or the template, has changed since; {FORCE_HELP}",
    )
    _run_options(parser)
    _own_code(parser)
    _storage(parser)


def _space(verbs: Verbs[argparse.ArgumentParser]) -> None:
    parser = _verb(verbs, "space", "space", "print axes, size, feasible share, and what refuses the rest")
    _question(parser)


def _knobs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    text = "report knobs that do not change what runs, by building pairs of configs that differ in one"
    parser = _verb(verbs, "knobs", "knobs", text)
    _question(parser)
    parser.add_argument(
        "--pairs", metavar="N", type=_natural, default=4, help="pairs built for any two neighbouring choices of a knob"
    )
    parser.add_argument("--seed", metavar="N", type=_whole, default=0, help="seed of the random configs among them")
    parser.add_argument("--compiler", choices=("nvrtc", "nvcc"), default="nvrtc", help="compiler")
    parser.add_argument("--jobs", metavar="N", type=_natural, help="compiles at a time (default: all cores)")


def _studies(verbs: Verbs[argparse.ArgumentParser]) -> None:
    _storage(_verb(verbs, "studies", "studies", "list the studies of a database"))


def _show(verbs: Verbs[argparse.ArgumentParser]) -> None:
    parser = _verb(verbs, "show", "studies", "show a study: best configs, verdicts by gate, baselines")
    parser.add_argument("study", metavar="STUDY", nargs="?", help="name (default: the last one)")
    parser.add_argument("--top", metavar="N", type=_natural, default=8, help="rows of the table")
    parser.add_argument(
        "--factor",
        metavar="F",
        type=_factor,
        help="judge every stored check again, with F times the baseline's error allowed, and say what changes",
    )
    _own_code(parser)
    _storage(parser)


def _report(verbs: Verbs[argparse.ArgumentParser]) -> None:
    parser = _verb(verbs, "report", "report", "write a study as one offline page, as Markdown, or as a figure")
    parser.add_argument("study", metavar="STUDY", nargs="?", help="name (default: the last one)")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, required=True, help="file to write")
    parser.add_argument(
        "--format",
        choices=("html", "md", "png"),
        help="html: an interactive page, all in one file; md: tables for a pull request; png: one figure for a paper "
        "(default: by the suffix of FILE)",
    )
    parser.add_argument("--top", metavar="N", type=_natural, default=8, help="rows of the tables of configs")
    parser.add_argument("--force", action="store_true", help="overwrite FILE")
    _own_code(parser)
    _storage(parser)


def _profile(verbs: Verbs[argparse.ArgumentParser]) -> None:
    text = "say what bounds a study's elites, by Nsight Compute's counters (its clocks and times are left alone)"
    parser = _verb(verbs, "profile", "profile", text)
    parser.add_argument("study", metavar="STUDY", nargs="?", help="name (default: the last one)")
    parser.add_argument("--top", metavar="N", type=_natural, default=3, help="elites profiled, the fastest first")
    parser.add_argument("--device", metavar="DEVICE", default="auto", help="auto, cuda or cuda:N")
    _own_code(parser)
    _storage(parser)


EXPORTS = {
    "header": "C header; of several, one with an #if block for each card and shape",
    "bundle": "folder with kernel, launcher, CMakeLists and test",
    "wisdom": "JSON lines, merged with those that PATH holds",
    "t4": "every trial as T4 results",
    "cachefile": "every trial as Kernel Tuner's cachefile",
    "json": "the study and every trial in full",
    "torch": "folder for evoengine.load",
}


def _export(verbs: Verbs[argparse.ArgumentParser]) -> None:
    parser = _verb(verbs, "export", "export", "write the best config, or every trial, for other programs to use")
    parser.add_argument(
        "study",
        metavar="STUDY|HEADER",
        nargs="*",
        help="study (default: the last one) or exported header; several for header, wisdom and torch",
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
    parser.add_argument("--trial", metavar="N", type=_whole, help="this trial instead of the best")
    parser.add_argument("--force", action="store_true", help="overwrite PATH, or export a config that went stale")
    _own_code(parser)
    _storage(parser)


def _compare(verbs: Verbs[argparse.ArgumentParser]) -> None:
    parser = _verb(verbs, "compare", "compare", "time a config beside SDPA, FlexAttention, a tuned Triton kernel, ...")
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
    parser.add_argument(
        "--template",
        metavar="DIR",
        help="template: a shipped name or a folder with code that runs (default: attention)",
    )
    parser.add_argument(
        "--space", metavar="FILE", help="search space: a Python file that runs (default: the template's own)"
    )
    parser.add_argument("--device", metavar="DEVICE", default="auto", help="auto, cuda or cuda:N (default: auto)")
    parser.add_argument("--limits", metavar="CARD", help="refuse a config that would not fit this card, such as l4")
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="also write the JSON document here, after every shape"
    )
    parser.add_argument("--force", action="store_true", help=FORCE_HELP)
    _storage(parser)


def _verify(verbs: Verbs[argparse.ArgumentParser]) -> None:
    parser = _verb(verbs, "verify", "verify", "build a config anew, prove it at the full gate and time it again")
    parser.description = (
        "Build a study's config or an exported header anew, say what has changed since, prove it at the full gate and "
        "time it again beside the default config in a fresh process. Exit code 0: right, rebuilt as it was, and no "
        "slower against the default than recorded; 1: not so. Without a GPU it is proven in the interpreter."
    )
    parser.add_argument(
        "what", metavar="STUDY|HEADER", help="a study (its winner or best config) or an exported header"
    )
    parser.add_argument("--trial", metavar="N", type=_whole, help="this trial of the study")
    _own_code(parser)
    parser.add_argument("--device", metavar="DEVICE", default="auto", help="auto, cuda, cuda:N, or none")
    parser.add_argument("--force", action="store_true", help=FORCE_HELP)
    _storage(parser)


def _replay(verbs: Verbs[argparse.ArgumentParser]) -> None:
    parser = _verb(verbs, "replay", "replay", "search a recorded space, to see what a sampler is worth")
    parser.add_argument(
        "file", metavar="FILE", help="every config's time: T4 results, a Kernel Tuner cachefile, or our own recording"
    )
    parser.add_argument("--sampler", metavar="NAME", default="evolution", help=f"one of {', '.join(SAMPLERS)}")
    parser.add_argument("--budget", metavar="N", type=_natural, default=200, help="configs tried, failing ones too")
    parser.add_argument("--batch", metavar="N", type=_natural, default=1, help="configs proposed at once")
    parser.add_argument("--seed", metavar="N", type=_whole, default=0, help="seed of the first run")
    parser.add_argument("--runs", metavar="K", type=_natural, default=1, help="runs, with seeds N, N+1, ...")
    parser.add_argument(
        "--noise",
        metavar="PCT",
        type=_percent,
        default=0.0,
        help="error of the times the sampler is told, in percent (log-normal, the same whenever a seed meets a "
        "config); the result is judged by true times",
    )
    _until_converged(parser)
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


def _doctor(verbs: Verbs[argparse.ArgumentParser]) -> None:
    _storage(_verb(verbs, "doctor", "doctor", "check GPU, driver, compilers, packages, database, cache"))


def _completion(verbs: Verbs[argparse.ArgumentParser]) -> None:
    parser = _verb(verbs, "completion", "completion", "print a script that completes evoengine's commands in a shell")
    parser.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "tcsh"), help="bash, zsh or tcsh")


def _whole(text: str) -> int:
    return _number(text, 0)


def _natural(text: str) -> int:
    return _number(text, 1)


def _number(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from {least} on")
    return value


def _percent(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 100.0:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number from 0 to 100")
    return value


def _positive(text: str, what: str = "number of seconds") -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be a positive {what}")
    return value


def _factor(text: str) -> float:
    return _positive(text, "number")
