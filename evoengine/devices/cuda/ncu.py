"""Nsight Compute over one candidate: its counters, never its times, which are those of a kernel replayed and patched.

Metric names are those of NVIDIA's Kernel Profiling Guide ("Metrics Reference"); a chip that lacks one goes without.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from evoengine.bottleneck import STALLS, Figures
from evoengine.devices.cuda.bare import Job
from evoengine.devices.cuda.watched import LOG, watch
from evoengine.errors import EvoengineError, UserError

PROGRAM = "ncu"
PROFILE_SECONDS = 180.0
"""Deadline of one profile: some ten replays of a launch and the tool's own start-up take seconds."""
WARM_UP = 2
"""Launches before the one that is profiled: they fill L2, as the windows of a search find it."""

_STALLED = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
METRICS: dict[str, tuple[str, ...]] = {
    "sm_pct": ("sm__throughput.avg.pct_of_peak_sustained_elapsed",),
    "memory_pct": ("gpu__compute_memory_throughput.avg.pct_of_peak_sustained_elapsed",),
    "tensor_pct": (
        "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
        "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active",
    ),
    "issue_pct": ("smsp__issue_active.avg.pct_of_peak_sustained_active",),
    "l1_pct": ("l1tex__throughput.avg.pct_of_peak_sustained_active",),
    "l2_pct": ("lts__throughput.avg.pct_of_peak_sustained_elapsed",),
    "dram_pct": ("gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",),
    "occupancy_pct": ("sm__warps_active.avg.pct_of_peak_sustained_active",),
    "waves": ("launch__waves_per_multiprocessor",),
    "conflicts": ("l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum",),
    "wavefronts": ("l1tex__data_pipe_lsu_wavefronts_mem_shared.sum",),
    **{f"stalled_{reason}": (_STALLED.format(reason),) for reason in STALLS},
}
"""What is asked for, by figure; of several names for one, the first that the chip has counts."""

_NO_PERMISSION = "ERR_NVGPUCTRPERM"


def profile(executable: Path, job: Job) -> tuple[Figures, dict[str, float]]:
    """Figures of one launch of `job`, and every metric they come from.

    Raises:
        UserError: this user may not read the GPU's counters.
        EvoengineError: the profile does not come about.
    """
    wanted = [name for names in METRICS.values() for name in names]
    while True:
        watched = watch(_command(executable, wanted), job, PROFILE_SECONDS)
        said = f"{watched.log}\n{watched.words}"
        if _NO_PERMISSION in said:
            raise UserError(
                f"Nsight Compute may not read this GPU's counters ({_NO_PERMISSION}): run as root, or have the nvidia "
                "module loaded with NVreg_RestrictProfilingToAdminUsers=0"
            )
        metrics = read_metrics(watched.log)
        if metrics:
            return figures(metrics), metrics
        left = [name for name in wanted if not _refused(name, said)]
        if watched.code is None:
            raise EvoengineError(f"Nsight Compute came to no end in {PROFILE_SECONDS:g} s")
        if not left or left == wanted:
            raise EvoengineError(f"Nsight Compute gave no counters: {_complaint(said)}")
        wanted = left


def _command(executable: Path, metrics: Sequence[str]) -> tuple[str, ...]:
    return (
        str(executable),
        *("--metrics", ",".join(metrics)),
        *("--launch-skip", str(WARM_UP), "--launch-count", "1"),
        *("--clock-control", "none"),  # the card's settings are its owner's
        *("--cache-control", "none"),  # L2 as warm as in a search
        *("--target-processes", "application-only"),
        *("--csv", "--page", "raw", "--print-units", "base"),
        *("--log-file", LOG),
    )


def read_metrics(log: str) -> dict[str, float]:
    """The metrics of the last launch in a `--csv --page raw` report; empty where it has none.

    The table is a row of names, a row of units and a row a launch, among lines that begin with ==.
    """
    lines = [line for line in log.splitlines() if line.startswith('"')]
    starts = [index for index, line in enumerate(lines) if line.startswith('"ID"')]
    rows = list(csv.reader(lines[starts[-1] :])) if starts else []
    if len(rows) < 3:
        return {}
    found: dict[str, float] = {}
    for name, text in zip(rows[0], rows[-1], strict=False):
        if "__" not in name:
            continue
        try:
            found[name] = float(text.replace(",", ""))  # thousands are set off
        except ValueError:
            continue  # n/a: this chip counts it in another way
    return found


def figures(metrics: Mapping[str, float]) -> Figures:
    found = {figure: _first(metrics, names) for figure, names in METRICS.items()}
    conflicts, wavefronts = found.pop("conflicts"), found.pop("wavefronts")
    stalls = {reason: value for reason in STALLS if (value := found.pop(f"stalled_{reason}")) is not None}
    share = conflicts / wavefronts if conflicts is not None and wavefronts else None
    return Figures(**found, bank_conflicts=share, stalls=stalls)


def _first(metrics: Mapping[str, float], names: Sequence[str]) -> float | None:
    return next((metrics[name] for name in names if name in metrics), None)


def _refused(metric: str, said: str) -> bool:
    """Whether the tool complains of this metric, by its name with or without what is made of it."""
    base = re.escape(metric.partition(".")[0])
    return re.search(rf"^==(?:ERROR|WARNING)==.*\b{base}\b", said, re.MULTILINE) is not None


def _complaint(said: str) -> str:
    """The line in which the tool, or else the launcher, says what is wrong."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("==ERROR==")]
    return (errors or lines or ["it says nothing"])[-1]
