"""A folder of CUDA becomes a compile command and a launch."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from evoengine.errors import UserError
from evoengine.problem import Problem
from evoengine.space import Values

if TYPE_CHECKING:  # the nouns need only the standard library at run time
    from evoengine.dtypes import Arrays, References

SOURCE_SUFFIXES = (".cu", ".cuh", ".h", ".py")


@dataclass(frozen=True, slots=True)
class Launch:
    """How a kernel is started: grid and block in CTAs and threads, dynamic shared memory in bytes a CTA.

    `min_ctas` is what the build promises in `__launch_bounds__`: CTAs that shall fit on one SM together.
    """

    grid: tuple[int, int, int]
    block: int
    smem_bytes: int
    min_ctas: int = 1

    @property
    def ctas(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A device buffer that the kernel reads or writes, contiguous, last axis fastest.

    dtype is fp16, bf16 or fp32, for scratch also int32. Scratch is what CTAs tell each other inside a launch, as large
    as the most demanding config of the problem needs, since all configs of a problem get the same buffer. int32 scratch
    is for counters: zero before the first launch, and again at the end of each, which is the kernel's duty. Scratch of
    another dtype holds anything, in the first checked launch NaN: a kernel reads there only what the same launch has
    written.
    """

    name: str
    role: Literal["input", "output", "scratch"]
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Argument:
    """One kernel parameter, in declaration order: a tensor's address by name, or a scalar."""

    kind: Literal["tensor", "int32", "float32"]
    value: str | int | float


@dataclass(frozen=True, slots=True)
class InputKind:
    """A way to draw inputs, for the full gate: what `draw` gives for a problem and a seed, as `inputs` does.

    Outputs named in `exact` have but one right answer on such inputs: the reference rounded to their dtype.
    """

    name: str
    draw: Callable[[Any, int], Arrays]
    exact: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FullCheck:
    """One more input set of the full gate; with `races` it is launched as often as the timed problem."""

    kind: InputKind
    problem: Problem
    races: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """What one CTA does, for the latency estimate: an average CTA where the mask makes them unequal."""

    tensor_flops: float
    exponentials: float
    l2_bytes: float
    smem_bytes: float
    steps: float
    """Trips through the main loop, each at least one barrier and one dependent chain long."""
    compute_warps: int
    """Warps that compute, without those that only load."""
    warpgroup_mma: bool = False
    """By Hopper's wgmma, which has the whole tensor rate; mma.sync reaches a part of it there."""
    dedicated_loads: bool = False
    """Warps of their own load: what copying takes is no part of the computing warps' time."""
    loads_ahead: float = 1.0
    """Trips for which data are on their way at once."""
    copies: float = 0.0
    """Copy instructions that one loading warp issues for the main loop, each for 512 bytes."""
    slow_copies: float = 0.0
    """Those of them that take a loop with a bound check each, as at ragged ends."""
    merge_bytes: float = 0.0
    """Partial results that warps, or CTAs, leave for each other and one of them merges."""
    round_trips: float = 0.0
    """Times that a CTA waits for L2 after its main loop, as for what other CTAs have written."""
    registers: int = 0
    """Registers a thread before compiling: accumulators, fragments, addresses; the build knows better."""


class TemplateModule(Protocol):
    """What `template.py` in a template folder defines. Arrays are numpy; values are already rounded to the dtype.

    It may import modules beside it (`from .checks import check_problems`), at its top: another template of the same
    name may be loaded later.

    For exported headers it may also define `grid(values)`, for x, y and z (field of the problem, tile, times):
    ceil(field / tile) * times CTAs, and 1 for those that it leaves out; and `scratch(values, problem)`, bytes of each
    scratch tensor that this config uses. For the full gate, which finalists meet, it may define
    `full_checks(values, problem)`: FullChecks that the same cubin must also pass, beside those every candidate has.
    """

    ENTRY: str
    """Name of the one `extern "C" __global__` function in kernel.cu."""
    PROBLEM: type[Problem]

    def defines(self, values: Values, problem: Problem) -> dict[str, int]:
        """Every macro of one build, without `-D`: axes, problem axes and EVO_SMEM_BYTES."""
        ...

    def launch(self, values: Values, problem: Problem) -> Launch: ...

    def tensors(self, problem: Problem) -> Sequence[Tensor]: ...

    def arguments(self, values: Values, problem: Problem) -> Sequence[Argument]: ...

    def inputs(self, problem: Problem, seed: int) -> Arrays:
        """One random input set: float32 arrays whose values the tensors' dtypes hold exactly."""
        ...

    def reference(self, problem: Problem, inputs: Arrays) -> References:
        """The truth in float64."""
        ...

    def baseline(self, problem: Problem, inputs: Arrays) -> Arrays:
        """The obvious implementation in the tensors' own precision: what a candidate's error is held against."""
        ...

    def check_problems(self, values: Values, problem: Problem) -> Sequence[Problem]:
        """Problems other than `problem` that the same cubin must also solve (ragged tails, GQA, seq_q != seq_k)."""
        ...

    def small_problems(self, values: Values, problem: Problem) -> Sequence[Problem]:
        """Problems small enough for the interpreter that reach every branch of this config's cubin."""
        ...

    def work(self, values: Values, problem: Problem) -> Work: ...


def full_checks(module: TemplateModule, values: Values, problem: Problem) -> tuple[FullCheck, ...]:
    """What the template adds to the full gate; nothing where it does not say."""
    member = getattr(module, "full_checks", None)
    return tuple(member(values, problem)) if member else ()


@dataclass(frozen=True)
class Template:
    """A template folder: `kernel.cu` (the only translation unit), its headers, and `template.py`."""

    folder: Path
    module: TemplateModule

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def kernel(self) -> Path:
        return self.folder / "kernel.cu"

    @cached_property
    def sources(self) -> Mapping[str, bytes]:
        """Every file that a build or a launch depends on, by name and sorted, as it was when first asked for.

        Digests, builds and exports are all of these bytes: an edit meanwhile is for the next run.
        """
        paths = sorted(path for path in self.folder.iterdir() if path.suffix in SOURCE_SUFFIXES)
        return {path.name: path.read_bytes() for path in paths}

    @property
    def device_sources(self) -> Mapping[str, bytes]:
        """Those of them that are CUDA: all that a compile sees."""
        return {name: content for name, content in self.sources.items() if not name.endswith(".py")}

    @cached_property
    def digest(self) -> str:
        """16 hex digits over names and contents of all sources."""
        return _digest(self.sources)

    @cached_property
    def device_digest(self) -> str:
        """16 hex digits over the CUDA sources alone: what a cubin depends on."""
        return _digest(self.device_sources)


def _digest(sources: Mapping[str, bytes]) -> str:
    hasher = hashlib.sha256()
    for name, content in sources.items():
        hasher.update(f"{name}:{len(content)}:".encode() + content)
    return hasher.hexdigest()[:16]


def load_template(folder: Path) -> Template:
    """Load a template folder. Its template.py is code that runs: load only folders you trust.

    Raises:
        UserError: the folder or one of its two files is missing, or template.py does not run or lacks a member.
    """
    folder = folder.resolve()
    for name in ("kernel.cu", "template.py"):
        if not (folder / name).is_file():
            raise UserError(f"template {folder} has no {name}: a template folder needs kernel.cu and template.py")
    return Template(folder, cast(TemplateModule, _run(folder / "template.py")))


def _run(path: Path) -> ModuleType:
    name = f"evoengine_template_{path.parent.name}"
    for old in [other for other in sys.modules if other.startswith(f"{name}.")]:
        del sys.modules[old]  # another folder's of the same name, or what they were before an edit
    # With a search location it is a package: template.py may take what is beside it, as in `from .checks import ...`.
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=[str(path.parent)])
    assert spec is not None and spec.loader is not None, "a .py path always has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while they are being defined
    importlib.invalidate_caches()  # a module beside it may be younger than the finder's listing of the folder
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"template {path} does not run: {type(error).__name__}: {error}") from error
    members = [member for member in vars(TemplateModule) if not member.startswith("_")]
    missing = [member for member in (*members, "ENTRY", "PROBLEM") if not hasattr(module, member)]
    if missing:
        raise UserError(f"template {path} lacks {', '.join(sorted(missing))}")
    return module


def shipped(kind: Literal["kernel_templates", "search_spaces"]) -> Path:
    """The folder that travels with evoengine: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent
    return next(path for path in (package / kind, package.parent / kind) if path.is_dir())
