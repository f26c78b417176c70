"""From a file to a recorded space, whatever the format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evoengine.errors import UserError
from evoengine.recorded.document import Document, read_document
from evoengine.recorded.entry import shown
from evoengine.recorded.formats import read_cachefile, read_t4
from evoengine.recorded.recording import FORMAT, read_axes, read_recording
from evoengine.recorded.space import RecordedSpace, axes_of, centre, merge, points_on
from evoengine.space import Axis, SearchSpace, Values

SUFFIXES = (".gz", ".json", ".jsonl", ".T4")


def load(path: Path) -> RecordedSpace:
    """The recorded space in a T4 file, a Kernel Tuner cachefile (open or closed) or an evoengine recording.

    Raises:
        UserError: the file cannot be read, is broken, unknown or too large, or holds nothing to search.
    """
    try:
        return _build(read_document(path), _stem(path))
    except UserError as error:
        raise UserError(f"{path} {error}") from error


def _build(document: Document, name: str) -> RecordedSpace:
    head = document.head
    default: Values = {}
    template, problem = "", {}
    device = head.get("device_name")
    if document.bulk == "cache":
        source = "Kernel Tuner cachefile"
        what, entries = read_cachefile(document)
        axes, points, constants = axes_of(entries)
    elif document.bulk == "results":
        source = "T4"
        what, entries = read_t4(document)
        axes, points, constants = axes_of(entries)
    elif head.get("format") == FORMAT:
        source, device, name = FORMAT, head.get("device"), shown(head.get("name")) or name
        what, entries = read_recording(document)
        declared = read_axes(document)
        axes, constants = _varying(declared, points_on(declared, entries))
        points = points_on(axes, entries)
        default = _default(head.get("default"), declared, axes)
        template, problem = shown(head.get("template")), _problem(head.get("problem"))
    else:
        raise UserError(
            "is no recorded space: give a T4 file (results), a Kernel Tuner cachefile (cache) or an evoengine recording"
        )
    if entries and not axes:
        raise UserError("has no parameter with two values: there is nothing to search")
    ordered, costs, failures = merge(points, entries)
    return RecordedSpace(
        name=name,
        source=source,
        device=shown(device),
        objective=what.name,
        unit=what.unit,
        is_rate=what.is_rate,
        axes=axes,
        template=template,
        problem=problem,
        points=ordered,
        costs=costs,
        default=default or centre(axes),
        constants=constants,
        failures=failures,
        duplicates=len(entries) - len(ordered),
        cut=document.cut,
    )


def _varying(declared: tuple[Axis, ...], points: list[tuple[int, ...]]) -> tuple[tuple[Axis, ...], dict[str, str]]:
    """Of a recording's axes those that vary in it, and the others' only value."""
    axes, constants = [], {}
    for axis, used in zip(declared, map(set, zip(*points, strict=True)), strict=True):
        if len(used) > 1:
            axes.append(axis)
        else:
            constants[axis.name] = axis.show(axis.choices[used.pop()])
    return tuple(axes), constants


def _default(found: object, declared: tuple[Axis, ...], axes: tuple[Axis, ...]) -> Values:
    """The recording's default on the axes that vary; empty where it has none.

    Raises:
        UserError: it is no config of the recording's axes.
    """
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(type(value) is int for value in found.values()):
        raise UserError("is a recording whose default is not a config")
    SearchSpace("recording", declared, (), found)
    return {axis.name: found[axis.name] for axis in axes}


def _problem(found: object) -> dict[str, Any]:
    """The recording's problem.

    Raises:
        UserError: it is no object.
    """
    if not isinstance(found, dict):
        raise UserError("is a recording without a problem")
    return found


def _stem(path: Path) -> str:
    name = path.name
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return shown(name)
