"""Wisdom: the best config for each problem and card in one file, and what to use where there is none for a problem.

The form is Kernel Launcher's (github.com/KernelTuner/kernel_launcher, version 1.0): JSON lines, a head and then a row
for each problem and card, `time` in milliseconds. Members beyond that form are ours, and its readers pass over them:
the whole `problem`, the `macros` that make it this kernel, `validators` as in TunableOp's files (a row holds for the
sources and the compiler that it was measured with) and `provenance`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from evoengine.errors import UserError

PACKAGE = "torch package"
"""What a folder of wisdom with its cubins and template is called in its listing."""
VERSION = "1.0"
SMEM = "EVO_SMEM_BYTES"
HEAD = ("version", "key", "objective", "tunable_parameters")
MAX_BYTES = 64 << 20
"""A row is about 1.5 KB: forty thousand problems."""

Step = Literal["exact", "nearest size", "other device", "default"]


@dataclass(frozen=True, slots=True)
class Row:
    """The best config known for a problem on a card. `size` has the positional fields, `time` is in milliseconds."""

    size: tuple[int, ...]
    device: str
    config: tuple[int, ...]
    time: float
    problem: Mapping[str, int | float | str | bool]
    macros: Mapping[str, int]
    validators: Mapping[str, str]
    provenance: Mapping[str, Any]

    @property
    def key(self) -> tuple[Any, ...]:
        return self.device, *sorted(self.problem.items())

    def as_json(self) -> dict[str, Any]:
        return {
            "problem_size": list(self.size),
            "environment": {"device_name": self.device},
            "config": list(self.config),
            "time": self.time,
            **{name: dict(getattr(self, name)) for name in ("problem", "macros", "validators", "provenance")},
        }


@dataclass(frozen=True, slots=True)
class Wisdom:
    """A wisdom file of the kernel `key`: `default` is the config where nothing is known, in the order of `parameters`.

    There is one row for a problem on a card.
    """

    key: str
    template: str
    parameters: tuple[str, ...]
    default: tuple[int, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Advice:
    """What to use: a config, the row it is from (None for the default), how near that row is, and lines to be read."""

    values: dict[str, int]
    row: Row | None
    step: Step
    warnings: tuple[str, ...]


def merge(old: Wisdom, new: Wisdom) -> Wisdom:
    """Both files' rows. For one problem and card the lower time stays, unless the old row is from other sources or from
    another compiler, and with that stale.

    Raises:
        UserError: they are of different kernels.
    """
    if (old.key, old.parameters) != (new.key, new.parameters):
        raise UserError(
            f"holds wisdom of {old.key} with parameters {', '.join(old.parameters)}, not of {new.key} with "
            f"{', '.join(new.parameters)}: give another --output, or --force to begin anew"
        )
    return dataclasses.replace(new, rows=kept([*old.rows, *new.rows]))


def render_wisdom(wisdom: Wisdom) -> str:
    head = {
        "version": VERSION,
        "key": wisdom.key,
        "objective": "time",
        "tunable_parameters": list(wisdom.parameters),
        "template": wisdom.template,
        "default": list(wisdom.default),
    }
    rows = sorted(wisdom.rows, key=lambda row: (row.device, row.provenance["shape"]))
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in (head, *(row.as_json() for row in rows)))


def parse_wisdom(text: str) -> Wisdom:
    """A file that `render_wisdom` wrote, or another tool in the same form with our members.

    Raises:
        UserError: it is not one, or it is damaged; names the line.
    """
    if len(text) > MAX_BYTES:
        raise UserError(f"is {len(text)} characters long: a wisdom file has at most {MAX_BYTES}")
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    head: Any = None
    with suppress(ValueError, RecursionError):
        head = json.loads(lines[0][1]) if lines else None
    if not isinstance(head, dict) or not set(HEAD) <= head.keys():
        raise UserError(f"is no wisdom file: its first line has no {', '.join(HEAD)}")
    if (head["version"], head["objective"]) != (VERSION, "time"):
        raise UserError(f"is wisdom of version {head['version']!r} for {head['objective']!r}: known is {VERSION}, time")
    names: tuple[str, ...] = ()
    default: tuple[int, ...] = ()
    rows = []
    for number, line in lines:
        try:
            if (number, line) == lines[0]:
                names = tuple(map(str, head["tunable_parameters"]))
                default = _config(head.get("default"), names)
            else:
                rows.append(_read_row(json.loads(line), names))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(f"is damaged at line {number} ({type(error).__name__}: {error}): export it again") from None
    return Wisdom(str(head["key"]), str(head.get("template", "")), names, default, kept(rows))


def lookup(
    wisdom: Wisdom,
    problem: Mapping[str, int | float | str | bool],
    macros: Mapping[str, int],
    device: str,
    validators: Mapping[str, str],
    default: Mapping[str, int],
    *,
    sizes: bool = True,
) -> Advice:
    """The nearest wisdom, as Kernel Launcher selects: this problem on this card; the nearest size on this card; another
    card; the default. Only the first comes without a warning.

    `macros` are those of the problem: a row with others is another kernel. Floating-point fields of a problem are
    arguments of the launch and decide nothing. Of `validators`, a row's `template_digest` must agree, and another
    `compiler`, if one is given, is a warning. `default` are the template's own values, for axes that the file does not
    know. Without `sizes` only this very problem counts.
    """
    whole = valid(wisdom, validators["template_digest"])
    warnings = []
    if void := len(wisdom.rows) - len(whole):
        warnings.append(f"{void} of {len(wisdom.rows)} rows are stale, from other sources of {wisdom.template}: unused")
    same = [row for row in whole if row.macros == macros and (sizes or _exact(row.problem, problem))]
    here = [row for row in same if row.device == device]
    steps: list[tuple[Step, list[Row]]] = [
        ("exact", [row for row in here if _exact(row.problem, problem)]),
        ("nearest size", here),
        ("other device", same),
    ]
    for step, rows in steps:
        if not rows:
            continue
        row = min(rows, key=lambda one: (*_distance(one.problem, problem), one.time))
        if step != "exact":
            where = "" if step == "nearest size" else f" on {row.device}"
            warnings.append(f"no wisdom for this problem on {device}: using that for {_shape(row)}{where}")
        was, now = row.validators.get("compiler"), validators.get("compiler")
        if now is not None and was != now:
            warnings.append(f"the row for {_shape(row)} is stale: measured with {was}, here is {now}")
        return Advice(_values(wisdom.parameters, row.config, default, warnings), row, step, tuple(warnings))
    warnings.append(f"no wisdom for this problem on any card: using the default config of {wisdom.key}")
    return Advice(_values(wisdom.parameters, wisdom.default, default, warnings), None, "default", tuple(warnings))


def valid(wisdom: Wisdom, template_digest: str) -> list[Row]:
    """The rows that were measured with these sources of the template."""
    return [row for row in wisdom.rows if row.validators.get("template_digest") == template_digest]


def problem_macros(defines: Mapping[str, int], parameters: Iterable[str]) -> dict[str, int]:
    """The macros that make a build this kernel and not another: without those of the axes and the memory model."""
    others = {SMEM, *(f"EVO_{name}" for name in parameters)}
    return {name: value for name, value in defines.items() if name not in others}


def kept(rows: Iterable[Row]) -> tuple[Row, ...]:
    """One row for each problem and card; the later one where the earlier is void beside it, else the faster."""
    kept: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        old = kept.get(row.key)
        if old is None or old.validators != row.validators or row.time < old.time:
            kept[row.key] = row
    return tuple(kept.values())


def _read_row(found: Any, names: tuple[str, ...]) -> Row:
    row = Row(
        size=tuple(map(int, found["problem_size"])),
        device=str(found["environment"]["device_name"]),
        config=_config(found["config"], names),
        time=float(found["time"]),
        **{name: dict(found[name]) for name in ("problem", "macros", "validators", "provenance")},
    )
    if not 0.0 < row.time < math.inf:
        raise ValueError(f"time {row.time} is none")
    if not isinstance(row.provenance.get("shape"), str):
        raise ValueError("no shape in provenance")
    return row


def _config(found: Any, names: tuple[str, ...]) -> tuple[int, ...]:
    if not isinstance(found, list) or len(found) != len(names) or not all(type(value) is int for value in found):
        raise ValueError(f"a config is {len(names)} whole numbers")
    return tuple(found)


def _values(
    names: Sequence[str], config: Sequence[int], default: Mapping[str, int], warnings: list[str]
) -> dict[str, int]:
    """A config on the axes of today: a new axis has its default, one that is gone is left out."""
    known = dict(zip(names, config, strict=True))
    for name in sorted(default.keys() - known.keys()):
        warnings.append(f"the wisdom does not know {name}: {name}={default[name]}, its default")
    return {name: known.get(name, value) for name, value in default.items()}


def _shape(row: Row) -> str:
    return str(row.provenance["shape"])


def _exact(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one.get(name) == value for name, value in other.items() if not isinstance(value, float))


def _distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[float, float]:
    """Difference of volumes (products of all whole-number fields), as Kernel Launcher ranks; then, where a sequence
    grew as the batch shrank, the fields' own ratios."""
    pairs = [(one.get(name), value) for name, value in other.items() if type(value) is int and value > 0]
    sizes = [(a, b) for a, b in pairs if type(a) is int and a > 0]
    volume = abs(math.prod(a for a, _ in sizes) - math.prod(b for _, b in sizes))
    return float(volume), sum(abs(math.log(a / b)) for a, b in sizes)
