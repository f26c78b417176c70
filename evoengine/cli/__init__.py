"""The command line: parse, hand over to one command, turn errors into one line and an exit code.

Exit codes are in the parser's epilog.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import shlex
import sys
from collections.abc import Sequence

from evoengine.cli.go_on import storage_option
from evoengine.cli.parser import make_parser
from evoengine.cli.storage import without_secrets
from evoengine.errors import EvoengineError, SeeStudies
from evoengine.recorded.entry import shown

INTERRUPTED = 130
"""Exit code after Ctrl-C."""
MESSAGE_CHARS = 4000
GC_THRESHOLD = 100_000
"""New objects between two looks for garbage, where Python's own 700 take a tenth of a report's time: most of what a
command makes it keeps."""
PASSWORD_SEEN = (
    "every user of this machine can see the password in the list of processes: leave it out of the URL, libpq reads it "
    "from ~/.pgpass, PGPASSWORD or a service file"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` defaults to the process's own arguments. Returns the exit code."""
    gc.set_threshold(GC_THRESHOLD, 50, 50)
    atexit.register(gc.freeze)  # else the interpreter looks through all that is left: 0.3 s at the end of a search
    arguments = make_parser().parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    shown_words = [without_secrets(word) for word in words]  # what is kept with a study, and in what is made from it
    arguments.command_line = shlex.join(["evoengine", *shown_words])
    if shown_words != list(words):
        print(f"evoengine: {PASSWORD_SEEN}", file=sys.stderr)
    try:
        command = importlib.import_module(f"evoengine.cli.{arguments.module}")
        return int(command.run(arguments))
    except EvoengineError as error:
        text = error.told(storage_option(arguments.storage)) if isinstance(error, SeeStudies) else str(error)
        # One line, whatever names a file or a database put into it.
        print(f"evoengine: {shown(text, MESSAGE_CHARS)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as stop:
        print(f"evoengine: {stop.args[0] if stop.args else 'stopped'}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `evoengine studies | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
