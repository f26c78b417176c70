"""Memory spaces with bounds and alignment checks, and the loads, stores and asynchronous copies that use them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

import numpy as np

from evoengine.devices.interpreter.faults import Fault
from evoengine.devices.interpreter.layout import Array, Mask

if TYPE_CHECKING:  # they work on shared memory and so import this module
    from evoengine.devices.interpreter.mbarriers import Mbarriers
    from evoengine.devices.interpreter.wgmma import Products

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

    def wrote(self, rows: Array, width: int) -> None:
        """To be told of every store to `words[width]`."""


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

    def wrote(self, rows: Array, width: int) -> None:
        """Nobody asks."""

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
    """Shared memory (one copy per CTA and mode) or local memory (one per lane): `size` B for each of `owners`.

    `unfenced` says of every 16 bytes whether they were stored to since the owner's last fence.proxy.async. It is kept
    only where somebody reads through the async proxy, and None elsewhere.
    """

    def __init__(self, name: str, size: int, owners: Array, fill: int, *, proxies: bool = False) -> None:
        self._name, self._size, self.pitch = name, size, align(max(size, 16), 16)
        self.words = _views(np.full((int(owners.max()) + 1) * self.pitch, fill, np.uint8))
        self._offsets = owners.astype(np.int64) * self.pitch
        self.unfenced = np.zeros(len(self.words[16]), bool) if proxies else None

    def wrote(self, rows: Array, width: int) -> None:
        if self.unfenced is not None:
            self.unfenced[rows * width >> 4] = True

    def fence(self, owners: Array) -> None:
        """What was stored so far may be read through the async proxy too, whoever of the owner's threads fences."""
        if self.unfenced is not None:
            self.unfenced.reshape(-1, self.pitch // 16)[owners] = False

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


class _Parts(Protocol):
    """Something that several lanes or warps still have to do."""

    def only(self, chosen: Array) -> Self:
        """The part of the `chosen` ones."""


_Pending = TypeVar("_Pending", bound=_Parts)


def divided(pending: Iterable[_Pending], chosen: Callable[[_Pending], Array]) -> tuple[list[_Pending], list[_Pending]]:
    """The parts of what is pending that are `chosen`, and the rest of it, each in order and without empty ones."""
    due, kept = [], []
    for one in pending:
        now = chosen(one)
        if now.all():
            due.append(one)
        elif now.any():
            due.append(one.only(now))
            kept.append(one.only(~now))
        else:
            kept.append(one)
    return due, kept


@dataclass(slots=True)
class _Copy:
    lanes: Array
    groups: Array
    rows: Array
    data: Array
    width: int
    number: int

    def only(self, chosen: Array) -> _Copy:
        lanes, groups, rows, data = (part[chosen] for part in (self.lanes, self.groups, self.rows, self.data))
        return _Copy(lanes, groups, rows, data, self.width, self.number)


@dataclass(slots=True)
class _Promise:
    """Arrivals at the mbarriers in `rows` once the lanes' copies numbered below `before` are there."""

    lanes: Array
    rows: Array
    before: int
    text: str

    def only(self, chosen: Array) -> _Promise:
        return _Promise(self.lanes[chosen], self.rows[chosen], self.before, self.text)


@dataclass(slots=True)
class AsyncCopies:
    """cp.async of one slot. Lanes below `late` see their data only once they wait for its group; the rest at once.

    Both are allowed by the ISA. Late catches a missing or short wait, eager a buffer refilled too early. An arrival at
    an mbarrier that late copies make is as late as they are: it comes when nobody has anything to do but wait for it.
    """

    shared: PrivateMemory
    late: int
    committed: Array
    pending: list[_Copy] = field(default_factory=list)
    promises: list[_Promise] = field(default_factory=list)
    issued: int = 0

    def issue(self, lanes: Array, rows: Array, data: Array, width: int) -> None:
        """`lanes` ascending; `rows` index `shared.words[width]`, `data` is what the source held."""
        cut = int(np.searchsorted(lanes, self.late))
        self._write(rows[cut:], data[cut:], width)
        if cut:
            waiting = lanes[:cut]
            self.pending.append(_Copy(waiting, self.committed[waiting], rows[:cut], data[:cut], width, self.issued))
            self.issued += 1

    def commit(self, mask: Mask) -> None:
        np.add(self.committed, 1, self.committed, where=mask)

    def wait(self, mask: Mask, allowed: int) -> None:
        """Land every group of the executing lanes but the `allowed` newest."""
        self._land(mask, self.committed - allowed)

    def wait_all(self, mask: Mask) -> None:
        """Land every copy of the executing lanes, committed or not."""
        self._land(mask, self.committed + 1)

    def promise(self, lanes: Array, rows: Array, text: str) -> slice:
        """Lanes, ascending, arrive at mbarriers once their copies are there. Returns those that do so at once."""
        cut = int(np.searchsorted(lanes, self.late))
        if cut:
            self.promises.append(_Promise(lanes[:cut], rows[:cut], self.issued, text))
        return slice(cut, None)

    def keep_promises(self, rows: Array) -> Iterator[tuple[Array, Array, str]]:
        """Land what arrivals at these mbarriers wait for; those arrivals: lanes, rows, instruction."""
        due, self.promises = divided(self.promises, lambda promise: np.isin(promise.rows, rows))
        for promise in due:
            copied = np.zeros(len(self.committed), bool)
            copied[promise.lanes] = True
            self._land_before(copied, promise.before)
            yield promise.lanes, promise.rows, promise.text

    def _land(self, mask: Mask, limits: Array) -> None:
        def due(copy: _Copy) -> Array:
            old = copy.groups < limits[copy.lanes]
            return np.asarray(old if mask is True else old & mask[copy.lanes])

        self._land_where(due)

    def _land_before(self, lanes: Array, number: int) -> None:
        self._land_where(lambda copy: np.asarray(lanes[copy.lanes] & (copy.number < number)))

    def _land_where(self, chosen: Callable[[_Copy], Array]) -> None:
        due, self.pending = divided(self.pending, chosen)
        for copy in due:
            self._write(copy.rows, copy.data, copy.width)

    def _write(self, rows: Array, data: Array, width: int) -> None:
        self.shared.words[width][rows] = data
        self.shared.wrote(rows, width)


@dataclass(slots=True)
class LaneState:
    """What one warp slot's instructions act on besides registers. `everyone` numbers the slot's lanes.

    `turns` says in which order lanes of different CTAs go where an atomic makes them go one after the other.
    """

    everyone: Array
    turns: Array
    spaces: dict[str, Space]
    copies: AsyncCopies
    mbarriers: Mbarriers
    products: Products

    def active(self, mask: Mask) -> Array:
        return self.everyone if mask is True else np.flatnonzero(mask)
