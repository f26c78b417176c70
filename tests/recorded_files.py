"""Small recorded files in every format, made by hand: what the public ones look like, in a few lines."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Row = tuple[Mapping[str, Any], Any]
"""Parameters of a config, and its time or the name of what went wrong."""

ROWS: list[Row] = [
    ({"block": block, "unroll": unroll, "pad": pad, "version": 3}, time)
    for (block, unroll, pad), time in {
        (32, 1, 0): 4.0,
        (32, 1, 1): 3.5,
        (32, 2, 0): 3.0,
        (32, 2, 1): "RuntimeFailedConfig",
        (64, 1, 0): 2.0,
        (64, 1, 1): 2.5,
        (64, 2, 0): 1.0,
        (64, 2, 1): 1.5,
        (128, 1, 0): "CompilationFailedConfig",
        (128, 2, 0): 1.04,
        (128, 2, 1): 8.0,
    }.items()
]
"""Eleven of twelve configs, `version` is constant, two fail, the optimum is 1 ms and another is within 5 % of it."""


def t4(rows: Iterable[Row] = ROWS, *, unit: str = "", **changes: Any) -> dict[str, Any]:
    """A T4 document; `changes` replace top-level members, `unit` is that of every measurement."""
    reasons = {"RuntimeFailedConfig": "runtime", "CompilationFailedConfig": "compile", "InvalidConfig": "constraints"}
    results = [
        {
            "timestamp": "2023-12-22 09:53:48.691683+00:00",
            "configuration": dict(values),
            "times": {"compilation": 1096.0, "runtimes": [value] * 3 if isinstance(value, float) else []},
            "invalidity": reasons.get(value, "correct") if isinstance(value, str) else "correct",
            "correctness": int(not isinstance(value, str)),
            "measurements": [{"name": "time", "value": value, "unit": unit}],
            "objectives": ["time"],
        }
        for values, value in rows
    ]
    return {"metadata": {"timeunit": "miliseconds"}, "results": results, "schema_version": "1.0.0", **changes}


def cachefile(rows: Iterable[Row] = ROWS, *, closed: bool = True, **changes: Any) -> str:
    """A Kernel Tuner cachefile as it is written: one config a line; left open, it ends in a comma."""
    rows = list(rows)
    keys = list(rows[0][0])
    head = {
        "device_name": "Some GPU",
        "kernel_name": "saxpy",
        "problem_size": [1024, 1],
        "tune_params_keys": keys,
        "tune_params": {key: sorted({values[key] for values, _ in rows}, key=str) for key in keys},
        "objective": "time",
        **changes,
    }
    lines = [
        f'"{",".join(str(value) for value in values.values())}": '
        + json.dumps({**values, "time": time, "times": [time] * 3, "GFLOP/s": 1000.0, "timestamp": "2025-04-06"})
        for values, time in rows
    ]
    text = json.dumps(head, indent=0)[:-2] + ',\n"cache": {\n' + ",\n".join(lines)
    return text + ("}\n}" if closed else ",")


def write(path: Path, content: object) -> Path:
    """`content` (JSON unless it is text already) as a file, gzipped where the name says so."""
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path
