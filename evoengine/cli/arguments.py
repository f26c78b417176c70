"""What every verb's arguments are made of: types, option groups, one line for a mistake. Imports nothing heavy."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

STORAGE = "studies/evoengine.db"
SHAPE = "1,8,512,64"
SHAPE_HELP = (
    "batch,heads,seq,head_dim (32, 64, 96, 128 or 256) and then name=value or flags, such as "
    "1,8,512,64,causal,dtype=bf16"
)
FORCE_HELP = "time on a card that is busy, or whose default config varies by more than 3 %%, and only warn of it"
Verbs = argparse._SubParsersAction  # argparse has no public name for what add_subparsers returns


class Help(argparse.HelpFormatter):
    """Appends an option's default, where it has one and its help does not say it in words."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        unsaid = action.default is None or action.default is False or action.default == argparse.SUPPRESS
        if unsaid or "default: " in str(action.help):
            return action.help
        return f"{action.help} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the command line in one line, with the nearest name there is."""

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)|unrecognized arguments: (\S+)", message)
        if wrong is not None:
            known = re.findall(r"[\w-]+", wrong[2]) if wrong[2] else self.option_names()
            near = difflib.get_close_matches((wrong[1] or wrong[3] or "").partition("=")[0], known, n=1)
            message += f"; did you mean {near[0]}?" if near else ""
        self.exit(2, f"{self.prog}: {message}; see: {self.prog} --help\n")

    def parse_known_args(  # type: ignore[override]  # typeshed has it overloaded
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """A verb refuses by itself what it does not know: the options of others are no help."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown and not any(isinstance(action, Verbs) for action in self._actions):
            weight = next((one for one in unknown if one.startswith("weight=")), "")
            weighted = weight and "--per-shape" in self.option_names()
            hint = f"; quote a shape with a weight: '{SHAPE} {weight}'" if weighted else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return found, unknown

    def option_names(self) -> list[str]:
        """Every option of this parser and of its verbs."""
        below = [verb for action in self._actions if isinstance(action, Verbs) for verb in action.choices.values()]
        names = [name for action in self._actions for name in action.option_strings]
        return [*names, *(name for verb in below for name in verb.option_names())]


def verb(verbs: Verbs[argparse.ArgumentParser], name: str, module: str, help: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=help, description=help, formatter_class=Help)
    parser.set_defaults(module=module, verb=name)
    parser.add_argument("--json", action="store_true", help="print one JSON document on standard output")
    return parser


def storage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--storage",
        metavar="URL",
        default=STORAGE,
        help="study database: a file (SQLite) or any SQLAlchemy URL, such as postgresql+psycopg://user@host/db",
    )


def own_code(parser: argparse.ArgumentParser) -> None:
    """Where the code of a study is: a database from elsewhere may name any folder, and what it names does not run."""
    parser.add_argument(
        "--template",
        metavar="DIR",
        help="the study's template, where it is your own and was not used on this machine yet; code that runs",
    )
    parser.add_argument("--space", metavar="FILE", help="the same for its search space")


def template_and_space(parser: argparse.ArgumentParser) -> None:
    """What is tuned, where no study says it."""
    parser.add_argument(
        "--template",
        metavar="DIR",
        help="template: a shipped name or a folder with code that runs (default: attention)",
    )
    parser.add_argument(
        "--space", metavar="FILE", help="search space: a Python file that runs (default: the template's own)"
    )


def question(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """What to search: template, space, shape (or `several`), target."""
    template_and_space(parser)
    again = ""
    if several:
        again = (
            ". Given again: one study over all of them, which ranks configs by the geometric mean of their speed-ups "
            "('SHAPE weight=W' counts W times), or with --per-shape a study of each"
        )
    parser.add_argument(
        "--shape",
        metavar="SHAPE",
        action="append" if several else "store",
        help=f"problem (default: the template's own, for attention {SHAPE}): {SHAPE_HELP}{again}",
    )
    if several:
        parser.add_argument(
            "--shapes", metavar="FILE", type=Path, help="more shapes, one a line, weights too; # begins a comment"
        )
        parser.add_argument(
            "--per-shape",
            action="store_true",
            help="a study for every shape, one after the other, each with the whole budget and begun with what those "
            "before it measured; at the end a table of the config for each. The same command again goes on where it "
            "was stopped, and keeps the studies of the same search that are finished",
        )
    parser.add_argument(
        "--device",
        metavar="DEVICE",
        default="auto",
        help="auto, cuda, cuda:N, or none (compile and prove without a GPU; nothing is measured)",
    )
    parser.add_argument("--target", metavar="CARD", default="l4", help="card to compile for when there is no GPU")
    parser.add_argument("--limits", metavar="CARD", help="refuse what would not fit this card, such as l4")
    parser.add_argument("--max-registers", metavar="N", type=natural, help="refuse more registers a thread")
    parser.add_argument("--max-smem", metavar="BYTES", type=natural, help="refuse more shared memory a CTA")
    parser.add_argument(
        "--max-spill-bytes", metavar="BYTES", type=whole, help="refuse more register spills a thread (default: keep)"
    )


def devices(parser: argparse.ArgumentParser) -> None:
    """Several GPUs at once."""
    parser.add_argument(
        "--devices",
        metavar="LIST",
        help="search on several GPUs of this machine at once, in one study: all, or a list of CUDA ordinals or UUIDs "
        "such as 0,1 or GPU-1a2b,GPU-3c4d; they must be of one model",
    )


def cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cache",
        metavar="URL",
        help="where machines on one study leave their builds for each other: a folder that all of them mount, "
        "file:///FOLDER, or database (default: the study's database, unless it is a file of SQLite)",
    )


def run_options(parser: argparse.ArgumentParser) -> None:
    """How to run, whatever the question."""
    parser.add_argument("--seconds", metavar="S", type=positive, help="stop this run after so many seconds")
    until_converged(parser)
    parser.add_argument(
        "--sanitize",
        action="store_true",
        help="run compute-sanitizer (memcheck, initcheck, racecheck, synccheck) over the finalists before the final "
        "run; a finding rejects",
    )
    parser.add_argument("--jobs", metavar="N", type=natural, help="compiles at a time (default: all cores)")
    cache(parser)
    parser.add_argument(
        "--batch",
        metavar="N",
        type=natural,
        help="candidates in flight at most; N/8 are proposed at a time, once all but the last N/2 are judged (default: "
        "with an estimate or a warm start four times the jobs, up to a third of the budget, on one GPU also up to 64, "
        "after five times the jobs; else twice the jobs, 8 to 32, on several GPUs at least 16 for each and at most 64)",
    )
    parser.add_argument("--top", metavar="N", type=natural, default=8, help="rows of the final table")
    quiet_or_verbose(parser)


def quiet_or_verbose(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("-q", "--quiet", action="store_true", help="no progress, only the result")
    group.add_argument("-v", "--verbose", action="store_true", help="a line for every verdict, and where the time went")


def until_converged(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--until-converged",
        action="store_true",
        help="stop before the budget is spent once 50 configs in a row were expected to gain less than the noise, and "
        "did (evolution only; noise: the median IQR of the timed configs' windows, at least 0.5 %%)",
    )


def whole(text: str) -> int:
    return _number(text, 0)


def natural(text: str) -> int:
    return _number(text, 1)


def name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("'' is no name: give one, or leave the option out")
    return text


def _number(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from {least} on")
    return value


def percent(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 100.0:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number from 0 to 100")
    return value


def positive(text: str, what: str = "number of seconds") -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be a positive {what}")
    return value


def factor(text: str) -> float:
    return positive(text, "number")
