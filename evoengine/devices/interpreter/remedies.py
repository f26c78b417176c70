"""What a user can do about something that the interpreter does not model."""

from __future__ import annotations

import re

_REMEDIES = (
    (r"\bcall\b|directive '\.param", "or take out printf and assert and make device functions __forceinline__"),
    (
        r"\btcgen05\b|\bcp\.(?:async|reduce)\.(?:async\.)?bulk\b",
        "or keep to what sm_80 has, such as mma.sync and cp.async",
    ),
    (
        r"\bsetmaxnreg\b",
        "or give __launch_bounds__ two numbers, and use setmaxnreg without a predicate, with a multiple of 8 up to 256",
    ),
    (r"\bwgmma\b", "or keep to wgmma of f16 or bf16 with float sums, 16 deep, and to tiles in the 128-byte swizzle"),
    (
        r"\b(?:add|sub|mul|fma|div|rcp|sqrt|cvt)\.(?:\w+\.)*r[mpz]\b",
        "or round to nearest there: the other directions are modelled for + - * and fma of float",
    ),
    (r"\b[fbsu]64\b", "or compute that part in 32 bits"),
    (r"\bconst\b", "or pass the table as an input"),
)
_ANY = "or write that part with other instructions (docs/your-kernel.md names some)"


def remedy(unmodelled: str) -> str:
    """A hint for the text of an `Unsupported`."""
    return next((hint for pattern, hint in _REMEDIES if re.search(pattern, unmodelled)), _ANY)
