"""One card for a set of problems: a device for each, which never work at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

from evoengine.devices import TimingDevice, Work
from evoengine.devices.combine import Judged, measured, refused
from evoengine.devices.cuda.combined import one_race, one_setup, refused_in
from evoengine.devices.cuda.lock import SharedLock
from evoengine.devices.cuda.results import Finals, Setup
from evoengine.errors import EvoengineError, TemplateError
from evoengine.problem import Member
from evoengine.space import Values
from evoengine.verdict import Artifact, Candidate, Measurement, Rejection


class MemberDevice(TimingDevice, Protocol):
    """What the set needs of the device of one problem; `CudaDevice` has it."""

    def spawn(self) -> None: ...

    def open(self) -> Mapping[str, Any]: ...

    def start(
        self, values: Mapping[str, int], artifact: Artifact, environment: Mapping[str, Any] | None = None
    ) -> Setup: ...

    def stop(self) -> None: ...

    def interrupt(self) -> None: ...


class ShapesDevice:
    """Proves and times every candidate on each problem in turn; a rejection by one spares it the others.

    Every problem has a worker process of its own, with its buffers and its control, all on one card, whose `lock` they
    share. All but one of them wait.
    """

    measures = True

    def __init__(self, members: Sequence[tuple[Member, MemberDevice]], lock: SharedLock) -> None:
        self.name = members[0][1].name
        self._members = [member for member, _ in members]
        self._devices = [device for _, device in members]
        self._lock = lock

    def start(self, values: Values, artifact: Artifact) -> Setup:
        """Every problem's default and baselines, one after the other, once all workers are there.

        They start at the same time, which is mostly importing torch. Whether the card is busy is what the first of
        them found: the others would take the first for somebody else.

        Raises:
            TemplateError, UserError, EvoengineError: as `CudaDevice.start`; a broken template's names the shape.
        """
        for device in self._devices:
            device.spawn()
        environments = [device.open() for device in self._devices]
        setups = []
        for member, device, part in zip(self._members, self._devices, artifact.parts, strict=True):
            try:
                setups.append(device.start(values, part, environments[0]))
            except TemplateError as error:
                raise TemplateError(f"{member.problem.label}: {error}") from error
        return one_setup(self._members, artifact, setups)

    def judge(self, work: Iterable[tuple[Candidate, Artifact]]) -> Iterator[tuple[Candidate, Measurement | Rejection]]:
        """One verdict a candidate: the first rejection of a problem, or the mean of all measurements.

        Raises:
            EvoengineError: the card does not come back after a candidate's fault.
        """
        for candidate, artifact in work:
            yield candidate, self._verdict(candidate, artifact)

    def _verdict(self, candidate: Candidate, artifact: Artifact) -> Measurement | Rejection:
        found: dict[int, Judged[Measurement]] = {}
        for at in _cheapest_first(self._members):
            member, part = self._members[at], artifact.parts[at]
            ((_, verdict),) = self._devices[at].judge([(candidate, part)])
            if isinstance(verdict, Rejection):
                return refused(member, verdict)
            assert isinstance(verdict, Measurement), "a card measures"
            found[at] = Judged(member, part, verdict)
        return measured([found[at] for at in sorted(found)])

    def finals(self, work: Work, seed: int) -> Finals:
        """A final run for every problem, each in a fresh process that is alone on the card; the next one imports torch
        meanwhile.

        Raises:
            TemplateError, EvoengineError: as `CudaDevice.finals`.
        """
        for device in self._devices:
            device.stop()
        order = _cheapest_first(self._members)
        following = dict(pairwise(order))

        def race(at: int, own: Work) -> Finals:
            if at in following:
                self._devices[following[at]].spawn()
            return self._devices[at].finals(own, seed)

        return race_all(self._members, work, seed, race)

    def learn_best(self, best_us: float) -> None:
        """Every problem's device goes by its own best: another card's mean over the set says nothing of one."""

    def interrupt(self) -> None:
        """From another thread: kill the workers, so that what goes on here ends soon. Only `close` comes after."""
        for device in self._devices:
            device.interrupt()

    def close(self) -> None:
        """End the workers and free the card, whatever one of them does."""
        failed: EvoengineError | None = None
        for device in self._devices:
            try:
                device.close()
            except EvoengineError as error:
                failed = error
        self._lock.release()
        if failed is not None:
            raise failed


def race_all(
    members: Sequence[Member],
    work: Work,
    seed: int,
    race: Callable[[int, Sequence[tuple[Candidate, Artifact]]], Finals],
) -> Finals:
    """One `race` for every problem, by its place; a finalist that one refuses does not meet the next.

    Raises:
        TemplateError: the default config fails; names the shape.
    """
    rejected: dict[int, Rejection] = {}
    races: dict[int, Finals] = {}
    for at in _cheapest_first(members):
        own = [(one, artifact.parts[at]) for one, artifact in work if one.number not in rejected]
        try:
            races[at] = race(at, own)
        except TemplateError as error:
            raise TemplateError(f"{members[at].problem.label}: {error}") from error
        rejected |= refused_in(members[at], races[at])
    return one_race(members, work, [races[at] for at in sorted(races)], rejected, seed)


def _cheapest_first(members: Sequence[Member]) -> list[int]:
    """Places of the members: most wrong configs are wrong everywhere, and are found where it costs least."""
    return sorted(range(len(members)), key=lambda at: members[at].problem.flops)
