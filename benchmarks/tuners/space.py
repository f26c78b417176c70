"""The space that Kernel Tuner can search too: attention's, without a split of the keys over CTAs and without wgmma.

Kernel Tuner passes every config the same arguments, and a split needs two more. It has NVRTC compile for a virtual
architecture, and no virtual one has wgmma. It cannot opt in to more than 48 KB of shared memory either: give
`--max-smem 49152`.
"""

from dataclasses import replace
from pathlib import Path

from evoengine.space import load_space

WHOLE = load_space(Path(__file__).resolve().parents[2] / "search_spaces" / "attention.py")
HELD = {"SPLIT_KV": 1, "WGMMA": 0}
SPACE = replace(
    WHOLE,
    name="attention_unsplit",
    axes=tuple(replace(axis, choices=(HELD[axis.name],)) if axis.name in HELD else axis for axis in WHOLE.axes),
    starts=tuple(start for start in WHOLE.starts if all(start[name] == held for name, held in HELD.items())),
)
