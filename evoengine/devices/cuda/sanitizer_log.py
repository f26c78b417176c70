"""What compute-sanitizer prints, as findings. Pure text work.

A report is a title and details, each line behind a prefix (NVIDIA, Compute Sanitizer User Guide, "Understanding
Memcheck Errors", "Understanding Racecheck Analysis Reports", "Understanding Synccheck Reports"; the words before an
address have changed over the releases):

    ========= Invalid __global__ write of size 4 bytes
    =========     at evo_axpb+0x60
    =========     by thread (255,0,0) in block (4,0,0)
    =========     Address 0x7f6510c02000 is out of bounds

A racecheck title names the first access itself, and how bad it is: `Error:` or `Warning:`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from evoengine.devices.cuda.bare import Launched, Placed

PREFIX = "========="
FAR_BYTES = 1 << 30
"""An address further than this from every tensor belongs to none: it is a wild one."""

_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")
_ADDRESS = re.compile(r"(?:Address|Access (?:at|to)) (0x[0-9a-f]+)(.*)")
_NO_FINDING = ("COMPUTE-SANITIZER", "Program hit", "Target application", "Saved host backtrace", "Leaked")


@dataclass(frozen=True, slots=True)
class Finding:
    """One report. `where` is the kernel and the offset of the instruction, `thread` who executed it.

    `address` is what it accessed, with what was wrong about that, and where it is from the kernel's tensors.
    """

    severity: Literal["error", "warning"]
    title: str
    where: str = ""
    thread: str = ""
    address: str = ""

    @property
    def line(self) -> str:
        located = f"{self.title} at {self.where}" if self.where else self.title
        return ", ".join(filter(None, (located, self.address)))


@dataclass(frozen=True, slots=True)
class Log:
    """Findings in the order of the log, those that differ in thread and address alone once; `total` counts all.

    `total` is None where the tool did not come to its summary. `trouble` is what it said of itself.
    """

    findings: tuple[Finding, ...]
    total: int | None
    trouble: str = ""


def parse(text: str, launched: Sequence[Launched] = ()) -> Log:
    """The log of any of the four tools. `launched` is what ran under it, whose tensors the addresses may be of."""
    findings: dict[tuple[str, str], Finding] = {}
    total: int | None = None
    trouble = ""
    for title, details in _reports(text):
        summary = _SUMMARY.match(title)
        if summary is not None:
            total = int(summary[1]) if total is None else total  # a second one counts what was not printed
            continue
        severity, _, bare = title.partition(": ") if title.startswith(("Error: ", "Warning: ")) else ("", "", title)
        if title.startswith(_NO_FINDING):
            continue
        if details or "Race reported" in title:
            one = _finding("warning" if severity == "Warning" else "error", bare, details, launched)
            findings.setdefault((one.title, one.where), one)
        elif severity == "Error" or "Results might be incorrect" in title or title.startswith("Internal"):
            trouble = trouble or bare
    return Log(tuple(findings.values()), total, trouble)


def _reports(text: str) -> list[tuple[str, list[str]]]:
    reports: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if not line.startswith(PREFIX):
            continue
        content = line.removeprefix(PREFIX)
        if not content.strip():
            continue
        if content.startswith("  ") and reports:
            reports[-1][1].append(content.strip())
        else:
            reports.append((content.strip().rstrip("."), []))
    return reports


def _finding(
    severity: Literal["error", "warning"], title: str, details: Sequence[str], launched: Sequence[Launched]
) -> Finding:
    where = thread = address = ""
    for detail in details:
        found = _ADDRESS.match(detail)
        if detail.startswith("at ") and not where:
            where = detail.removeprefix("at ")
        elif detail.startswith("by ") and not thread:
            thread = detail.removeprefix("by ")
        elif found is not None and not address:
            place = relation(int(found[1], 16), launched)
            address = f"address {found[1]}{found[2]}{place and f', {place}'}"
        elif detail.startswith("and ") and "access at" in detail and " and " not in title:
            title = f"{title} {detail}"
    return Finding(severity, title, where, thread, address)


def relation(address: int, launched: Sequence[Launched]) -> str:
    """Where an address is from the nearest tensor; empty where none is near."""
    tensors = [(one.problem, tensor) for one in launched for tensor in one.tensors]
    problem, nearest = min(tensors, key=lambda one: _distance(address, one[1]), default=("", None))
    if nearest is None or _distance(address, nearest) > FAR_BYTES:
        return ""
    about = f"{nearest.name} of {problem} ({nearest.bytes:,} B)"
    offset = address - nearest.address
    if offset < 0:
        return f"{-offset:,} B before {about}"
    if offset >= nearest.bytes:
        return f"{offset - nearest.bytes:,} B past the end of {about}"
    return f"byte {offset:,} of {about}"


def _distance(address: int, tensor: Placed) -> int:
    return max(tensor.address - address, address - (tensor.address + tensor.bytes - 1), 0)
