"""Where registers live: basic blocks, row allocation, and the typed views that instructions read and write.

A warp slot (one warp of every CTA of every mode) executes an instruction as one numpy call over all its lanes. Each
operand is a view on a register's row; the views of a slot form its *frame*, a plain list, so that a decoded
instruction costs a few list look-ups besides its numpy calls. Registers that live only inside one basic block share
rows with each other and between slots: most of a kernel's virtual registers do, and the file stays in the CPU's cache.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evoengine.devices.interpreter.faults import Unsupported
from evoengine.devices.interpreter.parser import Entry, Instruction

Array = NDArray[Any]
Mask = Array | Literal[True]
"""Which lanes of a slot execute: True for all of them."""
Frame = list[Any]
"""Views of one slot; `frame[STATE]` is the slot's `LaneState`."""
Step = Callable[[Frame, Mask], None]
"""A decoded instruction."""

STATE = 0
WARP = 32
TYPES: dict[str, np.dtype[Any]] = {
    "pred": np.dtype(np.bool_),
    **{f"{kind}{bits}": np.dtype(f"{code}{bits // 8}") for kind, code in (("u", "u"), ("s", "i"), ("b", "u"))
       for bits in (8, 16, 32, 64)},
    "f16": np.dtype(np.float16),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
}  # fmt: skip
NO_DESTINATION = frozenset(
    {"st", "red", "cp", "prefetch", "nanosleep", "bar", "barrier", "bra", "ret", "exit", "membar", "fence", "trap"}
)
MEETINGS = frozenset({"shfl", "vote"})
ENDS_BLOCK = frozenset({"bra", "ret", "exit", "bar", "barrier"}) | MEETINGS


@dataclass(slots=True)
class Block:
    """Straight-line instructions; `end` is what hands control on after them (see `program.End`), None for none."""

    body: list[Instruction]
    end: Instruction | None


def basic_blocks(entry: Entry) -> tuple[list[Block], dict[str, int]]:
    """The entry's blocks in program order, and the block that each label names."""
    code = entry.instructions
    leaders = {0, *entry.labels.values()}
    leaders |= {i + 1 for i, instruction in enumerate(code) if _ends(instruction)}
    leaders |= {i for i, instruction in enumerate(code) if is_phase_test(instruction)}  # executed again when woken
    leaders |= {i for i, instruction in enumerate(code) if is_product_wait(instruction)}
    starts = sorted(start for start in leaders if start < len(code))
    blocks = []
    for start, stop in zip(starts, [*starts[1:], len(code)], strict=True):
        end = code[stop - 1] if _ends(code[stop - 1]) else None
        blocks.append(Block(code[start : stop - 1 if end else stop], end))
    number = {start: i for i, start in enumerate(starts)}
    return blocks, {label: number.get(at, len(blocks)) for label, at in entry.labels.items()}


def _ends(instruction: Instruction) -> bool:
    waits = is_phase_test(instruction) or is_ticket(instruction) or is_resize(instruction)
    return instruction.opcode[0] in ENDS_BLOCK or waits


def _waits(instruction: Instruction) -> bool:
    return instruction.opcode[0] in MEETINGS or is_phase_test(instruction)


def is_phase_test(instruction: Instruction) -> bool:
    """Whether it asks an mbarrier for a phase; `try_wait`, of sm_90, asks as `test_wait` does and may sleep before."""
    return instruction.opcode[0] == "mbarrier" and instruction.opcode[1] in ("test_wait", "try_wait")


def is_product_wait(instruction: Instruction) -> bool:
    """Whether it waits for groups of wgmma. It begins a block, as it writes accumulators of blocks before and as other
    warps may go first.
    """
    return instruction.opcode[:2] == ("wgmma", "wait_group")


def is_resize(instruction: Instruction | None) -> bool:
    """Whether it changes the registers of its warp, which may have to wait for them."""
    return instruction is not None and instruction.opcode[0] == "setmaxnreg"


def is_ticket(instruction: Instruction) -> bool:
    """Whether it tells a CTA how far the others are: an atomic in global memory that gives the old value."""
    return instruction.opcode[0] == "atom" and not any(part.startswith("shared") for part in instruction.opcode)


def operand_registers(operand: str, entry: Entry) -> list[str]:
    """Registers that an operand names, whatever its form."""
    pieces = operand.strip("{}[]").replace("|", ",").replace("+", ",").replace("!", "").split(",")
    return [piece for piece in pieces if piece in entry.registers]


def destinations(instruction: Instruction, entry: Entry) -> list[str]:
    """Registers that an instruction writes."""
    if instruction.opcode[0] in NO_DESTINATION or not instruction.operands or instruction.operands[0][0] == "[":
        return []
    return operand_registers(instruction.operands[0], entry)


@dataclass(frozen=True, slots=True)
class _Row:
    width: int
    row: int
    private: bool


@dataclass(slots=True)
class Layout:
    """Register rows of one entry, and the frame entries that its decoded instructions asked for."""

    entry: Entry
    blocks: Sequence[Block]
    symbols: dict[str, int]
    _rows: dict[str, _Row] = field(default_factory=dict)
    _counts: dict[tuple[int, bool], int] = field(default_factory=lambda: defaultdict(int))
    _entries: list[tuple[str, str, tuple[int, ...]]] = field(default_factory=lambda: [("", "", ())])
    _index: dict[tuple[str, str, tuple[int, ...]], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seen: dict[str, set[int]] = defaultdict(set)
        first_write: set[tuple[int, str]] = set()
        for number, block in enumerate(self.blocks):
            touched: set[str] = set()
            for instruction in filter(None, (*block.body, block.end)):
                written = [] if instruction.guard else destinations(instruction, self.entry)
                read = [r for o in instruction.operands for r in operand_registers(o, self.entry)] + [instruction.guard]
                first_write |= {(number, r) for r in written if r not in touched and read.count(r) == 1}
                touched.update(read)
            for register in touched:
                seen[register].add(number)
            if block.end is not None and _waits(block.end):  # lanes wait there while other blocks run
                for operand in block.end.operands:
                    for register in operand_registers(operand, self.entry):
                        seen[register].add(-1)
        for number, block in enumerate(self.blocks):
            self._place(block, {r for r, where in seen.items() if where == {number} and (number, r) in first_write})
        for register, width in self.entry.registers.items():
            if register in seen and register not in self._rows:
                self._rows[register] = self._new_row(width, private=True)

    def _place(self, block: Block, temporary: set[str]) -> None:
        """Give the block's temporaries shared rows, each free again after its last use."""
        code = [instruction for instruction in (*block.body, block.end) if instruction is not None]
        used = [[*(r for o in i.operands for r in operand_registers(o, self.entry)), i.guard] for i in code]
        last = {register: at for at, registers in enumerate(used) for register in registers}
        free: dict[int, list[int]] = defaultdict(list)
        next_row: dict[int, int] = defaultdict(int)
        for at, registers in enumerate(used):
            for register in registers:
                if register in temporary and register not in self._rows:
                    width = self.entry.registers[register]
                    if not free[width]:
                        free[width].append(next_row[width])
                        next_row[width] += 1
                    self._rows[register] = _Row(width, free[width].pop(), False)
            for register in dict.fromkeys(registers):
                if register in temporary and last[register] == at:
                    free[self._rows[register].width].append(self._rows[register].row)
        for width, rows in next_row.items():
            self._counts[width, False] = max(self._counts[width, False], rows)

    def _new_row(self, width: int, *, private: bool) -> _Row:
        row = self._counts[width, private]
        self._counts[width, private] += 1
        return _Row(width, row, private)

    def width(self, register: str) -> int:
        """Bytes of a register, 0 for a predicate."""
        if register not in self.entry.registers:
            raise Unsupported(f"{register} is not a register")
        return self.entry.registers[register]

    def source(self, operand: str, type_: str, shape: tuple[int, ...] = (-1,)) -> int:
        """Frame index of an operand read as `type_`: a register, immediate, parameter, symbol or special register.

        A register wider than the type is read at its low end, as PTX allows for ld, st and cvt; `f16x2` and `u16x2`
        are both halves of a 32-bit register, so twice as many elements.
        """
        if type_.removesuffix("x2") not in TYPES:
            raise Unsupported(f"type .{type_}")
        key = (operand, type_, shape)
        if key not in self._index:
            self._index[key] = len(self._entries)
            self._entries.append(key)
        return self._index[key]

    def target(self, register: str, type_: str, shape: tuple[int, ...] = (-1,)) -> int:
        """Frame index of a register written whole as `type_`.

        Raises:
            Unsupported: `register` is no register, or its width is not the type's.
        """
        width = 0 if type_ == "pred" else TYPES[type_.removesuffix("x2")].itemsize * (2 if type_.endswith("x2") else 1)
        if self.width(register) != width:
            raise Unsupported(f"register {register} of {self.width(register)} B written as .{type_}")
        return self.source(register, type_, shape)

    def sink(self, register: str, type_: str) -> int | None:
        """As `target`, None for the `_` that throws a result away."""
        return None if register == "_" else self.target(register, type_)

    def frames(
        self, states: Sequence[Any], lanes: int, special: Callable[[int, str], Array | int | float]
    ) -> list[Frame]:
        """One frame per slot. `special(slot, name)` gives parameters and special registers, per lane or as a number."""

        def storage(private: bool) -> dict[int, Array]:
            rows = {width: count for (width, own), count in self._counts.items() if own is private}
            return {
                width: np.zeros((count, lanes), f"u{width}" if width else np.bool_) for width, count in rows.items()
            }

        shared, constants = storage(False), dict[tuple[str, str, tuple[int, ...]], Array]()
        frames = []
        for slot, state in enumerate(states):
            own = storage(True)
            frame: Frame = [state]
            for key in self._entries[1:]:
                operand, type_, shape = key
                if operand in self._rows:
                    row = self._rows[operand]
                    raw = (own if row.private else shared)[row.width][row.row]
                    frame.append(_typed(raw, type_).reshape(shape))
                elif operand[0] == "%" or operand in self.entry.parameters:
                    frame.append(_filled(special(slot, operand), type_, lanes).reshape(shape))
                else:
                    if key not in constants:
                        constants[key] = _filled(self.constant(operand, type_), type_, lanes).reshape(shape)
                    frame.append(constants[key])
            frames.append(frame)
        return frames

    def constant(self, operand: str, type_: str) -> int | float:
        """The value of an immediate or of a symbol's address.

        Raises:
            Unsupported: the operand is neither.
        """
        if operand in self.symbols:
            return self.symbols[operand]
        try:
            if operand[:2].lower() in ("0f", "0d"):
                word = np.array([int(operand[2:], 16)], np.uint32 if operand[1] in "fF" else np.uint64)
                return float(word.view(np.float32 if operand[1] in "fF" else np.float64)[0])
            return float(operand) if type_[0] == "f" else int(operand.rstrip("uU"), 0)
        except ValueError:
            raise Unsupported(f"operand {operand!r}") from None


def _typed(raw: Array, type_: str) -> Array:
    dtype = TYPES[type_.removesuffix("x2")]
    ratio = raw.dtype.itemsize // dtype.itemsize
    if ratio == 0 or (ratio != 2 and type_.endswith("x2")):
        raise Unsupported(f"a register of {raw.dtype.itemsize} B read as .{type_}")
    return raw.view(dtype)[:: 1 if type_.endswith("x2") else ratio]


def _filled(value: Array | int | float, type_: str, lanes: int) -> Array:
    """`value` in every lane, integers wrapped to the type; a float where bits are asked for gives its bits."""
    if type_.endswith("x2"):
        return _filled(value, "u32", lanes).view(TYPES[type_[:-2]])
    dtype = TYPES[type_]
    if isinstance(value, float) and dtype.kind != "f":
        value = (
            int(np.float32(value).view(np.uint32)) if dtype.itemsize == 4 else int(np.float64(value).view(np.uint64))
        )
    if dtype.kind == "f" and not isinstance(value, float):
        bits = np.asarray(value).astype(f"u{dtype.itemsize}").view(dtype)
        return np.ascontiguousarray(np.broadcast_to(bits, (lanes,)))
    if isinstance(value, int):
        value = np.array([value & (2 ** (8 * dtype.itemsize) - 1)], f"u{dtype.itemsize}").view(dtype)
    return np.ascontiguousarray(np.broadcast_to(np.asarray(value).astype(dtype), (lanes,)))
