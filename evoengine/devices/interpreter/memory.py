"""Memory spaces with bounds and alignment checks, and the loads, stores and asynchronous copies that use them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from evoengine.devices.interpreter.faults import Fault
from evoengine.devices.interpreter.layout import Array, Mask

GLOBAL_BASE = 1 << 32
_GUARD = 4096
"""Unmapped bytes on both sides of every buffer, so that running off one does not land in the next."""


def _views(raw: Array) -> dict[int, Array]:
    """One array seen as words of 1 to 8 B, and as rows of 16."""
    views: dict[int, Array] = {width: raw.view(f"u{width}") for width in (1, 2, 4, 8)}
    return views | {16: raw.view(np.uint64).reshape(-1, 2)}


def align(size: int, to: int) -> int:
    return -(-size // to) * to


class Space(Protocol):
    """Bytes that lanes address. `words[width]` is indexed by what `locate` returns."""

    words: dict[int, Array]

    def locate(self, addresses: Array, lanes: Array | slice, width: int, text: str) -> Array: ...


class GlobalMemory:
    """Device buffers in one address space, a private copy for every mode of the run."""

    def __init__(self, buffers: Mapping[str, Array], copies: int, groups_per_copy: int) -> None:
        """`buffers` are the initial contents by name; lanes of one copy are consecutive, 32 per group."""
        self._names, self._starts, self._ends = list(buffers), list[int](), list[int]()
        at = _GUARD
        for content in buffers.values():
            self._starts.append(GLOBAL_BASE + at)
            self._ends.append(GLOBAL_BASE + at + content.nbytes)
            at = align(at + content.nbytes, 256) + _GUARD
        self._size = align(at, 16)
        raw = np.zeros((copies, self._size), np.uint8)
        for start, content in zip(self._starts, buffers.values(), strict=True):
            raw[:, start - GLOBAL_BASE :][:, : content.nbytes] = content.reshape(-1).view(np.uint8)
        self._raw = raw
        self.words = _views(raw.reshape(-1))
        self._offsets = np.repeat(np.arange(copies, dtype=np.int64) * self._size - GLOBAL_BASE, groups_per_copy * 32)

    def address(self, name: str) -> int:
        return self._starts[self._names.index(name)]

    def read(self, name: str, copy: int) -> Array:
        """The bytes of a buffer as one mode left them."""
        i = self._names.index(name)
        return self._raw[copy, self._starts[i] - GLOBAL_BASE : self._ends[i] - GLOBAL_BASE]

    def locate(self, addresses: Array, lanes: Array | slice, width: int, text: str) -> Array:
        low, high = int(addresses.min()), int(addresses.max())
        i = bisect_right(self._starts, low) - 1
        if i < 0 or high + width > self._ends[i]:
            self._check_each(addresses, width, text)
        _check_alignment(addresses, width, "global", text)
        return (addresses + self._offsets[lanes]) >> (width.bit_length() - 1)

    def _check_each(self, addresses: Array, width: int, text: str) -> None:
        nearest = np.maximum(np.searchsorted(self._starts, addresses, "right") - 1, 0)
        outside = (addresses < np.array(self._starts)[nearest]) | (addresses + width > np.array(self._ends)[nearest])
        if outside.any():
            address = int(addresses[outside.argmax()])
            i = int(nearest[outside.argmax()])
            if i + 1 < len(self._starts) and self._starts[i + 1] - address < address - self._ends[i]:
                i += 1
            raise Fault(
                f"{text}: {int(outside.sum())} lanes outside every buffer, first at {self._names[i]} + "
                f"{address - self._starts[i]} B of {self._ends[i] - self._starts[i]} B"
            )


class PrivateMemory:
    """Shared memory (one copy per CTA and mode) or local memory (one per lane): `size` B for each of `owners`."""

    def __init__(self, name: str, size: int, owners: Array, fill: int) -> None:
        self._name, self._size, pitch = name, size, align(max(size, 16), 16)
        self.words = _views(np.full((int(owners.max()) + 1) * pitch, fill, np.uint8))
        self._offsets = owners.astype(np.int64) * pitch

    def locate(self, addresses: Array, lanes: Array | slice, width: int, text: str) -> Array:
        low, high = int(addresses.min()), int(addresses.max())
        if low < 0 or high + width > self._size:
            worst = low if low < 0 else high
            raise Fault(f"{text}: {self._name} address {worst} (+{width} B) outside the {self._size} B it has")
        _check_alignment(addresses, width, self._name, text)
        return (addresses + self._offsets[lanes]) >> (width.bit_length() - 1)


def _check_alignment(addresses: Array, width: int, space: str, text: str) -> None:
    if width > 1 and int(np.bitwise_or.reduce(addresses)) & (width - 1):
        wrong = addresses[(addresses & (width - 1)) != 0]
        raise Fault(f"{text}: {len(wrong)} lanes misaligned, first at {space} address {int(wrong[0])} for {width} B")


@dataclass(slots=True)
class _Copy:
    lanes: Array
    groups: Array
    rows: Array
    data: Array
    width: int


@dataclass(slots=True)
class AsyncCopies:
    """cp.async of one slot. Lanes below `late` see their data only once they wait for its group; the rest at once.

    Both are allowed by the ISA. Late catches a missing or short wait, eager a buffer refilled too early.
    """

    shared: PrivateMemory
    late: int
    committed: Array
    pending: list[_Copy] = field(default_factory=list)

    def issue(self, lanes: Array, rows: Array, data: Array, width: int) -> None:
        """`lanes` ascending; `rows` index `shared.words[width]`, `data` is what the source held."""
        cut = int(np.searchsorted(lanes, self.late))
        self.shared.words[width][rows[cut:]] = data[cut:]
        if cut:
            waiting = lanes[:cut]
            self.pending.append(_Copy(waiting, self.committed[waiting], rows[:cut], data[:cut], width))

    def commit(self, mask: Mask) -> None:
        np.add(self.committed, 1, self.committed, where=mask)

    def wait(self, mask: Mask, allowed: int) -> None:
        """Land every group of the executing lanes but the `allowed` newest."""
        self._land(mask, self.committed - allowed)

    def wait_all(self, mask: Mask) -> None:
        """Land every copy of the executing lanes, committed or not."""
        self._land(mask, self.committed + 1)

    def _land(self, mask: Mask, limits: Array) -> None:
        kept = []
        for copy in self.pending:
            due = copy.groups < limits[copy.lanes]
            if mask is not True:
                due &= mask[copy.lanes]
            words = self.shared.words[copy.width]
            if due.all():
                words[copy.rows] = copy.data
                continue
            words[copy.rows[due]] = copy.data[due]
            rest = ~due
            kept.append(_Copy(copy.lanes[rest], copy.groups[rest], copy.rows[rest], copy.data[rest], copy.width))
        self.pending = kept


@dataclass(slots=True)
class LaneState:
    """What one warp slot's instructions act on besides registers. `everyone` numbers the slot's lanes."""

    everyone: Array
    spaces: dict[str, Space]
    copies: AsyncCopies

    def active(self, mask: Mask) -> Array:
        return self.everyone if mask is True else np.flatnonzero(mask)
