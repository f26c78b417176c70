"""mbarrier objects in shared memory: init, arrive, inval, and arrivals that cp.async makes.

The object is its own 64-bit word in shared memory, so that a store or a copy over it destroys it as on a GPU, and
whatever uses it next is a fault:

    bits 63-44  expected arrivals     bit 43      parity of the current phase     bits 42-32  tag
    bits 31-12  pending arrivals      bits 11-0   tag

Semantics: PTX ISA 9.0, "Asynchronous barrier: mbarrier". Of its instructions those that sm_80 has are modelled; there
mbarrier.arrive takes no count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evoengine.devices.interpreter.addressing import Address, locate, space_of
from evoengine.devices.interpreter.alu import Builder
from evoengine.devices.interpreter.faults import Fault, Unsupported
from evoengine.devices.interpreter.layout import STATE, WARP, Array, Frame, Layout, Mask, Step
from evoengine.devices.interpreter.memory import LaneState, PrivateMemory
from evoengine.devices.interpreter.parser import Instruction

MAX_COUNT = (1 << 20) - 1
_TAGS = np.uint64(0x5A6 << 32 | 0xB7A)
_TAG_BITS = np.uint64(0x7FF << 32 | 0xFFF)
_PENDING, _PHASE, _EXPECTED = np.uint64(12), np.uint64(43), np.uint64(44)
_COUNT = np.uint64(MAX_COUNT)
_ONE = np.uint64(1)
_INVALID = np.uint64(2**64 - 1)
_FORMS = frozenset({"mbarrier", "arrive", "noinc", "parity"})


@dataclass(slots=True)
class Mbarriers:
    """Every mbarrier of a launch, by its row in `shared.words[8]`.

    `events` counts, for each CTA and mode, what may have changed the outcome of a wait; `completed` is set when a
    phase ends.
    """

    shared: PrivateMemory
    events: Array
    completed: bool = False

    def read(self, rows: Array, text: str) -> Array:
        """The words of these objects.

        Raises:
            Fault: there is no mbarrier at one of them.
        """
        words = self.shared.words[8][rows]
        lost = words & _TAG_BITS != _TAGS
        if lost.any():
            raise Fault(f"{text}: no mbarrier at shared address {self._address(rows[lost][0])}: never initialised, "
                        "invalidated or overwritten")  # fmt: skip
        return words

    def init(self, lanes: Array, rows: Array, counts: Array, text: str) -> None:
        if len(np.unique(rows)) < len(rows):
            raise Fault(f"{text}: several lanes initialise the mbarrier at shared address {self._address(rows[0])}")
        if int(counts.min()) < 1 or int(counts.max()) > MAX_COUNT:
            wrong = counts[(counts < 1) | (counts > MAX_COUNT)][0]
            raise Fault(f"{text}: a count of {int(wrong)}, an mbarrier takes 1 to {MAX_COUNT}")
        valid = self.shared.words[8][rows] & _TAG_BITS == _TAGS
        if valid.any():
            raise Fault(f"{text}: there already is an mbarrier at shared address {self._address(rows[valid][0])}")
        count = counts.astype(np.uint64)
        self.shared.words[8][rows] = _TAGS | count << _PENDING | count << _EXPECTED
        self.events[lanes // WARP] += 1

    def invalidate(self, rows: Array, text: str) -> None:
        self.read(rows, text)
        self.shared.words[8][rows] = _INVALID

    def arrive(self, lanes: Array, rows: Array, text: str) -> Array:
        """One arrival for each lane. Returns the words as they were before, which is the state that arrive gives.

        Raises:
            Fault: more lanes arrive at once than the phase still expects.
        """
        found, inverse, arriving = np.unique(rows, return_inverse=True, return_counts=True)
        before = self.read(found, text)
        pending = before >> _PENDING & _COUNT
        arrivals = arriving.astype(np.uint64)
        over = arrivals > pending
        if over.any():
            i = int(over.argmax())
            raise Fault(f"{text}: {arriving[i]} lanes arrive at the mbarrier at shared address "
                        f"{self._address(found[i])}, whose phase expects {pending[i]} more")  # fmt: skip
        full = arrivals == pending
        left = np.where(full, before >> _EXPECTED, pending - arrivals)
        self._write(found, before ^ full.astype(np.uint64) << _PHASE, left)
        self.events[lanes // WARP] += 1
        self.completed |= bool(full.any())
        return np.asarray(before[inverse])

    def expect_more(self, rows: Array, text: str) -> None:
        """One more arrival in the current phase for each row given."""
        found, more = np.unique(rows, return_counts=True)
        before = self.read(found, text)
        self._write(found, before, (before >> _PENDING & _COUNT) + more.astype(np.uint64))

    def done(self, rows: Array, parity: Array, text: str) -> Array:
        """Whether the phase of that parity, the current one or the one before, has ended."""
        return np.asarray((self.read(rows, text) >> _PHASE & _ONE) != parity)

    def describe(self, row: int) -> dict[str, int]:
        """An mbarrier's state, for the evidence of a deadlock."""
        word = int(self.shared.words[8][row])
        return {
            "shared_address": self._address(row),
            "phase_parity": word >> int(_PHASE) & 1,
            "pending_arrivals": word >> int(_PENDING) & MAX_COUNT,
            "expected_arrivals": word >> int(_EXPECTED),
        }

    def _write(self, rows: Array, words: Array, pending: Array) -> None:
        self.shared.words[8][rows] = (words & ~(_COUNT << _PENDING)) | pending << _PENDING

    def _address(self, row: int) -> int:
        return int(row) * 8 % self.shared.pitch


def state_parity(states: Array) -> Array:
    """The parity of the phase in which mbarrier.arrive gave this state."""
    return np.asarray(states >> _PHASE & _ONE)


class Place:
    """The mbarrier operand of an instruction."""

    def __init__(self, instruction: Instruction, operand: str, layout: Layout) -> None:
        spaces = [modifier for modifier in instruction.opcode[2:-1] if modifier not in _FORMS]
        if instruction.opcode[-1] != "b64" or any(space_of(space) != "shared" for space in spaces):
            raise Unsupported(instruction.text)
        self._space, self._text = "shared" if spaces else "generic", instruction.text
        self._address = Address(operand, layout)

    def of(self, frame: Frame, mask: Mask) -> tuple[Array, Array]:
        """The executing lanes and the row of the mbarrier of each."""
        state: LaneState = frame[STATE]
        lanes = state.active(mask)
        where, rows = locate(state, self._space, self._address.of(frame, lanes, mask), lanes, 8, self._text)
        if where != "shared":
            raise Fault(f"{self._text}: an mbarrier in {where} memory")
        return lanes, rows


def _mbarrier(instruction: Instruction, layout: Layout) -> Step:
    kind, operands, text = instruction.opcode[1], instruction.operands, instruction.text
    if (kind, len(operands)) not in (("init", 2), ("inval", 1), ("arrive", 2)):
        raise Unsupported(text)
    place = Place(instruction, operands[1 if kind == "arrive" else 0], layout)
    if kind == "arrive":
        target = layout.sink(operands[0], "b64")

        def arrive(frame: Frame, mask: Mask) -> None:
            lanes, rows = place.of(frame, mask)
            states = frame[STATE].mbarriers.arrive(lanes, rows, text)
            if target is not None:
                frame[target][lanes] = states

        return arrive
    if kind == "inval":
        return lambda frame, mask: frame[STATE].mbarriers.invalidate(place.of(frame, mask)[1], text)
    count = layout.source(operands[1], "u32")

    def init(frame: Frame, mask: Mask) -> None:
        lanes, rows = place.of(frame, mask)
        frame[STATE].mbarriers.init(lanes, rows, frame[count][lanes], text)

    return init


def cp_async_arrive(instruction: Instruction, layout: Layout) -> Step:
    """cp.async.mbarrier.arrive: an arrival once every copy that the lane has issued is there.

    Without .noinc the phase expects that arrival in addition to the others. Lanes whose copies come late arrive when
    somebody can only wait for it.
    """
    text, place = instruction.text, Place(instruction, instruction.operands[0], layout)
    counted = "noinc" in instruction.opcode

    def run(frame: Frame, mask: Mask) -> None:
        state: LaneState = frame[STATE]
        lanes, rows = place.of(frame, mask)
        if not counted:
            state.mbarriers.expect_more(rows, text)
        at_once = state.copies.promise(lanes, rows, text)
        if len(lanes[at_once]):
            state.mbarriers.arrive(lanes[at_once], rows[at_once], text)

    return run


BUILDERS: dict[str, Builder] = {"mbarrier": _mbarrier}
