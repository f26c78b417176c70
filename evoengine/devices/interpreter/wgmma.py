"""wgmma: products of a warpgroup, of operands in shared memory, that are only there once they are waited for.

Semantics: PTX ISA 9.0, "Asynchronous warpgroup level matrix instructions". Modelled are m64nNk16 of f16 or bf16 with
float sums, and operands in the 128-byte swizzle.

Each warp multiplies on its own: its 16 rows of D need its 16 rows of A and all of B. What the four of a warpgroup have
to do alike is in `warpgroups`.

The ISA lets a product read shared memory and write its accumulators at any time until wgmma.wait_group. Modes whose
copies land late multiply at once, which finds a tile that was not waited for; those whose copies land at once multiply
when the group is waited for, which finds a tile refilled or accumulators read too early. There an accumulator that the
compiler copies before the wait is wrong: NVVM ties it to one register, and leaves it there. A in registers is read at
once: neither NVVM nor the source says that somebody reads it later, so that it is kept is ptxas's business.

Shared memory is read through the async proxy, which sees a store or a cp.async of the generic one only after a
fence.proxy.async. Here that of any thread of the CTA will do, if it comes after the data landed. Not modelled: which
registers a wgmma.fence orders; there has to be one before a warp's first product.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from evoengine.devices.interpreter.alu import Builder
from evoengine.devices.interpreter.collectives import fill_left, halves
from evoengine.devices.interpreter.descriptors import DEPTH, Operand
from evoengine.devices.interpreter.faults import Fault, Unsupported
from evoengine.devices.interpreter.layout import STATE, WARP, Array, Frame, Layout, Mask, Step
from evoengine.devices.interpreter.memory import LaneState, divided
from evoengine.devices.interpreter.parser import Instruction, split_operands
from evoengine.devices.interpreter.warpgroups import WARPGROUP, Aligned

_SHAPE = re.compile(r"m64n(\d+)k16$")


@dataclass(frozen=True, slots=True)
class _Issued:
    """A product that some warps of a slot still have to make."""

    product: _Product
    warps: Array
    groups: Array
    a: Array
    b: Array
    adds: Array

    def only(self, chosen: Array) -> _Issued:
        parts = (self.warps, self.groups, self.a, self.b, self.adds)
        return _Issued(self.product, *(part[chosen] for part in parts))


@dataclass(slots=True)
class Products:
    """wgmma of one slot. Its warps from `late` on multiply when they wait for a product's group, the others at once.

    `executed` is all slots': see `warpgroups.executed`.
    """

    executed: Array
    late: int
    committed: Array = field(init=False)
    fenced: Array = field(init=False)
    pending: list[_Issued] = field(default_factory=list)

    def __post_init__(self) -> None:
        warps = self.executed.shape[1]
        self.committed, self.fenced = np.zeros(warps, np.int64), np.zeros(warps, bool)

    def issue(self, frame: Frame, issued: _Issued) -> None:
        late, at_once = divided([issued], lambda one: one.warps >= self.late)
        self.pending += late
        for one in at_once:
            one.product.make(frame, one)

    def wait(self, frame: Frame, warps: Array, allowed: int) -> None:
        """Make every product of these warps but those of the `allowed` newest groups."""
        limits = np.zeros(len(self.committed), np.int64)
        limits[warps] = self.committed[warps] - allowed
        due, self.pending = divided(self.pending, lambda issued: issued.groups < limits[issued.warps])
        for issued in due:
            issued.product.make(frame, issued)


class _Product:
    """A decoded wgmma.mma_async: D = A B, or D + A B where the predicate says so."""

    def __init__(self, instruction: Instruction, layout: Layout) -> None:
        text, opcode, operands = instruction.text, instruction.opcode, instruction.operands
        self._aligned = Aligned(instruction, layout)
        shape = _SHAPE.match(opcode[4])
        columns = int(shape[1]) if shape else 0
        if len(opcode) != 8 or opcode[5] != "f32" or opcode[6] != opcode[7] or opcode[6] not in ("f16", "bf16"):
            raise Unsupported(text)
        d, a, b, adds, *immediates = operands
        from_registers = a[0] == "{"
        scales, transposed = immediates[:2], immediates[2:]
        if scales != ["1", "1"] or len(transposed) != 2 - from_registers or not set(transposed) <= {"0", "1"}:
            raise Unsupported(text)
        accumulators = split_operands(d[1:-1])
        if columns % 8 or not 8 <= columns <= 256 or len(accumulators) != columns // 2 or layout.width(adds):
            raise Unsupported(text)
        self._dtype, self._columns = opcode[6], columns
        self._d = [layout.target(register, "f32", (-1, WARP)) for register in accumulators]
        self._adds = layout.source(adds, "pred", (-1, WARP))
        self._b = layout.source(b, "b64", (-1, WARP))
        self._right = Operand(columns, transposed[-1] == "1", self._dtype, self._aligned.name)
        self._left = None if from_registers else Operand(16, transposed[0] == "1", self._dtype, self._aligned.name)
        fragment = split_operands(a[1:-1]) if from_registers else ()
        if from_registers and len(fragment) != 4:
            raise Unsupported(text)
        self._fragment = halves(layout, fragment, self._dtype)
        self._a = 0 if from_registers else layout.source(a, "b64", (-1, WARP))

    def issue(self, frame: Frame, mask: Mask) -> None:
        state: LaneState = frame[STATE]
        aligned, products, shared = self._aligned, state.products, state.copies.shared
        warps = aligned.warps(frame, mask)
        if not products.fenced[warps].all():
            raise Fault(f"{aligned.name}: no wgmma.fence before a warp's first product")
        adds = aligned.uniform(frame, warps, self._adds)
        if self._left is None:
            a = self._registers(frame, warps)
        else:
            first = (aligned.numbers(frame, warps) % WARPGROUP * 16).astype(np.int64)
            a = self._left.locate(shared, warps, aligned.uniform(frame, warps, self._a), first)
        b = self._right.locate(shared, warps, aligned.uniform(frame, warps, self._b), np.zeros(len(warps), np.int64))
        products.issue(frame, _Issued(self, warps, products.committed[warps], a, b, adds))

    def make(self, frame: Frame, issued: _Issued) -> None:
        """The accumulator layout of mma.sync's m16n8, repeated along the columns: row 8 h + r, column 8 j + 2 c + e is
        element 4 j + 2 h + e of lane 4 r + c.
        """
        shared = frame[STATE].copies.shared
        left = issued.a if self._left is None else self._left.read(shared, issued.a)
        product = left @ self._right.read(shared, issued.b).transpose(0, 2, 1)
        warps, adds = issued.warps, issued.adds[:, None]
        by_element = product.reshape(-1, 2, 8, self._columns // 8, 4, 2).transpose(3, 1, 5, 0, 2, 4)
        for d, part in zip(self._d, by_element.reshape(len(self._d), -1, WARP), strict=True):
            register = frame[d]
            register[warps] = part + np.where(adds, register[warps], np.float32(0))

    def _registers(self, frame: Frame, warps: Array) -> Array:
        """(warps, 16, 16): the fragment of mma.sync's m16n8k16."""
        left = np.empty((len(warps), 16, DEPTH), np.float32)
        fill_left(left, (frame[register][warps] for register in self._fragment), self._dtype)
        return left


def _wgmma(instruction: Instruction, layout: Layout) -> Step:
    kind, operands = instruction.opcode[1], instruction.operands
    if instruction.opcode[2:4] != ("sync", "aligned") or (kind != "mma_async" and len(instruction.opcode) != 4):
        raise Unsupported(instruction.text)
    if kind == "mma_async":
        return _Product(instruction, layout).issue
    aligned = Aligned(instruction, layout)
    if kind == "wait_group" and len(operands) == 1:
        allowed = int(operands[0], 0)
        return lambda frame, mask: frame[STATE].products.wait(frame, aligned.warps(frame, mask), allowed)
    if kind not in ("fence", "commit_group") or operands:
        raise Unsupported(instruction.text)

    def run(frame: Frame, mask: Mask) -> None:
        products: Products = frame[STATE].products
        warps = aligned.warps(frame, mask)
        if kind == "fence":
            products.fenced[warps] = True
        else:
            products.committed[warps] += 1

    return run


BUILDERS: dict[str, Builder] = {"wgmma": _wgmma}
