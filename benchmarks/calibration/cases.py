"""What is run on the card and in the interpreter, and how a recording of it is kept."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from benchmarks.calibration import probes
from evoengine.build import BuildRequest
from evoengine.dtypes import BITS, Arrays, to_bits
from evoengine.problem import AttentionProblem, Problem, parse_shape
from evoengine.space import Values, load_space
from evoengine.template import Template, TemplateModule, Tensor, load_template, shipped

SEED = 20_261_121
SAMPLE_STEP = 7
"""Of an attention output every 7th element is recorded: all of them would make 0.8 MB of text. 7 divides no row length,
so that every row gives 9 or 18 elements and every column its share."""

SHAPES = (
    "1,8,512,64",
    "1,8,512,128,causal,dtype=bf16",
    "1,8,512,64,dtype=bf16",
    "1,8,512,128,causal",
    "1,8,512,128",
    "1,8,512,64,causal,dtype=bf16",
    "1,8,512,64,causal",
    "1,8,512,128,dtype=bf16",
)
"""Every combination of dtype, head_dim and mask."""
COLUMNS = (
    "WARPS_M",
    "ROW_TILES",
    "BLOCK_N",
    "WARPS_KV",
    "STAGES",
    "PRODUCER_WARPS",
    "Q_IN_REGS",
    "OVERLAP",
    "LAZY_RESCALE",
    "MIN_CTAS",
)
CONFIGS = (
    (1, 1, 16, 1, 1, 1, 1, 0, 1, 4),
    (2, 2, 48, 1, 4, 2, 0, 0, 1, 1),
    (1, 1, 128, 8, 3, 0, 0, 1, 1, 2),
    (1, 1, 64, 4, 2, 4, 0, 0, 0, 2),
    (4, 1, 16, 1, 4, 0, 0, 1, 0, 3),
    (8, 1, 32, 2, 2, 0, 0, 1, 1, 1),
    (2, 1, 48, 1, 2, 1, 0, 0, 0, 6),
    (1, 2, 192, 4, 1, 4, 1, 0, 1, 1),
    (2, 1, 256, 8, 1, 0, 1, 0, 0, 1),
    (1, 1, 192, 2, 1, 2, 0, 0, 1, 1),
    (1, 1, 512, 8, 1, 4, 1, 0, 0, 1),
    (1, 2, 16, 1, 3, 1, 1, 1, 0, 3),
    (1, 2, 32, 1, 4, 2, 1, 1, 1, 2),
    (1, 1, 64, 2, 2, 2, 1, 1, 1, 3),
    (2, 1, 16, 1, 4, 4, 1, 1, 0, 3),
    (1, 2, 48, 1, 4, 0, 1, 0, 1, 1),
    (2, 1, 32, 2, 3, 1, 0, 0, 1, 4),
    (4, 1, 32, 2, 1, 4, 1, 0, 0, 1),
    (8, 1, 16, 1, 2, 1, 1, 1, 0, 2),
    (1, 2, 16, 1, 1, 0, 0, 0, 1, 6),
    (1, 1, 96, 1, 1, 1, 1, 0, 0, 1),
    (2, 2, 64, 1, 2, 0, 0, 1, 1, 4),
    (1, 2, 16, 1, 3, 0, 0, 1, 0, 1),
    (1, 1, 64, 4, 3, 2, 0, 1, 1, 1),
)
"""Values of COLUMNS, an axis newer than these at its default; config i has shape i modulo 8. Drawn for coverage of
choices and of pairs."""
NEWER_CONFIGS: tuple[dict[str, int], ...] = (
    dict(WARPS_M=2, BLOCK_N=32, STAGES=3, PRODUCER_WARPS=1, MBARRIER=1, UNROLL=1),
    dict(WARPS_M=1, BLOCK_N=64, WARPS_KV=2, STAGES=2, PRODUCER_WARPS=2, MBARRIER=1, OVERLAP=1, LAZY_RESCALE=1),
    dict(WARPS_M=2, ROW_TILES=2, BLOCK_N=32, STAGES=2, LATE_LOADS=1, UNROLL=1),
    dict(WARPS_M=1, BLOCK_N=48, STAGES=4, PRODUCER_WARPS=4, MBARRIER=1),
    dict(WARPS_M=2, BLOCK_N=32, STAGES=3, SUM_MMA=1, MASK_SPLIT=1, UNROLL=1),
    dict(WARPS_M=1, BLOCK_N=512, WARPS_KV=8, STAGES=1, SUM_MMA=1, ONE_TILE=1),
    dict(WARPS_M=1, BLOCK_N=64, WARPS_KV=2, PRODUCER_WARPS=1, OVERLAP=1, SUM_MMA=1, MASK_SPLIT=1, HEAVY_FIRST=1),
    dict(WARPS_M=1, BLOCK_N=48, STAGES=2, LATE_LOADS=1, MASK_SPLIT=1),
    dict(WARPS_M=1, BLOCK_N=512, WARPS_KV=8, STAGES=1, PRODUCER_WARPS=2, MASK_SPLIT=1, ONE_TILE=1),
    dict(WARPS_M=1, BLOCK_N=32, STAGES=1, SPLIT_KV=2),
    dict(WARPS_M=1, BLOCK_N=32, WARPS_KV=2, STAGES=1, SPLIT_KV=4, PRODUCER_WARPS=1),
    dict(WARPS_M=2, BLOCK_N=16, STAGES=1, SPLIT_KV=8, SUM_MMA=1),
    dict(WARPS_M=1, BLOCK_N=16, STAGES=2, SPLIT_KV=16, UNROLL=1),
    dict(WGMMA=1),
    dict(WGMMA=1, BLOCK_N=128, WARPS_KV=2, STAGES=1, Q_IN_REGS=0, PRODUCER_WARPS=1, MBARRIER=1, MASK_SPLIT=1),
    dict(WGMMA=1, ROW_TILES=2, STAGES=1, SUM_MMA=1),
    dict(WGMMA=2, BLOCK_N=128, WARPS_KV=2, STAGES=1, Q_IN_REGS=0, PRODUCER_WARPS=4, MBARRIER=1),
    dict(WGMMA=2, WARPS_M=8, STAGES=2, PRODUCER_WARPS=4, MASK_SPLIT=1),
)
"""For the axes that are newer, what differs from the default; they are numbered on from CONFIGS."""


@dataclass(frozen=True, slots=True)
class Case:
    """One launch of one build: `problem` is what is compiled for, `launched` what runs."""

    name: str
    template: Template
    values: Values
    problem: Problem
    launched: Problem

    @property
    def is_probe(self) -> bool:
        return isinstance(self.launched, probes.ProbeProblem)

    @property
    def result(self) -> str:
        """What the output words hold: a dtype, or `words` where they are not numbers."""
        return self.launched.probe.result if isinstance(self.launched, probes.ProbeProblem) else self._output.dtype

    @property
    def output(self) -> str:
        """The name of the one output tensor."""
        return self._output.name

    @property
    def _output(self) -> Tensor:
        (tensor,) = [t for t in self.template.module.tensors(self.launched) if t.role == "output"]
        return tensor

    @property
    def request(self) -> BuildRequest:
        module = self.template.module
        return BuildRequest(module.defines(self.values, self.problem), self._smem_bytes)

    @property
    def _smem_bytes(self) -> int:
        return self.template.module.launch(self.values, self.problem).smem_bytes

    def inputs(self) -> Arrays:
        return self.template.module.inputs(self.launched, SEED)

    def inputs_digest(self) -> str:
        """16 hex digits over the input bits: a generator that has changed makes a recording worthless."""
        tensors = {tensor.name: tensor.dtype for tensor in self.template.module.tensors(self.launched)}
        hasher = hashlib.sha256()
        for name, values in sorted(self.inputs().items()):
            hasher.update(to_bits(values, tensors[name]).tobytes())
        return hasher.hexdigest()[:16]

    def sample(self, words: NDArray[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
        """The part of an output that is recorded, flat."""
        return words.reshape(-1)[:: 1 if self.is_probe else SAMPLE_STEP]


def probe_template() -> Template:
    """The probes as something to build and launch."""
    return Template(Path(__file__).resolve().parent, cast(TemplateModule, probes))


def probe_cases() -> Iterator[Case]:
    template = probe_template()
    for number, probe in enumerate(probes.PROBES):
        problem = probes.ProbeProblem(number=number)
        yield Case(probe.name, template, {}, problem, problem)


def attention_cases() -> Iterator[Case]:
    """Every config on each of its small problems: ragged tails, GQA, rows without a key."""
    template = load_template(shipped("kernel_templates") / "attention")
    space = load_space(shipped("search_spaces") / "attention.py")
    configs = (*(dict(zip(COLUMNS, choices, strict=True)) for choices in CONFIGS), *NEWER_CONFIGS)
    for i, choices in enumerate(configs):
        values = {**space.default, **choices}
        problem = parse_shape(AttentionProblem, SHAPES[i % len(SHAPES)])
        for small in template.module.small_problems(values, problem):
            yield Case(f"config {i:02} {small.label}", template, values, problem, small)


def encode(words: NDArray[np.unsignedinteger]) -> str:
    """Words as text: little-endian bytes, zlib, base64."""
    return base64.b64encode(zlib.compress(words.astype(words.dtype.newbyteorder("<")).tobytes(), 9)).decode()


def decode(case: Case, record: Mapping[str, Any]) -> NDArray[np.unsignedinteger]:
    """The recorded words of a case.

    Raises:
        ValueError: the case's inputs are not those it was recorded with.
    """
    if record["inputs"] != case.inputs_digest():
        raise ValueError(f"{case.name}: recorded with other inputs, record again")
    dtype = BITS["fp32" if case.is_probe else case.result].newbyteorder("<")
    return np.frombuffer(zlib.decompress(base64.b64decode(record["words"])), dtype)


def make_record(case: Case, words: NDArray[np.unsignedinteger], **more: Any) -> dict[str, Any]:
    """What a recording keeps of a case."""
    config = {} if case.is_probe else {"config": dict(case.values)}
    return {**config, **more, "inputs": case.inputs_digest(), "words": encode(case.sample(words))}
