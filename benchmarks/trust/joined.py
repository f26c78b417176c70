"""The worker verb as it is, over the replayed question: `python -m benchmarks.trust.joined ORDERS worker ...`.

ORDERS is a JSON object (`Orders`). Command line, engine, archive and database are the real ones. What a card, a
compiler and the interpreter would say is on file; every verdict is noted in a log once its commit has come back.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self, cast

from benchmarks.trust import replayed
from evoengine.archive import lease
from evoengine.archive.study import Study
from evoengine.cli import main, running, search, worker
from evoengine.cli.resolve import Target
from evoengine.devices import Device, TimingDevice
from evoengine.verdict import Artifact, Candidate, Estimate, Rejection, Verdict


@dataclass(frozen=True, slots=True)
class Orders:
    """Where verdicts are noted and cubins lie; how far this machine's clock is off; the study's lease, since minutes of
    it are too long for a proof; and how long a verdict takes."""

    log: str
    cubins: str
    skew_seconds: float
    lease_seconds: float
    verdict_seconds: float

    def words(self) -> list[str]:
        return [sys.executable, "-m", "benchmarks.trust.joined", json.dumps(asdict(self))]


class JoinedBuilder(replayed.ReplayedBuilder):
    """What the command line sees of a builder."""

    jobs = 2
    unfinished = 0
    toolchain = SimpleNamespace(version="replay")
    store: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@dataclass
class Card(replayed.ReplayedDevice):
    """Takes its time."""

    verdict_seconds: float

    def judge(self, work: Iterable[tuple[Candidate, Artifact]]) -> Iterator[tuple[Candidate, Verdict]]:
        for judged in super().judge(work):
            time.sleep(self.verdict_seconds)
            yield judged

    def in_hand(self) -> list[list[int]]:
        return []


@dataclass
class Interpreter:
    """Finds wrong what the card finds wrong, and estimates the rest."""

    verdict_seconds: float
    name = "interpreted"

    def judge(self, work: Iterable[tuple[Candidate, Artifact]]) -> Iterator[tuple[Candidate, Verdict]]:
        for candidate, verdict in Card(self.verdict_seconds).judge(work):
            if not isinstance(verdict, Rejection):
                verdict = Estimate(replayed.question().recorded(candidate.config.values).median_us)
            yield candidate, verdict

    def in_hand(self) -> list[list[int]]:
        return []

    def close(self) -> None:
        pass


def put_in(orders: Orders) -> None:
    """Replace what is on file, and the clock."""
    limits = replayed.question().limits
    here = Target(limits, limits, 0)
    clock, commit = time.time, Study.commit
    log = Path(orders.log)

    def noted(
        study: Study, candidate: Candidate, verdict: Verdict, artifact: Artifact | None, twin_of: int | None = None
    ) -> None:
        commit(study, candidate, verdict, artifact, twin_of)
        with log.open("a") as file:
            file.write(json.dumps([candidate.number, candidate.config.digest, type(verdict).__name__]) + "\n")

    def devices(question: Any, target: Target, *_: Any, **__: Any) -> tuple[Device, TimingDevice | None]:
        if target.ordinal is None:
            return Interpreter(orders.verdict_seconds), None
        card = Card(orders.verdict_seconds)
        return cast(Device, card), card

    patches: list[tuple[Any, str, Any]] = [
        (time, "time", lambda: clock() + orders.skew_seconds),
        (lease, "LEASE_SECONDS", orders.lease_seconds),
        (Study, "commit", noted),
        (search, "reopen", lambda spec, **_: replayed.question()),
        (search, "resume_target", lambda spec, *_: (here, "")),
        (search, "compiler_of", lambda toolchain: "nvrtc"),
        (search, "Builder", lambda *_, **__: JoinedBuilder(Path(orders.cubins))),
        (running, "device_for", devices),
        (worker, "find_target", lambda *_: here),
        (worker, "IDLE_SECONDS", 0.5),
    ]
    for owner, name, value in patches:
        setattr(owner, name, value)


if __name__ == "__main__":
    put_in(Orders(**json.loads(sys.argv[1])))
    sys.exit(main(sys.argv[2:]))
