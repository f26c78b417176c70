"""The scheduler: which warps run next, and the execution of one launch in several modes at once.

A launch is run under several legal schedules together. Warps of a CTA run one at a time, each until it blocks, is to
wait for wgmma or exits, so a warp runs as far ahead of the others as barriers allow; `ascending` starts with warp 0,
`descending` with the last one. Whatever two accesses of different warps no barrier orders, one of the two modes does
first the one and the other mode the other: a race gives different output bits, or poison. Lock-step execution of all
warps, the obvious schedule, finds no race that these two miss and misses most that they find, so there is no such mode.

All CTAs of all modes advance together: a *slot* is one warp of each, in schedule order, and an instruction is one
numpy call over a slot's lanes. Within a slot the lanes at the lowest block run first, which reconverges branches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evoengine.devices.interpreter.barriers import CtaBarriers
from evoengine.devices.interpreter.collectives import whole_warps
from evoengine.devices.interpreter.faults import Fault, Hang, Unsupported
from evoengine.devices.interpreter.layout import WARP, Array, Frame, Mask
from evoengine.devices.interpreter.mbarriers import Mbarriers
from evoengine.devices.interpreter.meetings import WarpMeetings, next_block
from evoengine.devices.interpreter.memory import AsyncCopies, GlobalMemory, LaneState, PrivateMemory, Space
from evoengine.devices.interpreter.modes import MODES, Mode
from evoengine.devices.interpreter.phases import Phases
from evoengine.devices.interpreter.program import End, Program
from evoengine.devices.interpreter.registers import RegisterPools, Resize
from evoengine.devices.interpreter.tickets import Tickets
from evoengine.devices.interpreter.warpgroups import executed, unlike_warps
from evoengine.devices.interpreter.wgmma import Products
from evoengine.template import Launch

DONE = 1 << 30
STEP_LIMIT = 10_000_000
"""Interpreted instructions of one launch. The dearest attention config of the shipped space takes under 0.4 million."""


@dataclass(frozen=True, slots=True)
class Execution:
    """What a launch left behind: the bytes of every buffer for each mode, and the instructions interpreted."""

    buffers: tuple[dict[str, Array], ...]
    instructions: int


def execute(
    program: Program,
    launch: Launch,
    arguments: Sequence[str | int | float],
    buffers: Mapping[str, Array],
    *,
    modes: Sequence[Mode] = MODES,
    step_limit: int = STEP_LIMIT,
) -> Execution:
    """Run one launch in every mode at once, each on its own copy of `buffers`.

    Args:
        arguments: kernel parameters in order; a string is the address of the buffer of that name.
        modes: late ones first.

    Raises:
        Fault: what no GPU allows; Hang on a deadlock or after `step_limit` instructions; Unsupported.
    """
    tables = {name: np.frombuffer(content, np.uint8) for name, content in program.entry.tables.items()}
    memory = GlobalMemory({**buffers, **tables}, len(modes), launch.ctas)
    program.layout.symbols.update({name: memory.address(name) for name in tables})
    passed = [memory.address(argument) if isinstance(argument, str) else argument for argument in arguments]
    if launch.block > program.entry.bounds.get("maxntid", launch.block):
        raise Fault(f"a launch of {launch.block} threads a CTA, .maxntid allows {program.entry.bounds['maxntid']}")
    machine = Machine(program, launch, passed, memory, modes)
    machine.run(step_limit)
    left = tuple({name: memory.read(name, copy) for name in buffers} for copy in range(len(modes)))
    return Execution(left, machine.executed)


class Machine:
    """One launch of a program, in every mode of `modes` (late ones must come first)."""

    def __init__(
        self,
        program: Program,
        launch: Launch,
        arguments: Sequence[int | float],
        memory: GlobalMemory,
        modes: Sequence[Mode],
    ) -> None:
        self.program, self.launch, self.modes, self.executed = program, launch, modes, 0
        self._slots = -(-launch.block // WARP)
        self._groups = len(modes) * launch.ctas
        lanes = self._groups * WARP
        self._descending = np.repeat([mode.order == "descending" for mode in modes], launch.ctas)
        group = np.repeat(np.arange(self._groups), WARP)
        smem_bytes = program.static_smem_bytes + launch.smem_bytes
        # filled with NaN in every float format
        shared = PrivateMemory("shared", smem_bytes, group, 0xFF, proxies=program.async_proxy)
        late = sum(mode.copies == "late" for mode in modes) * launch.ctas * WARP
        if any(mode.copies == "late" for mode in modes[late // (launch.ctas * WARP) :]):
            raise ValueError("late modes must come first")
        everyone, mbarriers = np.arange(lanes), Mbarriers(shared, np.zeros(self._groups, np.int64))
        turns = np.where(np.repeat(self._descending, WARP), -everyone, everyone)
        self._executed = executed(self._slots, self._groups)
        states = []
        for _ in range(self._slots):
            local = PrivateMemory("local", program.local_bytes, everyone, 0xFF)
            copies = AsyncCopies(shared, late, np.zeros(lanes, np.int64))
            spaces: dict[str, Space] = {"global": memory, "shared": shared, "local": local}
            products = Products(self._executed, late // WARP)
            states.append(LaneState(everyone, turns, spaces, copies, mbarriers, products))
        values = dict(zip(program.entry.parameters, arguments, strict=True))
        self._frames = program.layout.frames(states, lanes, lambda slot, name: self._special(slot, name, values))
        self._at = np.zeros((self._slots, lanes), np.int64)
        for slot in range(self._slots):
            self._at[slot, self._special(slot, "%tid.x", {}) >= launch.block] = DONE
        self._live = np.ones((self._slots, self._groups), bool)
        self._blocked = np.zeros((self._slots, self._groups), bool)
        self._meetings = [WarpMeetings(lanes) for _ in range(self._slots)]
        self._barriers = [CtaBarriers(self._slots) for _ in range(self._groups)]
        self._registers = RegisterPools(self._slots, self._groups, program.launch_registers or 0)
        self._mbarriers, self._phases = mbarriers, Phases(mbarriers, states, self._blocked)
        taken = any(block.end.ticket is not None for block in program.blocks)
        self._tickets = Tickets(modes, launch.ctas, taken=taken)

    def _warps(self, slot: int) -> Array:
        """The warp that each group runs in a slot."""
        return np.where(self._descending, self._slots - 1 - slot, slot)

    def _special(self, slot: int, name: str, values: Mapping[str, int | float]) -> Array | int | float:
        if name in values:
            return values[name]
        lanes = np.arange(self._groups * WARP)
        cta = lanes // WARP % self.launch.ctas
        x, y, z = self.launch.grid
        warp = np.repeat(self._warps(slot), WARP)
        known: dict[str, Array | int] = {
            "%tid.x": warp * WARP + lanes % WARP, "%tid.y": 0, "%tid.z": 0,
            "%ntid.x": self.launch.block, "%ntid.y": 1, "%ntid.z": 1,
            "%ctaid.x": cta % x, "%ctaid.y": cta // x % y, "%ctaid.z": cta // (x * y),
            "%nctaid.x": x, "%nctaid.y": y, "%nctaid.z": z,
            "%laneid": lanes % WARP, "%warpid": warp, "%nwarpid": self._slots,
        }  # fmt: skip
        if name not in known:
            raise Unsupported(f"special register {name}")
        return known[name]

    def run(self, step_limit: int) -> None:
        """Execute until every warp has exited.

        Raises:
            Fault: what no GPU allows; Hang on a deadlock or after `step_limit` instructions; Unsupported.
        """
        with np.errstate(all="ignore"):
            while True:
                if self._mbarriers.completed:
                    self._phases.wake()
                ready = self._live & ~self._blocked
                able = np.asarray(ready.any(axis=0))
                stuck = np.asarray(~able & self._live.any(axis=0))
                if stuck.any():
                    dead = self._phases.unstick(stuck)
                    if dead.any():
                        raise self._deadlock(int(dead.argmax()))
                    continue
                if not able.any():
                    self._check_warpgroups()
                    return
                able = self._tickets.let_go(able)
                current = np.where(able, ready.argmax(axis=0), self._slots)
                slot = int(current.min())
                self._run_slot(slot, current == slot, step_limit)

    def _check_warpgroups(self) -> None:
        unlike = unlike_warps(self._executed)
        if unlike is not None:
            raise Fault(f"{unlike[0]} ({self._place(unlike[1])})")

    def _deadlock(self, group: int) -> Hang:
        warps = [int(self._warps(slot)[group]) for slot in range(self._slots)]
        waits, mbarriers = self._phases.describe(group, warps)
        more = self._registers.describe(group, warps)
        text = "; ".join(filter(None, (self._barriers[group].describe(warps), waits, more)))
        evidence = {"mbarriers": mbarriers} if mbarriers else None
        return Hang(f"deadlock in {self._place(group)}: {text}", evidence)

    def _place(self, group: int) -> str:
        return f"CTA {group % self.launch.ctas}, {self.modes[group // self.launch.ctas]}"

    def _run_slot(self, slot: int, groups: Array, step_limit: int) -> None:
        """Run the lanes of `groups` in a slot until one of their warps lets others go first, or none can go on."""
        frame, at, meetings = self._frames[slot], self._at[slot], self._meetings[slot]
        eligible, waiting = np.repeat(groups, WARP), self._phases.waiting[slot]
        while True:
            places = np.where(eligible & ~meetings.waiting & ~waiting, at, DONE)
            number = next_block(places, self.program.aligned, DONE)
            if number == DONE:
                self._phases.block(slot, meetings.waiting | (at == DONE))
                if (groups & ~self._blocked[slot]).any():
                    raise Fault("divergent: all that is left of a warp waits for lanes that never come")
                return
            here = places == number
            mask: Mask = True if here.all() else here
            while number < len(self.program.blocks):
                block = self.program.blocks[number]
                self.executed += len(block.steps) + 1
                if self.executed > step_limit:
                    raise Hang(f"still running after {step_limit} instructions")
                for step in block.steps:
                    step(frame, mask)
                end = block.end
                if end.kind == "barrier":
                    np.copyto(at, number + 1, where=mask)
                    self._barrier(slot, frame, end, mask)
                    return
                if end.resize is not None:
                    np.copyto(at, number + 1, where=mask)
                    self._resize(slot, frame, end.resize, mask)
                    return
                if end.kind == "exit":
                    self._exit(slot, frame, end, mask, number)
                    return
                if end.meeting is not None and not end.meeting.immediate(frame, mask):
                    np.copyto(at, number, where=mask)
                    meetings.wait(end.meeting, frame, mask)
                    self._meet(slot)
                    break
                if end.kind == "yield":
                    np.copyto(at, number + 1, where=mask)
                    return
                if end.ticket is not None:
                    end.ticket(frame, mask)
                    np.copyto(at, number + 1, where=mask)
                    self._tickets.take(mask)
                    return
                if end.test is not None:
                    passed = self._phases.ask(slot, end.test, frame, mask)
                    if passed is not mask:
                        np.copyto(at, number, where=mask)
                        np.copyto(at, number + 1, where=passed)
                        self._phases.block(slot, meetings.waiting | (at == DONE))
                        break
                following = self._next(frame, end, mask, number)
                if following is None:
                    self._diverge(frame, end, mask, number, at)
                    break
                number = following
                if mask is not True:
                    np.copyto(at, number, where=mask)
                    break
            else:
                raise Fault("ran past the end of the kernel")

    def _meet(self, slot: int) -> None:
        """Let lanes go on that waited for others of their warp and no longer have to."""
        frame, at, meetings = self._frames[slot], self._at[slot], self._meetings[slot]
        met = meetings.met(at == DONE)
        if met is None:
            return
        for number in np.unique(at[met]).tolist():
            meeting, serve = self.program.blocks[number].end.meeting, met & (at == number)
            assert meeting is not None, "lanes wait only at meetings"
            meetings.finish(meeting, frame, met, serve)
            np.copyto(at, number + 1, where=serve)

    def _next(self, frame: Frame, end: End, mask: Mask, number: int) -> int | None:
        """The block that all executing lanes go to, None where they part."""
        if end.kind in ("next", "meeting", "test"):
            return number + 1
        if not end.guard:
            return end.target
        taken = frame[end.guard] if mask is True else frame[end.guard][mask]
        if taken.all():
            return number + 1 if end.negated else end.target
        return None if taken.any() else (end.target if end.negated else number + 1)

    def _diverge(self, frame: Frame, end: End, mask: Mask, number: int, at: Array) -> None:
        taken, passed = (number + 1, end.target) if end.negated else (end.target, number + 1)
        np.copyto(at, np.where(frame[end.guard], taken, passed), where=mask)

    def _barrier(self, slot: int, frame: Frame, end: End, mask: Mask) -> None:
        warps = np.arange(self._groups)
        if mask is not True:
            here = mask.reshape(-1, WARP).any(axis=1)  # a warp that lost lanes elsewhere is none of this barrier's
            whole_warps(mask | (self._at[slot] == DONE) & np.repeat(here, WARP), end.text)
            warps = np.flatnonzero(here)
        for group in warps.tolist():
            barrier = int(frame[end.barrier][group * WARP])
            count = int(frame[end.count][group * WARP]) if end.count else None
            if end.waits:
                self._blocked[slot, group] = True
            self._release(group, self._barriers[group].arrive, slot, barrier, count, end.waits, end.text)

    def _resize(self, slot: int, frame: Frame, resize: Resize, mask: Mask) -> None:
        for group in resize.aligned.warps(frame, mask).tolist():
            self._blocked[slot, group] = True
            self._release(group, self._registers.resize, slot, group, resize)

    def _release(self, group: int, act: Callable[..., list[int]], *arguments: object) -> None:
        """Let the slots of a group go on that `act` returns; a fault of it says where."""
        try:
            self._blocked[act(*arguments), group] = False
        except Fault as fault:
            raise Fault(f"{fault} ({self._place(group)})") from None

    def _exit(self, slot: int, frame: Frame, end: End, mask: Mask, number: int) -> None:
        at = self._at[slot]
        np.copyto(at, number + 1, where=mask)
        leaving = mask if not end.guard else (~frame[end.guard] if end.negated else frame[end.guard]) & mask
        np.copyto(at, DONE, where=leaving)
        finished = (at == DONE).reshape(-1, WARP).all(axis=1) & self._live[slot]
        for group in np.flatnonzero(finished).tolist():
            self._live[slot, group] = False
            self._blocked[self._barriers[group].exit(), group] = False
        self._meet(slot)
