"""What a wgmma matrix descriptor names: a matrix in shared memory, in the 128-byte swizzle.

PTX ISA 9.0, "Matrix descriptor" of wgmma: bits 13-0 are the start address, 29-16 the leading and 45-32 the stride byte
offset, all without their low 4 bits; 51-49 a base offset, 63-62 the swizzle, of which 1 is that of 128 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evoengine.devices.interpreter.collectives import widen
from evoengine.devices.interpreter.faults import Fault, Unsupported
from evoengine.devices.interpreter.layout import WARP, Array
from evoengine.devices.interpreter.memory import PrivateMemory

DEPTH = 16
"""Elements of a row of A or column of B."""
_FIELD = np.uint64(0x3FFF)
_LEADING, _STRIDE, _BASE, _SWIZZLE = np.uint64(16), np.uint64(32), np.uint64(49), np.uint64(62)


@dataclass(frozen=True, slots=True)
class Operand:
    """A matrix in shared memory: `extent` rows of A or columns of B, 16 deep.

    Bytes from the start to element (i, k), before the swizzle: `i // 8 * stride + i % 8 * 128 + 2 * k`; or where it is
    transposed, with neighbours in i side by side, `i // 64 * leading + k // 8 * stride + k % 8 * 128 + i % 64 * 2`. The
    swizzle is one of addresses, bits 4 to 6 by bits 7 to 9, so that a tile has to begin at a multiple of 1024 bytes.
    """

    extent: int
    transposed: bool
    dtype: str
    name: str

    def locate(self, shared: PrivateMemory, warps: Array, descriptors: Array, first: Array) -> Array:
        """Rows of `shared.words[16]` for each warp, of the operand's part from `first` on.

        Raises:
            Unsupported: another layout than the one modelled.
            Fault: part of it lies outside shared memory, or is not visible to the async proxy.
        """
        if (descriptors >> _SWIZZLE != 1).any() or (descriptors >> _BASE & np.uint64(7)).any():
            raise Unsupported(f"{self.name}: a descriptor without 128-byte swizzle, or with a base offset")
        start, leading, stride = (
            ((descriptors >> shift & _FIELD) << np.uint64(4)).astype(np.int64)[:, None, None]
            for shift in (np.uint64(0), _LEADING, _STRIDE)
        )
        k = np.arange(DEPTH)[:, None]
        if self.transposed:
            i = first[:, None, None] + np.arange(0, self.extent, 8)
            addresses = start + i // 64 * leading + k // 8 * stride + k % 8 * 128 + i % 64 * 2
        else:
            i = first[:, None, None] + np.arange(self.extent)[:, None]
            addresses = start + i // 8 * stride + i % 8 * 128 + np.array([0, 16])
        addresses = (addresses ^ (addresses >> 7 & 7) << 4).reshape(len(warps), -1)
        lanes = np.repeat(warps * WARP, addresses.shape[1])
        rows = shared.locate(addresses.reshape(-1), lanes, 16, self.name)
        assert shared.unfenced is not None, "kept for every program with wgmma"
        if shared.unfenced[rows].any():
            raise Fault(
                f"{self.name}: reads shared address {int(addresses.flat[shared.unfenced[rows].argmax()])}, "
                "written without a fence.proxy.async since"
            )
        return rows.reshape(addresses.shape)

    def read(self, shared: PrivateMemory, rows: Array) -> Array:
        """(warps, extent, 16) floats of located rows."""
        words = shared.words[16][rows].view(np.uint16).reshape(len(rows), -1)
        shape = (DEPTH, self.extent) if self.transposed else (self.extent, DEPTH)
        matrices = widen(words.view(np.float16) if self.dtype == "f16" else words, self.dtype)
        matrices = np.asarray(matrices, np.float32).reshape(-1, *shape)
        return matrices.transpose(0, 2, 1) if self.transposed else matrices
