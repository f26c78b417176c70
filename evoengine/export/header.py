"""The best config as a C header: macros, launch geometry, static checks and provenance; and the way back.

The header is included before the template's kernel.cu. A macro that is already defined with another value is an
`#error`, never silently overridden in either direction. Reading back is strict: the text must be exactly what
`render_header` writes for the facts found in it, checksum included, so that a header edited by hand is not taken for
an export. (The checksum guards against accidents; whoever forges a header can forge that too.)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evoengine.errors import TemplateError, UserError

FORMAT = 1
_TITLE = f"// evoengine header, format {FORMAT}"
MAX_BYTES = 256 * 1024  # a header with every field at its longest is under 10 KB
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_MACRO = re.compile(r"^#ifndef (\w{1,64})\n#define \1 \(?(-?\d{1,18})\)?$", re.MULTILINE | re.ASCII)
_FACT = re.compile(r"^//   (\w{1,64}):(?: (.*))?$", re.MULTILINE | re.ASCII)
# Opt-in shared memory per CTA by __CUDA_ARCH__: CUDA C++ Programming Guide 13.0, table "Technical Specifications per
# Compute Capability". First match counts; the last row holds for all that are not named.
_SMEM_LIMITS = (
    ("__CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200", 99 * 1024),
    ("__CUDA_ARCH__ >= 900", 227 * 1024),
    ("", 163 * 1024),
)


@dataclass(frozen=True, slots=True)
class GridDim:
    """One grid dimension: ceil(`extent` / `tile`) * `times` CTAs; `extent` names an integer field of the problem."""

    extent: str
    tile: int
    times: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderFacts:
    """Everything an exported header says. Texts are one line each; what C would read as more is replaced.

    `defines` are the macros of the build, `grid_ctas`, `block_threads` and `smem_bytes` the launch on `problem`.
    `grid` is how the grid follows from other shapes, or empty where the template does not say; `min_arch` is the
    lowest `__CUDA_ARCH__` / 10 the template compiles for. A speed-up is the other's median over this one's.
    `scratch` are bytes of the scratch tensors on `problem`, by name; headers of kernels without do not speak of it.

    A config that was never timed has `estimated_us` in place of `median_us` and says so in the header.
    """

    template: str
    template_digest: str
    space: str
    space_digest: str
    entry: str
    config: str
    shape: str
    problem: Mapping[str, int | float | str | bool]
    study: str
    trial: int
    device: str
    arch: str
    driver: str
    compiler: str
    cubin_sha256: str
    registers: int
    spill_bytes: int
    method: str
    median_us: float | None
    noise: float | None
    speedup_over_sdpa: float | None
    speedup_over_default: float | None
    estimated_us: float | None = None
    evoengine_version: str
    date: str
    command: str
    min_arch: int = 80
    defines: Mapping[str, int]
    grid_ctas: tuple[int, int, int]
    block_threads: int
    smem_bytes: int
    grid: tuple[GridDim, ...] = ()
    scratch: Mapping[str, int] = dataclasses.field(default_factory=dict)


_OUTSIDE_COMMENT = ("defines", "grid_ctas", "block_threads", "smem_bytes")


def render_header(facts: HeaderFacts) -> str:
    """The header's text, ASCII, deterministic.

    Raises:
        TemplateError: a macro or the entry is no C identifier, or the grid formula disagrees with the launch.
    """
    return signed([_TITLE, *provenance(facts), "", "#pragma once", "", *body(facts)])


def body(facts: HeaderFacts) -> Iterator[str]:
    """The lines that C sees: macros, launch, static checks. Raises what `render_header` raises."""
    _check(facts)
    yield from _macros(facts)
    yield from _launch(facts)


def signed(lines: Iterable[str]) -> str:
    """The text of a header with its checksum."""
    text = "\n".join([*lines, ""])
    return f"{text}// sha256 of the lines above: {hashlib.sha256(text.encode()).hexdigest()}\n"


def parse_header(text: str) -> HeaderFacts:
    """The facts of a header that `render_header` wrote. CRLF line ends are accepted.

    Raises:
        UserError: not an evoengine header, another format, or changed since it was exported.
    """
    if len(text) > MAX_BYTES:
        raise UserError(f"header of {len(text)} characters: an evoengine header has at most {MAX_BYTES}")
    text = text.replace("\r\n", "\n")
    title = text.partition("\n")[0]
    if title != _TITLE:
        raise UserError(f"not a header this evoengine reads: first line is {title[:60]!r}, expected {_TITLE!r}")
    try:
        facts = _read(text)
        expected = render_header(facts)
    except (KeyError, ValueError, TypeError, TemplateError, RecursionError) as error:
        raise UserError(f"header is damaged ({type(error).__name__}: {str(error)[:200]}): export it again") from None
    if expected != text:
        raise UserError(
            f"header was changed after it was exported, {_first_difference(expected, text)}: export it again"
        )
    return facts


def _check(facts: HeaderFacts) -> None:
    for name in (facts.entry, *facts.defines, *facts.scratch, *(dim.extent for dim in facts.grid)):
        if not _IDENTIFIER.fullmatch(name):
            raise TemplateError(f"template {facts.template}: {name!r} is not a C identifier of at most 64 characters")
    grid = []
    for dim in facts.grid:
        extent = facts.problem.get(dim.extent)
        if not isinstance(extent, int) or dim.tile < 1 or dim.times < 1:
            formula = f"ceil({dim.extent}={extent!r} / {dim.tile}) * {dim.times}"
            raise TemplateError(f"template {facts.template}: no grid of {formula}")
        grid.append(-(-extent // dim.tile) * dim.times)
    grid += [1] * (3 - len(grid))
    if facts.grid and tuple(grid) != facts.grid_ctas:
        raise TemplateError(f"template {facts.template}: grid formula gives {grid}, the launch is {facts.grid_ctas}")


def provenance(facts: HeaderFacts) -> Iterator[str]:
    """Where the config comes from, as lines of a comment."""
    if facts.median_us is None:
        yield "// NOT MEASURED: this config was proven correct without a GPU and chosen by an estimate."
    yield "//"
    for field in dataclasses.fields(facts):
        if field.name not in _OUTSIDE_COMMENT and (field.name != "scratch" or facts.scratch):
            yield f"//   {field.name}: {_show(getattr(facts, field.name))}".rstrip()


def _show(value: object) -> str:
    if isinstance(value, str):
        return _plain(value)
    if isinstance(value, Mapping):
        return json.dumps({_plain(k): _plain(v) if isinstance(v, str) else v for k, v in value.items()})
    if isinstance(value, tuple):
        return " ".join(f"{dim.extent}/{dim.tile}" + f"*{dim.times}" * (dim.times > 1) for dim in value) or "none"
    return "none" if value is None else repr(value)


def _plain(text: str) -> str:
    """`text` as it may stand in a C comment: one line, printable ASCII, no comment marks, splices or trigraphs."""
    text = "".join(char if " " <= char <= "~" else " " if char.isspace() else "?" for char in text)
    text = text.replace("\\", "/")
    for mark in ("*/", "/*", "??"):
        while mark in text:
            text = text.replace(mark, " ".join(mark))
    return " ".join(text.split())


def _macros(facts: HeaderFacts) -> Iterator[str]:
    for name, value in facts.defines.items():
        literal = str(value) if value >= 0 else f"({value})"
        yield f"#ifndef {name}"
        yield f"#define {name} {literal}"
        yield f"#elif {name} != {literal}"
        yield f'#error "{name} is already defined, and not as the {value} that was tuned"'
        yield "#endif"
    yield ""


def _launch(facts: HeaderFacts) -> Iterator[str]:
    prefix = facts.entry.upper()
    x, y, z = facts.grid_ctas
    yield f"// Launch of {facts.entry}; on the tuned shape the grid is ({x}, {y}, {z})."
    if facts.smem_bytes > 48 * 1024:
        yield "// Above 49152 B, set cudaFuncAttributeMaxDynamicSharedMemorySize on the kernel before the launch."
    yield f"#define {prefix}_BLOCK_THREADS {facts.block_threads}"
    yield f"#define {prefix}_SMEM_BYTES {facts.smem_bytes}"
    yield f"#define {prefix}_TUNED_GRID_X {x}"
    yield f"#define {prefix}_TUNED_GRID_Y {y}"
    yield f"#define {prefix}_TUNED_GRID_Z {z}"
    if facts.scratch:
        yield "// Scratch on the tuned shape. Counters are 0 before the first launch, and every launch leaves them so."
    for name, count in facts.scratch.items():
        yield f"#define {prefix}_TUNED_{name.upper()}_BYTES {count}"
    if facts.grid:
        yield from _grid_formula(facts, prefix)
    yield ""
    yield f"#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < {facts.min_arch * 10}"
    yield f'#error "{facts.entry} needs sm_{facts.min_arch} or newer"'
    yield "#endif"
    yield "#ifdef __CUDA_ARCH__"
    for number, (condition, limit) in enumerate(_SMEM_LIMITS):
        yield f"#{'el' * bool(number)}if {condition}" if condition else "#else"
        yield f"#if {prefix}_SMEM_BYTES > {limit}"
        yield f'#error "{facts.smem_bytes} B of shared memory a CTA, this architecture allows {limit} B"'
        yield "#endif"
    yield "#endif"
    yield "#endif"


def _grid_formula(facts: HeaderFacts, prefix: str) -> Iterator[str]:
    used = {dim.extent for dim in facts.grid}
    extents = [name for name in facts.problem if name in used]
    for axis, dim in zip("XYZ", facts.grid, strict=False):
        times = f" * {dim.times}" * (dim.times > 1)
        yield f"#define {prefix}_GRID_{axis}({dim.extent}) ((({dim.extent}) + {dim.tile - 1}) / {dim.tile}{times})"
    arguments = ", ".join(f"{prefix}_GRID_{axis}({dim.extent})" for axis, dim in zip("XYZ", facts.grid, strict=False))
    yield "#if defined(__CUDACC__) && !defined(__CUDACC_RTC__)"  # NVRTC refuses host functions
    yield f"static inline dim3 {facts.entry}_grid({', '.join(f'unsigned int {name}' for name in extents)}) {{"
    yield f"  return dim3({arguments});"
    yield "}"
    yield "#endif"


def _read(text: str) -> HeaderFacts:
    written: dict[str, str] = {}
    for key, value in _FACT.findall(text):
        if key in written:
            raise ValueError(f"{key} is given twice")
        written[key] = value
    kinds = {f.name: str(f.type) for f in dataclasses.fields(HeaderFacts) if f.name not in _OUTSIDE_COMMENT}
    unknown = written.keys() - kinds.keys()
    if unknown:
        raise ValueError(f"unknown fact {min(unknown)}")
    written = {"scratch": "{}", **written}
    values: dict[str, Any] = {name: _READERS[kind](written[name]) for name, kind in kinds.items()}
    prefix = written["entry"].upper()

    def launch(name: str) -> int:
        found = re.search(rf"^#define {re.escape(prefix)}_{name} (\d{{1,10}})$", text, re.MULTILINE | re.ASCII)
        if found is None:
            raise ValueError(f"{prefix}_{name} is missing")
        return int(found[1])

    return HeaderFacts(
        **values,
        defines={name: int(value) for name, value in _MACRO.findall(text)},
        grid_ctas=(launch("TUNED_GRID_X"), launch("TUNED_GRID_Y"), launch("TUNED_GRID_Z")),
        block_threads=launch("BLOCK_THREADS"),
        smem_bytes=launch("SMEM_BYTES"),
    )


def _number(text: str) -> float | None:
    if text == "none":
        return None
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{value} is not a number of microseconds or a ratio")
    return value


def _mapping(text: str) -> dict[str, int | float | str | bool]:
    value = json.loads(text)
    if not isinstance(value, dict) or not all(isinstance(item, int | float | str) for item in value.values()):
        raise ValueError("the problem is not a flat object")
    return value


def _grid(text: str) -> tuple[GridDim, ...]:
    def dim(item: str) -> GridDim:
        extent, _, rest = item.partition("/")
        tile, _, times = rest.partition("*")
        return GridDim(extent, int(tile), int(times or 1))

    return () if text == "none" else tuple(dim(item) for item in text.split())


def _bytes(text: str) -> dict[str, int]:
    value = json.loads(text)
    if not isinstance(value, dict) or not all(type(item) is int and item > 0 for item in value.values()):
        raise ValueError("scratch is not names with bytes")
    return value


_READERS: dict[str, Callable[[str], object]] = {
    "str": str,
    "int": int,
    "float | None": _number,
    "Mapping[str, int | float | str | bool]": _mapping,
    "tuple[GridDim, ...]": _grid,
    "Mapping[str, int]": _bytes,
}


def _first_difference(expected: str, found: str) -> str:
    lines = zip(expected.splitlines(), found.splitlines(), strict=False)
    for number, (ours, theirs) in enumerate(lines, start=1):
        if ours != theirs:
            return f"line {number}: {theirs[:60]!r}"
    return "in its length"
