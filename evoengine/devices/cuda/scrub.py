"""NaN into the shared memory of every SM before a checked launch."""

from __future__ import annotations

from pathlib import Path

from cuda.bindings import nvrtc

from evoengine.devices.cuda.driver import Kernel, pack
from evoengine.hardware import DeviceLimits
from evoengine.oracle import POISON
from evoengine.template import Launch

LINGER_NS = 20_000
"""The SMs of one grid start within 1-2 us of each other; globaltimer may tick as coarsely as 1 us."""


class Scrubber:
    """The scrub kernel, compiled for this card once per worker."""

    def __init__(self, limits: DeviceLimits, stream: int) -> None:
        self._kernel = Kernel(compile_source(Path(__file__).with_name("scrub.cu"), limits.arch), "scrub")
        self._kernel.allow(limits.smem_per_block)
        self._stream = stream
        self._launch = Launch((limits.sms, 1, 1), 256, limits.smem_per_block)
        word = POISON[0] << 16 | POISON[0]  # NaN read as fp16, bf16 or fp32
        self._parameters = pack([("int32", word), ("int32", limits.smem_per_block // 4), ("int32", LINGER_NS)])

    def __call__(self) -> None:
        self._kernel.launch(self._launch, self._parameters, self._stream)


def compile_source(source: Path, arch: str) -> bytes:
    """A kernel of our own as a cubin; a failure is evoengine's fault, hence a RuntimeError."""

    def checked(result: tuple[nvrtc.nvrtcResult, ...]) -> object:
        if result[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise RuntimeError(f"NVRTC cannot compile {source.name}: {result[0].name}")
        return result[1] if len(result) > 1 else None

    program = checked(nvrtc.nvrtcCreateProgram(source.read_bytes(), source.name.encode(), 0, [], []))
    checked(nvrtc.nvrtcCompileProgram(program, 1, [f"--gpu-architecture={arch}".encode()]))
    size = checked(nvrtc.nvrtcGetCUBINSize(program))
    assert isinstance(size, int)
    image = b"\0" * size
    checked(nvrtc.nvrtcGetCUBIN(program, image))
    checked(nvrtc.nvrtcDestroyProgram(program))
    return image
