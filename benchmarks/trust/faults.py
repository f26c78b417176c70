"""Every fault that a search can meet, brought about on purpose: what becomes of it, and of what comes next.

    python -m benchmarks.trust.faults --output studies/h200/trust.json

On GPU 0, about two minutes. Without `--output` it only prints; `--no-gpu` leaves out what happens on a card.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.trust.build_faults import Bench, build_faults, full_database
from benchmarks.trust.document import put_section
from benchmarks.trust.fault import Survived
from benchmarks.trust.processes import Mark
from evoengine.build import find_toolchain
from evoengine.devices.cuda import find_gpu
from evoengine.hardware import card

if TYPE_CHECKING:
    from evoengine.hardware import DeviceLimits

DEFAULT_CARD = "h200"
"""The architecture compiled for where there is no GPU."""


def survive(limits: DeviceLimits | None, mark: Mark, folder: Path) -> Iterator[Survived]:
    """The faults of compiler, cache and database, then those of the card where there is one."""
    yield from build_faults(Bench(folder, (limits or card(DEFAULT_CARD)).arch, mark))
    yield full_database(folder)
    if limits is not None:
        from benchmarks.trust.card_faults import card_faults  # imports torch

        yield from card_faults(limits, mark)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="the trust document to write the section `faults` into")
    parser.add_argument("--no-gpu", action="store_true", help="only compiler, cache and database")
    arguments = parser.parse_args()
    limits = None if arguments.no_gpu else find_gpu()
    if limits is None and not arguments.no_gpu:
        sys.exit("no GPU: give --no-gpu")

    mark = Mark()
    os.environ[mark.name] = mark.value
    started = time.monotonic()
    rows = []
    with tempfile.TemporaryDirectory(prefix="evoengine-faults-") as folder:
        for row in survive(limits, mark, Path(folder)):
            rows.append(row)
            said = f"{row.gate or 'no verdict'}: {row.reason}" if row.reason else row.gate or "no verdict lost"
            print(f"{row.fault:34} {row.seconds:6.2f} s  {said}  | next: {row.following}  {row.problem}", flush=True)
    failed = [row.fault for row in rows if row.problem]
    section = {
        "faults": [row.as_json() for row in rows],
        "survived": len(rows) - len(failed),
        "of": len(rows),
        "seconds": round(time.monotonic() - started, 1),
    }
    print(f"{section['survived']} of {section['of']} survived in {section['seconds']} s")
    if arguments.output:
        environment = {"gpu": limits.name if limits else None, "compiler": find_toolchain("nvrtc").version}
        put_section(arguments.output, "faults", section, environment)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
