"""The command line: parse, hand over to one command, turn errors into one line and an exit code.

Exit codes are in the parser's epilog.
"""

from __future__ import annotations

import gc
import importlib
import os
import shlex
import sys
from collections.abc import Sequence

from evoengine.cli.parser import make_parser
from evoengine.errors import EvoengineError
from evoengine.recorded.entry import shown

INTERRUPTED = 130
MESSAGE_CHARS = 4000
GC_THRESHOLD = 100_000
"""New objects between two looks for garbage, where Python's own 700 take a tenth of a report's time: most of what a
command makes it keeps."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` defaults to the process's own arguments. Returns the exit code."""
    gc.set_threshold(GC_THRESHOLD, 50, 50)
    arguments = make_parser().parse_args(argv)
    arguments.command_line = shlex.join(["evoengine", *(sys.argv[1:] if argv is None else argv)])
    try:
        command = importlib.import_module(f"evoengine.cli.{arguments.module}")
        return int(command.run(arguments))
    except EvoengineError as error:
        # One line, whatever names a file or a database put into it.
        print(f"evoengine: {shown(str(error), MESSAGE_CHARS)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("evoengine: stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `evoengine studies | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
