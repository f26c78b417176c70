"""Several machines on one study: links cut, a worker shot, the database restarted, clocks that are off by minutes.

    python -m benchmarks.trust.hosts --output FILE [--budget N]

Needs root for network namespaces, and PostgreSQL's programs; no GPU. Each machine has a namespace of its own, and talks
to a real server over TLS, with a password that must be seen nowhere.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import text

from benchmarks.trust import replayed
from benchmarks.trust.database import environment
from benchmarks.trust.document import put_section
from benchmarks.trust.joined import Orders
from benchmarks.trust.network import Machine, machines
from benchmarks.trust.server import Server, server
from evoengine.archive.archive import Archive
from evoengine.verdict import is_paid

ROOT = Path(__file__).parents[2]
STUDY = "hosts"
PASSWORD = "correct-horse-battery"
SKEWS = {"gpu1": 600.0, "gpu2": -600.0, "gpu3": 0.0, "cpu1": 300.0}
"""Seconds by which each machine's clock is off; `cpu1` builds for the others."""
LEASE_SECONDS = 6.0
END_SECONDS = 240.0
"""Patience with the whole, which takes 45 s on two quiet cores at the budget of a test."""


@dataclass(frozen=True)
class Plan:
    """`verdict_seconds` is what a verdict takes on every machine: so that there is something in flight to lose."""

    budget: int = 200
    verdict_seconds: float = 0.3


@dataclass
class Fate:
    """What became of the study.

    `lost`: verdicts whose commit came back and that the study does not have. `doubled`: configs, trial numbers and
    final verdicts beyond one each, and `twice` says which. `stale_seconds`: for how long what a vanished machine had in
    flight was kept from the others. `exposed`: places where the password was seen.
    """

    machines: int = 0
    trials: int = 0
    budget: int = 0
    spent: int = 0
    lost: int = 0
    doubled: int = 0
    twice: list[str] = field(default_factory=list)
    unfinished: int = 0
    final_runs: int = 0
    helped: int = 0
    lease_seconds: float = LEASE_SECONDS
    stale_seconds: dict[str, float] = field(default_factory=dict)
    exposed: list[str] = field(default_factory=list)
    connections_without_tls: int = 0
    exit_codes: dict[str, int] = field(default_factory=dict)

    @property
    def well(self) -> bool:
        """Whether it is what it would be had nothing befallen the machines."""
        wrong = (self.lost, self.doubled, self.unfinished, self.connections_without_tls, *self.exit_codes.values())
        return not any(wrong) and not self.exposed and self.final_runs == 1 and self.spent == self.budget


class Watch:
    """What can be seen of the study from outside: through the server's own socket, and in the process table."""

    def __init__(self, place: Server) -> None:
        self._engine = sqlalchemy.create_engine(place.socket, pool_pre_ping=True)
        self.exposed: set[str] = set()
        self.without_tls = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    @contextmanager
    def watching(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._over.set()
            self._thread.join()
            self._engine.dispose()

    def number(self, query: str, **values: Any) -> int:
        """The one number that a query gives; asked again while the server is away."""
        deadline = time.monotonic() + END_SECONDS
        while True:
            try:
                with self._engine.connect() as connection:
                    return int(connection.scalar(text(query), values) or 0)
            except sqlalchemy.exc.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def until(self, query: str, least: int) -> None:
        """Wait until the number is that large.

        Raises:
            RuntimeError: it does not come.
        """
        deadline = time.monotonic() + END_SECONDS
        while self.number(query) < least:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{query} stays under {least}")
            time.sleep(0.1)

    def _look(self) -> None:
        while not self._over.wait(0.2):
            self.without_tls = max(self.without_tls, self.number(WITHOUT_TLS))
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    words = (process / "cmdline").read_bytes()
                except OSError:
                    continue
                if PASSWORD.encode() in words:
                    self.exposed.add("the process list")


WITHOUT_TLS = (
    "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE NOT ssl AND client_addr IS NOT NULL"
)
VERDICTS = "SELECT count(*) FROM evo_verdict WHERE final"
AT = (
    "SELECT count(*) FROM evo_candidate c JOIN evo_session s ON s.id = c.session_id "
    "WHERE s.host = :host AND s.id <= :last "
    "AND NOT EXISTS (SELECT 1 FROM evo_verdict v WHERE v.candidate_id = c.id AND v.final)"
)
BUSY = (
    "SELECT count(*) FROM evo_candidate c JOIN evo_session s ON s.id = c.session_id "
    "WHERE s.host = '{}' AND s.ended_at IS NULL "
    "AND NOT EXISTS (SELECT 1 FROM evo_verdict v WHERE v.candidate_id = c.id AND v.final)"
)
LAST = "SELECT max(id) FROM evo_session WHERE host = :host"


class Hosts:
    """The machines and their workers."""

    def __init__(self, net: Mapping[str, Machine], place: Server, folder: Path, plan: Plan, watch: Watch) -> None:
        self._net, self._place, self._folder, self._plan, self._watch = net, place, folder, plan, watch
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.stale_seconds: dict[str, float] = {}
        (folder / "cubins").mkdir()
        passwords = folder / "pgpass"
        passwords.write_text(f"*:*:*:*:{PASSWORD}\n")
        passwords.chmod(0o600)
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), "PGPASSFILE": str(passwords)}

    def start(self, name: str) -> None:
        orders = Orders(
            str(self._folder / f"{name}.verdicts"),
            str(self._folder / "cubins"),
            SKEWS[name],
            LEASE_SECONDS,
            self._plan.verdict_seconds,
        )
        helps = ["--no-gpu", "--ahead", "16"] if name.startswith("cpu") else []
        verb = ["worker", "--storage", self._place.url, "--study", STUDY, "--until-done", "--batch", "4", "--verbose"]
        home = {"EVOENGINE_HOME": str(self._folder / name)}
        log = self._folder / f"{name}.log"
        words = [*orders.words(), *verb, *helps]
        self.workers[name] = self._net[name].start(words, log, self._environment | home, ROOT)

    def vanish(self, name: str) -> threading.Thread:
        """Begin to measure how long the others leave alone what this machine has in flight now."""
        last = self._watch.number(LAST, host=name)
        gone = time.monotonic()

        def measure() -> None:
            while self._watch.number(AT, host=name, last=last) and time.monotonic() - gone < END_SECONDS:
                time.sleep(0.1)
            self.stale_seconds[name] = round(time.monotonic() - gone, 1)

        thread = threading.Thread(target=measure, daemon=True)
        thread.start()
        return thread

    def shoot(self, name: str) -> None:
        self.workers[name].send_signal(signal.SIGKILL)
        self.workers[name].wait()

    def end(self) -> dict[str, int]:
        """Exit codes.

        Raises:
            RuntimeError: one does not end.
        """
        deadline = time.monotonic() + END_SECONDS
        try:
            return {name: one.wait(max(deadline - time.monotonic(), 1)) for name, one in self.workers.items()}
        except subprocess.TimeoutExpired as error:
            raise RuntimeError("a worker does not end") from error
        finally:
            for one in self.workers.values():
                one.kill()
                one.wait()


def share(binaries: Path, folder: Path, plan: Plan) -> Fate:
    """Let the machines search one study, with all that befalls them, and hold the study against what they say."""
    fate = Fate(machines=len(SKEWS), budget=plan.budget)
    with ExitStack() as stack:
        net = stack.enter_context(machines(["db", *SKEWS]))
        place = stack.enter_context(server(net["db"], binaries, PASSWORD))
        with closing(Archive.open(place.socket)) as archive:
            archive.create_study(replayed.spec(STUDY, sampler="random", seed=0, budget=plan.budget))
        watch = Watch(place)
        stack.enter_context(watch.watching())
        hosts = Hosts(net, place, folder, plan, watch)
        stack.callback(hosts.end)
        for name in SKEWS:
            hosts.start(name)
        for name in SKEWS:
            watch.until(f"SELECT count(*) FROM evo_session WHERE host = '{name}'", 1)
        _befall(hosts, net, place, watch, plan)
        fate.exit_codes = hosts.end()
        fate.stale_seconds = hosts.stale_seconds
        _hold_against(fate, place, folder)
        fate.exposed = sorted(watch.exposed | set(_exposed(folder)))
        fate.connections_without_tls = watch.without_tls
    return fate


def _befall(hosts: Hosts, net: Mapping[str, Machine], place: Server, watch: Watch, plan: Plan) -> None:
    """One link is cut for longer than a lease, one worker shot, the server stopped, another link cut for a moment."""
    watch.until(VERDICTS, plan.budget // 8)
    watch.until(BUSY.format("gpu1"), 1)
    net["gpu1"].cut()
    cut = hosts.vanish("gpu1")
    cut_at = time.monotonic()
    watch.until(VERDICTS, plan.budget // 4)
    watch.until(BUSY.format("gpu2"), 1)
    hosts.shoot("gpu2")
    shot = hosts.vanish("gpu2")
    cut.join()
    time.sleep(max(0.0, cut_at + LEASE_SECONDS + 2 - time.monotonic()))
    net["gpu1"].restore()
    shot.join()
    hosts.start("gpu2")
    place.stop()
    time.sleep(2)
    place.start()
    net["cpu1"].cut()
    time.sleep(2)
    net["cpu1"].restore()


def _hold_against(fate: Fate, place: Server, folder: Path) -> None:
    said = [json.loads(line) for log in folder.glob("*.verdicts") for line in log.read_text().splitlines()]
    final = [(number, digest, kind) for number, digest, kind in said if kind != "Estimate"]
    with closing(Archive.open(place.socket)) as archive:
        records = archive.open_study(STUDY).records()
        with archive._database.engine.connect() as connection:
            fate.final_runs = connection.scalar(text("SELECT count(*) FROM evo_session WHERE finals = 'done'")) or 0
    known = {(one.number, one.config.digest, type(one.verdict).__name__) for one in records if one.state == "done"}
    fate.trials = len(records)
    fate.spent = sum(is_paid(one.verdict, one.twin_of) for one in records)
    fate.lost = sum(verdict not in known for verdict in final)
    there: dict[str, list[Any]] = {
        "config": [one.config.digest for one in records],
        "trial": [one.number for one in records],
        "said": final,
    }
    beyond_one = {name: Counter(found) - Counter(set(found)) for name, found in there.items()}
    fate.twice = [f"{name} {one}" for name, found in beyond_one.items() for one in found.elements()]
    fate.doubled = len(fate.twice)
    fate.unfinished = sum(one.state != "done" for one in records)
    fate.helped = sum(one.estimate is not None for one in records)


def _exposed(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "pgpass" and PASSWORD.encode() in path.read_bytes():
            yield path.name


def binaries() -> Path:
    """Of PostgreSQL, which Debian keeps off PATH.

    Raises:
        RuntimeError: it is not installed.
    """
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for place in places:
        if (place / "pg_ctl").exists():
            return place
    raise RuntimeError("PostgreSQL is not installed: apt install postgresql")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--budget", type=int, default=Plan.budget, metavar="N")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        fate = share(binaries(), Path(name), Plan(arguments.budget))
    print(json.dumps(dataclasses.asdict(fate), indent=1))
    version = subprocess.run([str(binaries() / "postgres"), "--version"], capture_output=True, text=True, check=True)
    on = environment(None) | {"postgresql": version.stdout.strip()}
    put_section(arguments.output, "hosts", dataclasses.asdict(fate), on)
    sys.exit(not fate.well)


if __name__ == "__main__":
    main()
