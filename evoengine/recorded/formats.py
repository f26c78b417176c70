"""The two public formats of recorded tuning spaces: T4 results and Kernel Tuner's cachefile.

Both are described by the autotuning community's schemas (github.com/AutoTuningAssociation/autotuning_schemas) and kept
by thousands in its benchmark hub; what the schemas leave open is read as Kernel Tuner writes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from evoengine.errors import UserError
from evoengine.recorded.document import Document
from evoengine.recorded.entry import Entry, Objective, members, objective, pick_objective, shown


def read_t4(document: Document) -> tuple[Objective, list[Entry]]:
    """A config works if its `invalidity` is `correct` (where there is none: if its `correctness` is not 0).

    Its value is the measurement named as the objective; where nothing is measured, the median of its runtimes.

    Raises:
        UserError: a result is not what the format says.
    """
    metadata = document.head.get("metadata")
    default_unit = shown(metadata.get("timeunit")) if isinstance(metadata, dict) else ""
    name = pick_objective(next((found for one in document.entries if (found := one.get("objectives"))), None))
    in_unit = cache(lambda unit: objective(name, unit or (default_unit if name == "time" else "")))

    def read() -> Iterator[tuple[Objective, Entry]]:
        for number, result in enumerate(document.entries, 1):
            values = result.get("configuration")
            if not isinstance(values, dict):
                raise UserError(f"result {number} has no configuration")
            found, unit = _t4_figure(result, name)
            invalidity = result.get("invalidity")
            if invalidity is None:
                failure = "correctness" if result.get("correctness") in (0, 0.0) else ""
            else:
                failure = "" if invalidity == "correct" else shown(invalidity) or "unknown"
            what = in_unit(unit)
            yield what, what.entry(values, found, failure)

    pairs = list(read())
    units = sorted({what.unit for what, entry in pairs if entry.cost is not None})
    if len(units) > 1:
        raise UserError(f"has {name} in units that cannot be compared: {', '.join(units)}")
    return next((what for what, entry in pairs if entry.cost is not None), in_unit("")), [entry for _, entry in pairs]


def _t4_figure(result: dict[str, Any], name: str) -> tuple[Any, str]:
    measurements = result.get("measurements")
    for one in measurements if isinstance(measurements, list) else ():
        if isinstance(one, dict) and one.get("name") == name:
            return one.get("value"), shown(one.get("unit"))
    times = result.get("times")
    return (times.get("runtimes") if name == "time" and isinstance(times, dict) else None), ""


def read_cachefile(document: Document) -> tuple[Objective, list[Entry]]:
    """A config failed if it has an `__error__`, or in place of a number the name of an error class, or nothing.

    `InvalidConfig` counts as a failure like the others: a searcher finds out by trying.

    Raises:
        UserError: the file does not name its parameters, or a config has no value for any.
    """
    keys = document.head.get("tune_params_keys")
    if not isinstance(keys, list) or not keys or not all(isinstance(key, str) for key in keys):
        raise UserError("is a cachefile without tune_params_keys")
    what = objective(pick_objective(document.head.get("objective")), "")
    entries = []
    for number, entry in enumerate(document.entries, 1):
        if not any(key in entry for key in keys):
            raise UserError(f"config {number} has none of the parameters {', '.join(map(shown, keys))}")
        found = entry.get(what.name, entry.get("times") if what.name == "time" else None)
        entries.append(what.entry(members(entry, keys), found, shown(entry.get("__error__"))))
    return what, entries
