"""A study's trials as formats of recorded spaces want them: parameters as users write them, times in milliseconds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evoengine.archive.records import Record, StudySpec
from evoengine.errors import UserError
from evoengine.space import Axis, Config
from evoengine.verdict import Measurement, Rejection

Value = int | str


@dataclass(frozen=True, slots=True)
class Times:
    """What a trial took, in milliseconds; `runs` are its windows, a launch each."""

    compilation: float
    validation: float
    benchmark: float
    runs: tuple[float, ...]


def judged(spec: StudySpec, records: Iterable[Record]) -> list[tuple[Record, Measurement | Rejection]]:
    """The trials that have a measurement or were refused; those that wait with an estimate are none of either.

    Raises:
        UserError: nothing was measured.
    """
    found = [(one, one.verdict) for one in records if isinstance(one.verdict, Measurement | Rejection)]
    if not any(isinstance(verdict, Measurement) for _, verdict in found):
        raise UserError(
            f"study {spec.name} holds no measured time, and this format holds nothing but times: resume it on a "
            f"machine with the {spec.device}, or export --format json, which calls an estimate one"
        )
    return found


def choices(axis: Axis) -> Sequence[Value]:
    """An axis's values: words where it has them."""
    return axis.names or axis.choices


def parameters(axes: Iterable[Axis], config: Config) -> dict[str, Value]:
    """A config's value of every axis."""
    values = config.values
    return {axis.name: axis.show(values[axis.name]) if axis.names else values[axis.name] for axis in axes}


def times(record: Record, verdict: Measurement | Rejection) -> Times:
    """Device time alone counts as benchmarking: that of the config's windows and of the control's beside them."""
    build = record.build.build_seconds * 1e3 if record.build is not None else 0.0
    checks = sum(check.seconds for check in verdict.checks) * 1e3
    if isinstance(verdict, Rejection):
        return Times(build, checks, 0.0, ())
    windows = (*verdict.windows_us, *verdict.control_us)
    device = sum(windows) * verdict.launches_per_window * 1e-3
    return Times(build, checks, device, tuple(window * 1e-3 for window in verdict.windows_us))
