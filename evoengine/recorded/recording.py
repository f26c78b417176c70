"""Our own recordings: what evoengine measured of a space, in full, to search it again or to check it.

JSON lines, gzipped where the name ends in `.gz`. The first line is the head:

    {"format": "evoengine recording", "version": 1, "name": ..., "template": ..., "device": ..., "command": ...,
     "environment": {...}, "problem": {...}, "axes": [{"name", "choices", "short", "ordered", "names", "about"}, ...],
     "default": {axis: value, ...}}

`environment` says what the numbers depend on (driver, compiler, digests of template and space), `command` how they were
made. Every further line is one config and its verdict:

    {"values": {axis: value, ...}, "gate": null, "reason": "", "median_us": 9.07, "noise": 0.004, "resources": {...}}

`gate` names the gate that rejected the config, with its `reason`; a timed config has null there, its median in
microseconds a launch and its noise (IQR over median). `resources` are `ResourceUsage`'s fields, null for a config that
did not build. Lines are written as verdicts come; a recording that was cut short holds what it has so far.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evoengine.errors import UserError
from evoengine.recorded.document import Document
from evoengine.recorded.entry import Entry, Objective, members, objective
from evoengine.space import Axis, SearchSpace, Values
from evoengine.verdict import Measurement, Rejection, ResourceUsage

FORMAT, VERSION = "evoengine recording", 1


def write_recording(
    path: Path,
    space: SearchSpace,
    verdicts: Iterable[tuple[Values, Rejection | Measurement, ResourceUsage | None]],
    *,
    name: str,
    template: str,
    device: str,
    problem: Mapping[str, Any],
    command: str,
    environment: Mapping[str, Any],
) -> int:
    """Write the head and then each verdict as it comes; the number of configs written. An existing file is replaced.

    `problem` and `environment` must be JSON-ready.

    Raises:
        UserError: `path` cannot be written, or a config is not of `space`.
    """
    head = {
        "format": FORMAT,
        "version": VERSION,
        "name": name,
        "template": template,
        "device": device,
        "command": command,
        "environment": dict(environment),
        "problem": dict(problem),
        "axes": [asdict(axis) for axis in space],
        "default": dict(space.default),
    }
    count = 0
    with ExitStack() as stack:
        try:
            out = stack.enter_context(path.open("wb"))
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from error
        # No time and no name inside: equal recordings are equal files.
        lines = stack.enter_context(gzip.GzipFile("", "wb", 9, out, mtime=0)) if path.suffix == ".gz" else out
        lines.write(_line(head))
        for values, verdict, resources in verdicts:
            space.point(values)
            lines.write(_line(_row(values, verdict, resources)))
            lines.flush()
            count += 1
    return count


def _row(values: Values, verdict: Rejection | Measurement, resources: ResourceUsage | None) -> dict[str, Any]:
    row: dict[str, Any] = {"values": dict(values), "gate": None, "reason": "", "median_us": None, "noise": None}
    if isinstance(verdict, Rejection):
        row |= {"gate": str(verdict.gate), "reason": verdict.reason}
    else:
        row |= {"median_us": verdict.median_us, "noise": verdict.noise}
    return {**row, "resources": None if resources is None else asdict(resources)}


def _line(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, allow_nan=False) + "\n").encode()


def read_recording(document: Document) -> tuple[Objective, list[Entry]]:
    """A config works if no gate rejected it.

    Raises:
        UserError: another version of the format, or a line without values.
    """
    if document.head.get("version") != VERSION:
        raise UserError(f"is a recording of version {document.head.get('version')!r}, this evoengine reads {VERSION}")
    names = [axis.name for axis in read_axes(document)]
    what = objective("time", "us")
    entries = []
    for number, row in enumerate(document.entries, 1):
        values, gate = row.get("values"), row.get("gate")
        if not isinstance(values, dict):
            raise UserError(f"config {number} has no values")
        failure = gate if isinstance(gate, str) else "" if gate is None else "unknown"
        entries.append(what.entry(members(values, names), row.get("median_us"), failure))
    return what, entries


def read_axes(document: Document) -> tuple[Axis, ...]:
    """The axes in a recording's head.

    Raises:
        UserError: an axis is malformed.
    """
    found = document.head.get("axes")
    if not isinstance(found, list) or not found:
        raise UserError("is a recording without axes")
    return tuple(_axis(number, one) for number, one in enumerate(found, 1))


def _axis(number: int, found: Any) -> Axis:
    match found:
        case {"name": str(name), "choices": list(choices), "short": str(short), "ordered": bool(ordered), **rest}:
            names, about = rest.get("names", []), rest.get("about", "")
            if (
                all(type(choice) is int for choice in choices)
                and isinstance(names, list)
                and all(isinstance(one, str) for one in names)
                and len(set(names)) == len(names)
                and isinstance(about, str)
            ):
                return Axis(name, tuple(choices), short, ordered, tuple(names), about)
    raise UserError(f"is a recording whose axis {number} lacks a name, integer choices, short or ordered")
