"""studies/h200/trust.json: one JSON document, a section for each proof, each with its command and environment."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evoengine import __version__, oracle
from evoengine.devices import cuda
from evoengine.devices.cuda.nvml import Nvml
from evoengine.devices.cuda.probe import find_uuid
from evoengine.hardware import DeviceLimits


def this_card(limits: DeviceLimits) -> dict[str, Any]:
    """What a number must share with this run to stay in the document: the model of GPU 0 and its driver."""
    return {"gpu": limits.name, "driver": Nvml(find_uuid() or "").settings().get("driver")}


def judge_digest() -> str:
    """Of evoengine's code that proves and times on a card: what it said before a change of it is another judge's."""
    folder = Path(cuda.__file__).parent
    hasher = hashlib.sha256()
    for path in (*sorted(folder.rglob("*.py")), Path(oracle.__file__)):
        hasher.update(path.name.encode() + path.read_bytes())
    return hasher.hexdigest()[:16]


def kept_section(path: Path, name: str, setting: Mapping[str, Any]) -> dict[str, Any]:
    """The section that an earlier run in this `setting` has left; empty where there is none."""
    found: dict[str, Any] = json.loads(path.read_text()).get(name, {}) if path.exists() else {}
    return found if found and all(found["environment"].get(key) == value for key, value in setting.items()) else {}


def put_section(path: Path, name: str, section: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
    """Write `section` under `name`, in place of an earlier one; the other sections stay as they are.

    `environment` is what the section was measured with: device, driver, toolchain, source digest. The command is
    recorded with the file's name alone and without a database's address: folders and hosts are the machine's own
    affair, a password anybody's but a reader's.
    """
    arguments = ["URL" if "://" in one else path.name if one == str(path) else one for one in sys.argv[1:]]
    document = json.loads(path.read_text()) if path.exists() else {}
    document[name] = {
        "command": shlex.join(["python", "-m", f"benchmarks.trust.{name}", *arguments]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "evoengine": __version__,
        "environment": dict(environment),
        **section,
    }
    write_document(path, document, sort_keys=True)


def write_document(path: Path, document: Mapping[str, Any], *, sort_keys: bool = False) -> None:
    """Write a JSON file whole: a run that is cut off leaves the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".new")
    scratch.write_text(json.dumps(document, indent=1, sort_keys=sort_keys) + "\n")
    os.replace(scratch, path)
