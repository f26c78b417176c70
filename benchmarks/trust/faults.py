"""Every fault that a search can meet, brought about on purpose: what becomes of it, and of what comes next.

    python -m benchmarks.trust.faults --output studies/h200/trust.json

Two parts: `build` has the faults of compiler, cache and database and needs no GPU, `card` those of GPU 0. --part runs
one of them and keeps the other of the file. About two minutes each; without --output it only prints. The section is
written anew after each fault; of the card's faults, those that such a card with this driver and code has survived are
kept, so that a run that breaks off goes on.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from benchmarks.trust.build_faults import Bench, build_faults, full_database
from benchmarks.trust.document import judge_digest, kept_section, put_section, this_card
from benchmarks.trust.fault import Survived
from benchmarks.trust.processes import Mark
from evoengine.build import find_toolchain
from evoengine.devices.cuda import find_gpu
from evoengine.errors import EvoengineError, UserError
from evoengine.hardware import DeviceLimits, card

PARTS = ("build", "card")
DEFAULT_CARD = "h200"
"""The architecture compiled for where there is no GPU."""


def survive(
    part: str, limits: DeviceLimits | None, mark: Mark, folder: Path, done: Collection[str]
) -> Iterator[Survived]:
    """The faults of one part, but for those of the card that are `done`."""
    if part == "build":
        yield from build_faults(Bench(folder, (limits or card(DEFAULT_CARD)).arch, mark))
        yield full_database(folder)
        return
    assert limits is not None, "the setting has seen to it"
    from benchmarks.trust.card_faults import card_faults  # imports torch

    yield from card_faults(limits, mark, done)


def setting_of(part: str, limits: DeviceLimits | None) -> dict[str, Any]:
    """What a fault of this part was survived on.

    Raises:
        UserError: part `card` without a GPU.
    """
    if part == "build":
        return {"compiler": find_toolchain("nvrtc").version}
    if limits is None:
        raise UserError("the faults of a card need a GPU, and there is none here: give --part build")
    return {**this_card(limits), "judge": judge_digest()}


def run_part(part: str, limits: DeviceLimits | None, mark: Mark, path: Path | None) -> dict[str, Any]:
    """The part's section, written to `path` after each fault."""
    started = time.monotonic()
    setting = setting_of(part, limits)
    before = _known(path).get(part, {}) if part == "card" else {}
    rows = [row for row in before.get("faults", ()) if row["survived"]] if before.get("setting") == setting else []
    spent = before["seconds"] if rows else 0.0

    def so_far() -> dict[str, Any]:
        return {
            "faults": rows,
            "survived": sum(row["survived"] for row in rows),
            "of": len(rows),
            "seconds": round(spent + time.monotonic() - started, 1),
            "gpu": limits.name if limits and part == "card" else None,
            "setting": setting,
        }

    with tempfile.TemporaryDirectory(prefix="evoengine-faults-") as folder:
        for row in survive(part, limits, mark, Path(folder), {row["fault"] for row in rows}):
            rows.append(row.as_json())
            said = f"{row.gate or 'no verdict'}: {row.reason}" if row.reason else row.gate or "no verdict lost"
            print(f"{row.fault:34} {row.seconds:6.2f} s  {said}  | next: {row.following}  {row.problem}", flush=True)
            if path:
                _write(path, part, so_far())
    return so_far()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="the trust document to write the section `faults` into")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; may be given again")
    arguments = parser.parse_args()
    mark = Mark()
    os.environ[mark.name] = mark.value
    failed = 0
    for part in arguments.part or PARTS:
        done = run_part(part, find_gpu(), mark, arguments.output)
        print(f"{part}: {done['survived']} of {done['of']} survived in {done['seconds']} s")
        failed += done["of"] - done["survived"]
    return int(bool(failed))


def _known(path: Path | None) -> dict[str, Any]:
    return kept_section(path, "faults", {}) if path else {}


def _write(path: Path, part: str, done: dict[str, Any]) -> None:
    known = _known(path)
    parts = {name: known[name] for name in PARTS if name in known} | {part: done}
    survived, of = (sum(one[key] for one in parts.values()) for key in ("survived", "of"))
    section = {**parts, "survived": survived, "of": of}
    put_section(path, "faults", section, {"compiler": find_toolchain("nvrtc").version})


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EvoengineError as error:
        sys.exit(f"faults: {error}")
