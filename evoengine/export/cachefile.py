"""A study as a Kernel Tuner cachefile: what its simulation mode, its dashboard and the benchmark hub's tools read.

The form is that of Kernel Tuner's cache schema 1.1.0; a failed config has the name of its error class both as `time`,
which that schema and older readers want, and as `__error__`, which newer ones do. Times are milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from evoengine import __version__
from evoengine.archive.records import Record, StudySpec
from evoengine.export import trials
from evoengine.verdict import Gate, Measurement, Rejection

SCHEMA = "1.1.0"
INVALID, NOT_COMPILED, FAILED = "InvalidConfig", "CompilationFailedConfig", "RuntimeFailedConfig"


def render_cachefile(spec: StudySpec, entry: str, size: Iterable[int], records: Iterable[Record]) -> str:
    """Every judged trial, one a line, the file closed. `entry` is the kernel's name, `size` the problem's.

    What proposing a config took was not recorded: `strategy_time` and `framework_time` are 0. An axis lists the values
    that were tried: simulation mode enumerates their product.

    Raises:
        UserError: nothing was measured.
    """
    judged = trials.judged(spec, records)
    configs = [trials.parameters(spec.axes, record.config) for record, _ in judged]
    head = {
        "schema_version": SCHEMA,
        "device_name": spec.device,
        "kernel_name": entry,
        "problem_size": list(size),
        "tune_params_keys": [axis.name for axis in spec.axes],
        "tune_params": {
            axis.name: [one for one in trials.choices(axis) if any(one == config[axis.name] for config in configs)]
            for axis in spec.axes
        },
        "objective": "time",
        "evoengine": {
            "version": __version__,
            "study": spec.name,
            "problem": dict(spec.problem),
            "arch": spec.arch,
            "toolchain": spec.toolchain,
            "template_digest": spec.template_digest,
            "space_digest": spec.space_digest,
            "command": spec.command,
        },
    }
    lines = [
        f"{json.dumps(','.join(map(str, config.values())))}: "
        + json.dumps({**config, **_entry(spec, record, verdict)}, allow_nan=False)
        for config, (record, verdict) in zip(configs, judged, strict=True)
    ]
    opened = json.dumps(head, allow_nan=False)[:-1] + ',\n"cache": {\n'
    return opened + ",\n".join(lines) + "}\n}"  # Kernel Tuner takes a file that ends otherwise for one still open


def _entry(spec: StudySpec, record: Record, verdict: Measurement | Rejection) -> dict[str, Any]:
    took = trials.times(record, verdict)
    spent = {
        "compile_time": took.compilation,
        "verification_time": took.validation,
        "benchmark_time": took.benchmark,
        "strategy_time": 0.0,
        "framework_time": 0.0,
        "timestamp": record.committed_at or spec.created_at,
    }
    if isinstance(verdict, Measurement):
        return {"time": verdict.median_us * 1e-3, "times": list(took.runs), **spent}
    name = _error(record, verdict)
    return {"time": name, "__error__": name, "reason": f"{verdict.gate}: {verdict.reason}", **spent}


def _error(record: Record, verdict: Rejection) -> str:
    if verdict.gate in (Gate.STATIC, Gate.RESOURCES):
        return INVALID
    if verdict.gate is Gate.COMPILE or record.build is None:  # or a compile that did not end in time
        return NOT_COMPILED
    return FAILED
