"""What the engine and its GPU worker say to each other: dataclasses that travel as JSON, never as pickles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from evoengine.devices.cuda.results import BaselineTiming, Deviation
from evoengine.problem import Problem
from evoengine.verdict import Check, Gate, Measurement, Rejection

Phase = Literal["start", "reference", "prepare", "check", "time"]
"""What the worker is busy with; each phase has its own deadline."""

SDPA = ("sdpa", "sdpa_flash", "sdpa_efficient", "sdpa_cudnn", "sdpa_math")
"""PyTorch's own choice of backend, and every backend: the baselines of a search, ready within a second."""
COMPETITORS = (*SDPA, "flex", "triton", "flash_attn_4", "flashinfer")
"""Everything a comparison knows; compiling and tuning the others takes a minute a shape."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A kernel on trial, as the worker needs it."""

    name: str
    values: Mapping[str, int]
    cubin: str
    cubin_sha256: str


@dataclass(frozen=True, slots=True)
class Open:
    """First request: which template and problem. The template is loaded by path, its code runs in the worker."""

    template: str
    problem: Mapping[str, int | float | str | bool]
    seed: int
    scratch: str


@dataclass(frozen=True, slots=True)
class SetUp:
    """Prove and time the control, with `baselines` those too.

    A respawned worker and a resumed study's are given `reference_us`, so that values stay comparable.
    """

    control: Subject
    reference_us: float | None
    baselines: bool


@dataclass(frozen=True, slots=True)
class Judge:
    """Prove and time one candidate; `best_us` is what it has to come within a factor of."""

    subject: Subject
    best_us: float


@dataclass(frozen=True, slots=True)
class RunFinals:
    """Time the control, the finalists and the named competitors in rounds of random order."""

    control: Subject
    finalists: tuple[Subject, ...]
    seed: int
    competitors: tuple[str, ...] = SDPA


Request = Open | SetUp | Judge | RunFinals


@dataclass(frozen=True, slots=True)
class Hello:
    """The worker's first message: which card it found. It has created no context yet."""

    uuid: str
    name: str


@dataclass(frozen=True, slots=True)
class Working:
    """The worker entered a phase; `about` names the finalist or competitor it concerns, where there is one."""

    phase: Phase
    about: str = ""


@dataclass(frozen=True, slots=True)
class Opened:
    """The template is loaded and the card is ready; `environment` is what was found."""

    environment: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Ready:
    """The control is proven and timed: `reference_us` is its median, `noise` its windows' relative deviation."""

    reference_us: float
    baselines: tuple[BaselineTiming, ...]
    unavailable: Mapping[str, str]
    noise: float


@dataclass(frozen=True, slots=True)
class Judged:
    """`stray` means that the candidate wrote where it must not: nothing in this process can be trusted any more."""

    verdict: Measurement | Rejection
    stray: bool = False


@dataclass(frozen=True, slots=True)
class Lap:
    """All windows of one subject of the final run, warm and cold, and its error after them."""

    name: str
    windows_us: tuple[float, ...]
    launches_per_window: int
    checks: tuple[Check, ...] = ()
    deviation: Deviation | None = None
    about: str = ""
    cold_us: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Raced:
    """The final run: the control first, then finalists in request order, then baselines, then an empty kernel."""

    control: Lap
    finalists: tuple[Lap, ...]
    baselines: tuple[Lap, ...]
    floor: Lap
    unavailable: Mapping[str, str]
    clocks: Mapping[str, Any]
    cold_copies: int = 0


@dataclass(frozen=True, slots=True)
class Dropped:
    """A finalist failed. The run ends here: what it did to this process could show in the others' numbers."""

    name: str
    rejection: Rejection


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that is no verdict.

    `cuda`: an error that leaves the context unusable; the worker exits. `tainted`: the control itself no longer
    gives its proven output in this process. `template`: template code failed or its default is wrong. `user`: the
    user asked for something impossible. `bug`: evoengine is broken; `detail` is the traceback.
    """

    kind: Literal["cuda", "tainted", "template", "user", "bug"]
    text: str
    detail: str = ""


Reply = Hello | Working | Opened | Ready | Judged | Raced | Dropped | Trouble


def encode(message: Request | Reply) -> bytes:
    return json.dumps({"message": type(message).__name__, **asdict(message)}).encode()


def decode_request(data: bytes) -> Request:
    name, fields = _fields(data)
    if name == "Open":
        return Open(**fields)
    if name == "SetUp":
        return SetUp(Subject(**fields["control"]), fields["reference_us"], fields["baselines"])
    if name == "Judge":
        return Judge(Subject(**fields["subject"]), fields["best_us"])
    assert name == "RunFinals", name
    finalists = tuple(Subject(**subject) for subject in fields["finalists"])
    return RunFinals(Subject(**fields["control"]), finalists, fields["seed"], tuple(fields["competitors"]))


def decode_reply(data: bytes) -> Reply:
    name, fields = _fields(data)
    plain: dict[str, type[Hello | Working | Opened | Trouble]] = {
        "Hello": Hello,
        "Working": Working,
        "Opened": Opened,
        "Trouble": Trouble,
    }
    if name in plain:
        return plain[name](**fields)
    if name == "Ready":
        baselines = tuple(BaselineTiming(**_tuples(baseline)) for baseline in fields["baselines"])
        return Ready(fields["reference_us"], baselines, fields["unavailable"], fields["noise"])
    if name == "Judged":
        verdict = fields["verdict"]
        return Judged(_rejection(verdict) if "gate" in verdict else _measurement(verdict), fields["stray"])
    if name == "Dropped":
        return Dropped(fields["name"], _rejection(fields["rejection"]))
    assert name == "Raced", name
    return Raced(
        _lap(fields["control"]),
        tuple(_lap(lap) for lap in fields["finalists"]),
        tuple(_lap(lap) for lap in fields["baselines"]),
        _lap(fields["floor"]),
        fields["unavailable"],
        fields["clocks"],
        fields["cold_copies"],
    )


def make_problem(problem_type: type[Problem], fields: Mapping[str, int | float | str | bool]) -> Problem:
    """The inverse of `problem_fields`."""
    return problem_type(**fields)


def _fields(data: bytes) -> tuple[str, dict[str, Any]]:
    fields = json.loads(data)
    return fields.pop("message"), fields


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def _checks(fields: list[dict[str, Any]]) -> tuple[Check, ...]:
    return tuple(Check(**check) for check in fields)


def _measurement(fields: dict[str, Any]) -> Measurement:
    return Measurement(**{**_tuples(fields), "checks": _checks(fields["checks"])})


def _rejection(fields: dict[str, Any]) -> Rejection:
    return Rejection(Gate(fields["gate"]), fields["reason"], fields["evidence"], _checks(fields["checks"]))


def _lap(fields: dict[str, Any]) -> Lap:
    deviation = None if fields["deviation"] is None else Deviation(**fields["deviation"])
    return Lap(**{**_tuples(fields), "checks": _checks(fields["checks"]), "deviation": deviation})
