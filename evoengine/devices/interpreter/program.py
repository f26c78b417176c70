"""A kernel decoded: every instruction a step on a frame, every block with its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from evoengine.devices.interpreter import (
    access,
    alu,
    atomics,
    bits,
    collectives,
    mbarriers,
    meetings,
    moves,
    predicates,
    wgmma,
)
from evoengine.devices.interpreter.faults import Unsupported
from evoengine.devices.interpreter.layout import (
    Frame,
    Layout,
    Mask,
    Step,
    basic_blocks,
    is_phase_test,
    is_product_wait,
    is_resize,
    is_ticket,
)
from evoengine.devices.interpreter.meetings import Meeting
from evoengine.devices.interpreter.memory import align
from evoengine.devices.interpreter.parser import Instruction, parse
from evoengine.devices.interpreter.phases import PhaseTest, phase_test
from evoengine.devices.interpreter.registers import Resize, launch_registers, resize

_BUILDERS = {
    **alu.BUILDERS, **bits.BUILDERS, **predicates.BUILDERS, **moves.BUILDERS, **access.BUILDERS,
    **collectives.BUILDERS, **atomics.BUILDERS, **mbarriers.BUILDERS, **wgmma.BUILDERS,
}  # fmt: skip


@dataclass(slots=True)
class End:
    """How a block ends.

    A branch to `target` or an exit, both possibly guarded; a barrier; a meeting of lanes; a test of an mbarrier's
    phase; a resize of the warps' registers; a ticket, which is a step after which other CTAs may go first; or nothing
    but that other warps may.
    """

    kind: Literal["next", "branch", "exit", "barrier", "meeting", "test", "resize", "ticket", "yield"]
    text: str = ""
    guard: int = 0
    negated: bool = False
    target: int = 0
    barrier: int = 0
    count: int = 0
    waits: bool = True
    meeting: Meeting | None = None
    test: PhaseTest | None = None
    resize: Resize | None = None
    ticket: Step | None = None


@dataclass(slots=True)
class Decoded:
    steps: list[Step]
    end: End


class Program:
    """A decoded entry: reusable for any number of launches.

    Raises:
        Unsupported: it holds an instruction that the interpreter does not know.
    """

    def __init__(self, ptx: str, name: str) -> None:
        self.entry = parse(ptx, name)
        blocks, self._labels = basic_blocks(self.entry)
        self.static_smem_bytes, self.local_bytes = 0, 0
        symbols: dict[str, int] = {}
        for variable in sorted(self.entry.shared, key=lambda v: v.bytes == 0):  # the dynamic array comes last
            symbols[variable.name] = align(self.static_smem_bytes, variable.align)
            self.static_smem_bytes = symbols[variable.name] + variable.bytes
        for variable in self.entry.local:
            symbols[variable.name] = align(self.local_bytes, variable.align)
            self.local_bytes = symbols[variable.name] + variable.bytes
        self.layout = Layout(self.entry, blocks, symbols)
        self.launch_registers = launch_registers(self.entry)
        self.blocks = [Decoded([self._decode(i) for i in block.body], self._end(block.end)) for block in blocks]
        for decoded, following in zip(self.blocks, blocks[1:], strict=False):
            if decoded.end.kind == "next" and following.body and is_product_wait(following.body[0]):
                decoded.end = End("yield")
        waits = [any("aligned" in i.opcode for i in block.body) or is_resize(block.end) for block in blocks]
        self.aligned = [*waits, False]
        self.async_proxy = any(instruction.opcode[0] == "wgmma" for instruction in self.entry.instructions)

    def _decode(self, instruction: Instruction) -> Step:
        builder = _BUILDERS.get(instruction.opcode[0])
        if builder is None:
            raise Unsupported(instruction.text)
        try:
            step = builder(instruction, self.layout)
        except Unsupported as error:
            named = instruction.text in str(error)
            raise Unsupported(str(error) if named else f"{instruction.text}: {error}") from None
        except (KeyError, ValueError, IndexError) as error:
            raise Unsupported(f"{instruction.text} ({type(error).__name__}: {error})") from error
        if not instruction.guard:
            return step
        guard, negated = self.layout.source(instruction.guard, "pred"), instruction.negated

        def guarded(frame: Frame, mask: Mask) -> None:
            chosen = (~frame[guard] if negated else frame[guard]) & mask
            if chosen.all():
                step(frame, True)
            elif chosen.any():
                step(frame, chosen)

        return guarded

    def _end(self, instruction: Instruction | None) -> End:
        if instruction is None:
            return End("next")
        if is_ticket(instruction):
            return End("ticket", instruction.text, ticket=self._decode(instruction))
        if is_phase_test(instruction):
            return End("test", instruction.text, test=phase_test(instruction, self.layout))
        if is_resize(instruction):
            return End("resize", instruction.text, resize=resize(instruction, self.layout, self.launch_registers))
        opcode, operands, text = instruction.opcode, instruction.operands, instruction.text
        guard = self.layout.source(instruction.guard, "pred") if instruction.guard else 0
        if opcode[0] in ("ret", "exit"):
            return End("exit", text, guard, instruction.negated)
        if opcode[0] == "bra":
            if operands[0] not in self._labels:
                raise Unsupported(text)
            return End("branch", text, guard, instruction.negated, self._labels[operands[0]])
        if instruction.guard:
            raise Unsupported(text)
        if opcode[0] in meetings.BUILDERS and opcode[1] in ("sync", "warp") and opcode[:2] != ("bar", "sync"):
            return End("meeting", text, meeting=meetings.BUILDERS[opcode[0]](instruction, self.layout))
        action = [part for part in opcode[1:] if part not in ("cta", "aligned")]
        if action not in (["sync"], ["arrive"]):
            raise Unsupported(text)
        numbers = [self.layout.source(operand, "u32") for operand in operands]
        return End("barrier", text, barrier=numbers[0], count=(numbers[1:] or [0])[0], waits=action == ["sync"])
