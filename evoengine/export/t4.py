"""A study as T4 results 1.0.0, the autotuning community's format (github.com/AutoTuningAssociation/autotuning_schemas).

Times are milliseconds. What the schema leaves open is written so that readers of Kernel Tuner's T4 files find it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from evoengine import __version__
from evoengine.archive.records import Elite, Record, StudySpec
from evoengine.export import trials
from evoengine.verdict import Gate, Measurement, Rejection

SCHEMA = "1.0.0"
INVALIDITY = {
    Gate.STATIC: "constraints",
    Gate.COMPILE: "compile",
    Gate.RESOURCES: "constraints",
    Gate.CORRECTNESS: "correctness",
    Gate.RUNTIME: "runtime",
    Gate.TIMEOUT: "timeout",
}


def render_t4(spec: StudySpec, records: Iterable[Record], elites: Iterable[Elite]) -> str:
    """Every judged trial. `correctness` is 1 where a config was proven right and 0 where it was not.

    Raises:
        UserError: nothing was measured.
    """
    judged = trials.judged(spec, records)
    confirmed = {elite.number: elite for elite in elites}
    environment = next((one.environment for one, _ in reversed(judged) if one.environment), {})
    document = {
        "schema_version": SCHEMA,
        "metadata": _metadata(spec, environment),
        "results": [_result(spec, record, verdict, confirmed.get(record.number)) for record, verdict in judged],
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _metadata(spec: StudySpec, environment: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "timeunit": "milliseconds",
        "hardware": {
            "hardware_description": [{"device_name": spec.device, "arch": spec.arch, "limits": dict(spec.limits)}],
            "operating_system": str(environment.get("platform", "unknown")),
        },
        "environment": {
            "device_query": dict(environment),
            "requirements": [f"{name}=={environment[name]}" for name in ("torch", "numpy") if name in environment],
        },
        "evoengine": {
            "version": __version__,
            "study": spec.name,
            "template": spec.template,
            "template_digest": spec.template_digest,
            "space_digest": spec.space_digest,
            "problem": dict(spec.problem),
            **({"shapes": [dataclasses.asdict(member) for member in spec.members]} if spec.members else {}),
            "toolchain": spec.toolchain,
            "sampler": spec.sampler,
            "seed": spec.seed,
            "command": spec.command,
        },
    }


def _result(spec: StudySpec, record: Record, verdict: Measurement | Rejection, elite: Elite | None) -> dict[str, Any]:
    took = trials.times(record, verdict)
    return {
        "timestamp": record.committed_at or spec.created_at,
        "configuration": trials.parameters(spec.axes, record.config),
        "times": {
            "compilation_time": took.compilation,
            "runtimes": list(took.runs),
            "validation": took.validation,
        },
        "invalidity": INVALIDITY[verdict.gate] if isinstance(verdict, Rejection) else "correct",
        "correctness": int(isinstance(verdict, Measurement)),
        "measurements": _measurements(record, verdict, elite),
        "objectives": ["time"],
    }


def _measurements(record: Record, verdict: Measurement | Rejection, elite: Elite | None) -> list[dict[str, Any]]:
    found: list[tuple[str, float | str, str]] = []
    if isinstance(verdict, Measurement):
        found += [("time", verdict.median_us * 1e-3, "ms"), ("noise", verdict.noise, "")]
        found += [("ratio_to_default", verdict.ratio, "")]
    else:
        found += [("rejected", f"{verdict.gate}: {verdict.reason}", "")]
    if elite is not None:
        found += [("time_confirmed", elite.median_us * 1e-3, "ms"), ("noise_confirmed", elite.noise, "")]
    if record.build is not None:
        resources = record.build.resources
        found += [("registers", resources.registers, ""), ("spill", resources.spill_bytes, "B")]
        found += [("shared_memory", resources.smem_bytes + resources.static_smem_bytes, "B")]
    if record.twin_of is not None:
        found += [("twin_of", record.twin_of, "")]
    return [{"name": name, "value": value, "unit": unit} for name, value, unit in found]
