"""One planted bug: an edit of the shipped attention template, and where it must be caught."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from evoengine.errors import TemplateError
from evoengine.hardware import CARDS
from evoengine.problem import AttentionProblem
from evoengine.space import Values, load_space
from evoengine.template import Template, load_template, shipped
from evoengine.verdict import Gate

TEMPLATE = load_template(shipped("kernel_templates") / "attention")
SPACE = load_space(shipped("search_spaces") / "attention.py")

HOPPER = CARDS["h200"].arch

FULL = AttentionProblem()
CAUSAL = AttentionProblem(causal=True, lse=True)
BF16 = AttentionProblem(dtype="bf16", kv_heads=2)
CROWDED = AttentionProblem(batch=4, heads=16)
"""For races: several CTAs an SM, so that warps hold each other up. FlashAttention's race tests have a batch of 60."""

PLAIN = dict(SPACE.default) | dict(WARPS_M=2, BLOCK_N=32)
"""Two warps and small tiles: every branch of the kernel within few interpreted instructions."""
GROUPS = PLAIN | dict(WARPS_KV=2)
GRID = PLAIN | dict(SPLIT_KV=4)
LAZY = PLAIN | dict(LAZY_RESCALE=1)
SUMS = PLAIN | dict(SUM_MMA=1)
OVERLAPPED = PLAIN | dict(OVERLAP=1, STAGES=3)
WAITING = PLAIN | dict(WARPS_M=4, STAGES=1, LATE_LOADS=1)
"""Each load is issued just before it is waited for, so that what does not wait comes too early."""
NAMED = PLAIN | dict(WARPS_M=4, STAGES=1, PRODUCER_WARPS=1)
MBARRIERS = NAMED | dict(MBARRIER=1)


@dataclass(frozen=True)
class Edit:
    """`old` becomes `new` in a source file, where it stands exactly `times` times."""

    file: str
    old: str
    new: str
    times: int = 1


@dataclass(frozen=True)
class Mutant:
    """A bug, and the config and problem on which it must be caught.

    `gate` and `reason` (a part of its text) are the interpreter's verdict. Where it accepts the mutant instead,
    `unseen` says why. `hidden` says why a card may run the mutant without a trace; there it need not be caught.
    """

    name: str
    models: str
    edits: tuple[Edit, ...]
    values: Values
    gate: Gate = Gate.CORRECTNESS
    reason: str = "error"
    problem: AttentionProblem = FULL
    unseen: str = ""
    hidden: str = ""

    @property
    def needs_hopper(self) -> bool:
        return self.values["WGMMA"] > 0

    def plant(self, folder: Path) -> Template:
        """A copy of the template in `folder`, which must not exist yet, with the bug in it.

        Raises:
            TemplateError: the template has changed, so that the edit no longer fits.
        """
        shutil.copytree(TEMPLATE.folder, folder, ignore=shutil.ignore_patterns("__pycache__"))
        for edit in self.edits:
            path = folder / edit.file
            text = path.read_text()
            found = text.count(edit.old)
            if found != edit.times:
                raise TemplateError(
                    f"mutant {self.name}: {edit.file} has its text {found} times, not {edit.times}: plant the bug anew"
                )
            path.write_text(text.replace(edit.old, edit.new))
        return Template(folder, TEMPLATE.module)


def edit(file: str, old: str, new: str, times: int = 1) -> tuple[Edit, ...]:
    """The edits of a mutant that has one."""
    return (Edit(file, old, new, times),)
