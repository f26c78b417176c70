"""Every proof that needs a GPU, in a given time: `python -m benchmarks.trust.on_gpu --output FILE --seconds 900`.

The scripts run one after the other, the quickest to tell first; the last gets what time is left. Each writes its
section as it goes and passes over what the file has already, so that another run goes on where the time was up. Exit
code 0 where all have passed.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

SCRIPTS = (("mutants",), ("timing",), ("false_rejections", "--seconds", "600"), ("faults", "--part", "card"))
END_SECONDS = 15.0
"""For a script that is interrupted to end its workers and write down what it has."""


def heed_interrupts() -> None:
    """In the child: a shell's background job starts with SIGINT ignored, and hands that down."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(command: Sequence[str], seconds: float) -> int | None:
    """The exit code, or None where the time was up."""
    with subprocess.Popen(command, preexec_fn=heed_interrupts) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    return None


def run_all(commands: Sequence[tuple[str, Sequence[str]]], seconds: float) -> bool:
    """Run named commands until the time is up; whether all of them ended well."""
    end = time.monotonic() + seconds
    said = {}
    for name, command in commands:
        started = time.monotonic()
        if started >= end:
            said[name] = "not begun"
            continue
        code = run(command, end - started)
        word = "out of time" if code is None else "passed" if code == 0 else f"FAILED ({code})"
        said[name] = f"{word}, {time.monotonic() - started:.0f} s"
        print(f"{name}: {said[name]}", flush=True)
    print("; ".join(f"{name}: {word}" for name, word in said.items()), flush=True)
    return all(word.startswith("passed") for word in said.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", metavar="FILE", type=Path, required=True, help="trust document to write to")
    parser.add_argument("--seconds", metavar="S", type=float, default=900.0, help="when to stop (default: 900)")
    arguments = parser.parse_args()
    commands = [
        (name, [sys.executable, "-m", f"benchmarks.trust.{name}", "--output", str(arguments.output), *more])
        for name, *more in SCRIPTS
    ]
    return int(not run_all(commands, arguments.seconds))


if __name__ == "__main__":
    sys.exit(main())
