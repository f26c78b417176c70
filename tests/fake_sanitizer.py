"""A compute-sanitizer that runs nothing: it prints recorded reports, chosen by the tool and the candidate's values.

The reports are those of NVIDIA's Compute Sanitizer User Guide, with this repository's kernels for theirs.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import fake_tools

from evoengine.devices.cuda.bare import JOB, LAUNCHES

BANNER = "========= COMPUTE-SANITIZER\n"
OUT_OF_BOUNDS = """\
========= Invalid __global__ write of size 4 bytes
=========     at evo_axpb+0x1d0
=========     by thread (255,0,0) in block (511,0,0)
=========     Address 0x7f2410080004 is out of bounds
=========     and is 5 bytes after the nearest allocation at 0x7f2410000000 of size 524,288 bytes
=========
========= Invalid __global__ write of size 4 bytes
=========     at evo_axpb+0x1d0
=========     by thread (254,0,0) in block (511,0,0)
=========     Address 0x7f2410080008 is out of bounds
=========     and is 9 bytes after the nearest allocation at 0x7f2410000000 of size 524,288 bytes
=========
========= ERROR SUMMARY: 2 errors
"""
MISALIGNED = """\
========= Invalid __global__ write of size 8 bytes
=========     at evo_axpb+0x60
=========     by thread (0,0,0) in block (0,0,0)
=========     Access to 0x7f2410000004 is misaligned
=========
========= ERROR SUMMARY: 1 error
"""
RACE = """\
========= Error: Race reported between Write access at evo_unseen+0x90
=========     and Read access at evo_unseen+0x100 [508 hazards]
=========     and Read access at evo_unseen+0x120 [4 hazards]
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
RACE_WARNING = """\
========= Warning: Race reported between Read access at evo_unseen+0x570
=========     and Write access at evo_unseen+0x5a0 [32 hazards]
=========
========= RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)
"""
UNINITIALISED = """\
========= Uninitialized __global__ memory read of size 4 bytes
=========     at evo_unseen+0x70
=========     by thread (31,0,0) in block (1,0,0)
=========     Address 0x7f24100000fc
=========
========= ERROR SUMMARY: 1 error
"""
DIVERGENT = """\
========= Barrier error detected. Divergent thread(s) in block.
=========     at evo_unseen+0x2c8
=========     by thread (32,0,0) in block (0,0,0)
=========
========= ERROR SUMMARY: 32 errors
"""
CLEAN = "========= ERROR SUMMARY: 0 errors\n"
NO_RACE = "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
INTERNAL = "========= Internal Sanitizer Error: The Sanitizer encountered an error while launching\n"
OVERFLOW = (
    "========= Warning: Detected overflow of tracked cuda::barrier structures. Results might be incorrect. Try using "
    "--num-cuda-barriers to fix the issue\n"
)

FINDINGS = {"memcheck": OUT_OF_BOUNDS, "initcheck": UNINITIALISED, "racecheck": RACE, "synccheck": DIVERGENT}
TENSORS = [
    {"name": "x", "address": 0x7F2410200000, "bytes": 524288},
    {"name": "y", "address": 0x7F2410000000, "bytes": 524288},
]


def main(options: list[str], folder: Path) -> int:
    """`options` are compute-sanitizer's own. The job's SAYS is the index of the tool that finds something, or -1.

    What it was asked is added to the file `asked` beside the cubin.
    """
    tool, log = options[options.index("--tool") + 1], Path(options[options.index("--log-file") + 1])
    job = json.loads((folder / JOB).read_text())
    with (Path(job["cubin"]).parent / "asked").open("a") as file:
        file.write(json.dumps({"tool": tool, "options": options, "problems": job["problems"]}) + "\n")
    if job["values"].get("HANGS"):
        time.sleep(600)
    says = job["values"].get("SAYS", 0)
    found = says >= 0 and list(FINDINGS)[says] == tool
    told: list[dict[str, object]] = [
        {"problem": f"P{index}", "tensors": TENSORS} for index in range(len(job["problems"]))
    ]
    if not found:
        told.append({"done": True})
    (folder / LAUNCHES).write_text("".join(json.dumps(one) + "\n" for one in told))
    log.write_text(BANNER + (FINDINGS[tool] if found else NO_RACE if tool == "racecheck" else CLEAN))
    return int(found)


def install(folder: Path) -> Path:
    """An executable `compute-sanitizer` in `folder`, to be put on PATH."""
    return fake_tools.install(folder, "compute-sanitizer", "fake_sanitizer")
