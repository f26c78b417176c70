"""What can go wrong inside an interpreted launch.

Fault              the kernel did what no GPU allows: out of bounds, misaligned, a divergent collective
├── Hang           it never ends: a deadlock at barriers, or too many instructions
└── Unsupported    the interpreter does not know an instruction; says nothing about the kernel
"""

from __future__ import annotations

from typing import Any


class Fault(Exception):
    """The kernel is wrong; the message names the instruction, the place and the numbers.

    `evidence` holds what a rejection shall record besides the message.
    """

    def __init__(self, message: str, evidence: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.evidence = evidence or {}


class Hang(Fault):
    """The launch would never finish; on a GPU its deadline would end it."""


class Unsupported(Fault):
    """An instruction, symbol or special register that this interpreter does not model."""
