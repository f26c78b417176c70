"""An ncu that runs nothing: it prints a table as `ncu --csv --page raw` does, for the metrics it was asked for.

What it says is MODE in the job's values, see MODES. The figures are made up, but consistent.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import fake_tools

from evoengine.bottleneck import STALLS
from evoengine.devices.cuda.bare import JOB

MODES = ("counts", "lacks two metrics", "no permission", "finds no kernel", "counts nothing")
LACKED = ("sm__pipe_tensor_cycles_active", "smsp__average_warps_issue_stalled_gmma_per_issue_active")
"""Base names, which is how the tool calls what it does not know."""
VALUES = {
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": ("%", "41.27"),
    "gpu__compute_memory_throughput.avg.pct_of_peak_sustained_elapsed": ("%", "52.81"),
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active": ("%", "38.50"),
    "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active": ("%", "37.25"),
    "smsp__issue_active.avg.pct_of_peak_sustained_active": ("%", "29.13"),
    "l1tex__throughput.avg.pct_of_peak_sustained_active": ("%", "61.02"),
    "lts__throughput.avg.pct_of_peak_sustained_elapsed": ("%", "17.44"),
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed": ("%", "0.31"),
    "sm__warps_active.avg.pct_of_peak_sustained_active": ("%", "12.48"),
    "launch__waves_per_multiprocessor": ("", "0.97"),
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum": ("", "1,024"),
    "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum": ("", "204,800"),
    **{f"smsp__average_warps_issue_stalled_{reason}_per_issue_active.ratio": ("inst", "0.10") for reason in STALLS},
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio": ("inst", "2.55"),
    "smsp__average_warps_issue_stalled_selected_per_issue_active.ratio": ("inst", "1.00"),
    "smsp__average_warps_issue_stalled_gmma_per_issue_active.ratio": ("inst", "n/a"),
}
FIXED = {
    "ID": "0", "Process ID": "4711", "Process Name": "python3.11", "Host Name": "127.0.0.1", "Kernel Name": "evo_axpb",
    "Context": "1", "Stream": "7", "Block Size": "(256, 1, 1)", "Grid Size": "(512, 1, 1)", "Device": "0", "CC": "8.9",
}  # fmt: skip


def table(metrics: list[str]) -> str:
    """Names, units, one launch, every cell in quotes, between the tool's own lines."""
    text = io.StringIO()
    rows = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    rows.writerow([*FIXED, *metrics])
    rows.writerow([*("" for _ in FIXED), *(VALUES[name][0] for name in metrics)])
    rows.writerow([*FIXED.values(), *(VALUES[name][1] for name in metrics)])
    return (
        "==PROF== Connected to process 4711 (/usr/bin/python3.11)\n"
        '==PROF== Profiling "evo_axpb": 0%....50%....100% - 9 passes\n'
        "==PROF== Disconnected from process 4711\n" + text.getvalue()
    )


def main(options: list[str], folder: Path) -> int:
    job = json.loads((folder / JOB).read_text())
    with (Path(sys.argv[0]).parent / "asked").open("a") as file:
        file.write(json.dumps({"options": options, **job}) + "\n")
    log = Path(options[options.index("--log-file") + 1])
    metrics = options[options.index("--metrics") + 1].split(",")
    mode = MODES[job["values"].get("MODE", 0)]
    if mode == "no permission":
        log.write_text(
            "==PROF== Connected to process 4711 (/usr/bin/python3.11)\n"
            "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance Counters "
            "on the target device 0.\n"
        )
        return 1
    if mode == "finds no kernel":
        log.write_text(
            "==PROF== Connected to process 4711 (/usr/bin/python3.11)\n==WARNING== No kernels were profiled.\n"
        )
        return 0
    lost = [name.partition(".")[0] for name in metrics]
    if mode == "lacks two metrics":
        lost = [name for name in lost if name in LACKED][:1]
    if mode in ("lacks two metrics", "counts nothing") and lost:
        complaints = "".join(f"==ERROR== Failed to find metric {name}\n" for name in lost)
        log.write_text(f"==PROF== Connected to process 4711\n{complaints}")
        return 1
    log.write_text(table(metrics))
    return 0


def install(folder: Path) -> Path:
    """An executable `ncu` in `folder`, to be put on PATH."""
    return fake_tools.install(folder, "ncu", "fake_ncu")
