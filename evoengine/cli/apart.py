"""A proposer in a process of its own: cards and compilers wait for no proposal then.

A proposal takes 10 to 40 ms of one core, storing a candidate 7 to 10, and one process does but one of them at a time:
with four simulated cards 24 candidates a second, of the 74 that 64 cores compile (studies/LOG.md, 2026-12-01).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection, Pipe
from typing import Any

from evoengine.archive.documents import typed
from evoengine.cli.ahead import as_feasible, feasible_document
from evoengine.devices.cuda.process import child_environment
from evoengine.errors import EvoengineError, UserError
from evoengine.sampler import Proposal, Seen
from evoengine.sampler.source import Source
from evoengine.space import Axis, FeasibleSet, SearchSpace

CORES = 24
"""From so many on a search that measures has one. On an H200 with 16 cores, which compile 13.5 candidates a second, it
makes 1,000 candidates 7 % faster and 200 none; what one process proposes and stores there is 28 a second at most."""
END_SECONDS = 5.0
"""How long an idle process may take to notice that nobody asks any more."""


class _Process:
    """One that proposes as soon as it is told for what."""

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        self._child = subprocess.Popen(
            [sys.executable, "-m", "evoengine.cli.apart", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            env=child_environment(),
            start_new_session=True,  # Ctrl-C in the terminal is the engine's to handle
        )
        theirs.close()

    def tell(self, what: object) -> None:
        try:
            self._connection.send_bytes(json.dumps(what).encode())
        except OSError:
            raise self._ended() from None

    def said(self, *, wait: bool) -> Any:
        """Its next word; None where it is not there yet and not waited for."""
        if not wait and not self._connection.poll():
            return None
        try:
            return json.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            raise self._ended() from None

    def close(self) -> None:
        """It ends once its connection is closed, and is killed where it does not."""
        self._connection.close()
        try:
            self._child.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _ended(self) -> EvoengineError:
        with suppress(subprocess.TimeoutExpired):  # the connection closes first
            self._child.wait(END_SECONDS)
        return EvoengineError(f"the process that proposes configs ended with code {self._child.returncode}")


class ProposerProcess:
    """`Proposer` with the same arguments and the same answers, from a process that the first question begins.

    Raises (`ask` and `answer`):
        UserError: what `Proposer` raises.
        EvoengineError: the process ended.
    """

    def __init__(
        self,
        space: SearchSpace,
        feasible: FeasibleSet,
        *,
        sampler: str,
        seed: int,
        sources: Sequence[Source] = (),
    ) -> None:
        self.free: Counter[str] = Counter()
        self._told: dict[int, Seen] = {}
        self._process: _Process | None = None
        self._about = {
            "space": {
                "name": space.name,
                "axes": [asdict(axis) for axis in space.axes],
                "default": dict(space.default),
                "starts": [dict(start) for start in space.starts],
            },
            "feasible": feasible_document(feasible),
            "sampler": sampler,
            "seed": seed,
            "sources": [asdict(source) for source in sources],
        }

    def prepare(self) -> None:
        self._asked().tell({"prepare": True})

    def ask(self, seen: Iterable[Seen], n: int) -> None:
        news = [one for one in seen if self._told.get(one.number) != one]
        self._told.update({one.number: one for one in news})
        self._asked().tell({"seen": [asdict(one) for one in news], "count": n})

    def answer(self, *, wait: bool) -> list[Proposal] | None:
        answer = self._asked().said(wait=wait)
        if answer is None:
            return None
        if "error" in answer:
            raise UserError(answer["error"])
        self.free = Counter(answer["free"])
        return [typed(Proposal, one) for one in answer["proposals"]]

    def close(self) -> None:
        if self._process is not None:
            self._process.close()

    def _asked(self) -> _Process:
        if self._process is None:
            self._process = _Process()
            self._process.tell(self._about)
        return self._process


def main() -> None:
    """Answer what the connection, whose descriptor is the argument, asks until it is closed."""
    from evoengine.sampler.proposer import Proposer  # 0.4 s, which only the child needs

    with Connection(int(sys.argv[1])) as connection, suppress(EOFError, ConnectionError):
        try:
            about = json.loads(connection.recv_bytes())
            told = about["space"]
            axes = tuple(typed(Axis, one) for one in told["axes"])
            space = SearchSpace(told["name"], axes, (), told["default"], tuple(told["starts"]))
            sources = [typed(Source, one) for one in about["sources"]]
            feasible = as_feasible(about["feasible"])
            proposer = Proposer(space, feasible, sampler=about["sampler"], seed=about["seed"], sources=sources)
            while True:
                asked = json.loads(connection.recv_bytes())
                if "prepare" in asked:
                    proposer.prepare()
                    continue
                proposer.observe(typed(Seen, one) for one in asked["seen"])
                proposals = [asdict(one) for one in proposer.propose(asked["count"])]
                connection.send_bytes(json.dumps({"proposals": proposals, "free": proposer.free}).encode())
        except UserError as error:
            connection.send_bytes(json.dumps({"error": str(error)}).encode())


if __name__ == "__main__":
    main()
