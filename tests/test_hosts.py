"""Several machines on one study, each in a network namespace of its own, with a real PostgreSQL server over TLS."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.trust import hosts, network
from benchmarks.trust.server import Server, server

pytestmark = [pytest.mark.postgres, pytest.mark.usefixtures("no_orphans")]
ROOT = Path(__file__).parent.parent
PLAN = hosts.Plan(budget=48, verdict_seconds=0.2)
SPARE_SECONDS = 15.0
"""Beyond the lease, until another machine has finished what a vanished one had in flight: a batch of its own before it
looks, four verdicts, and what two busy cores make of that."""


@pytest.fixture(scope="module", autouse=True)
def possible() -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'evoengine[test]'")
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here, for the server's certificate")
    if reason := network.why_not():
        pytest.skip(reason)


def test_nothing_is_lost_or_done_twice(tmp_path: Path) -> None:
    """A link is cut for longer than a lease, a worker shot, the server crashed; clocks are off by ten minutes."""
    fate = hosts.share(hosts.binaries(), tmp_path, PLAN)

    assert [0, 0, 0, 0] == list(fate.exit_codes.values()), fate
    assert (0, 0, 0) == (fate.lost, fate.doubled, fate.unfinished), fate
    assert PLAN.budget == fate.spent
    assert 1 == fate.final_runs
    assert fate.helped
    assert {"gpu1", "gpu2"} == fate.stale_seconds.keys()
    assert max(fate.stale_seconds.values()) <= fate.lease_seconds + SPARE_SECONDS
    assert [] == fate.exposed
    assert 0 == fate.connections_without_tls


@pytest.fixture(scope="module")
def net() -> Iterator[dict[str, network.Machine]]:
    with network.machines(["db", "client"]) as made:
        yield made


@pytest.fixture(scope="module")
def place(net: dict[str, network.Machine]) -> Iterator[Server]:
    with server(net["db"], hosts.binaries(), hosts.PASSWORD) as made:
        yield made


class TestConnection:
    """What of TLS and of credentials is libpq's is libpq's here, too."""

    def studies(
        self, net: dict[str, network.Machine], url: str, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "evoengine", "studies", "--storage", url]
        bare = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return subprocess.run(
            net["client"].command(words),
            env=bare | {"PYTHONPATH": str(ROOT)} | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def test_a_service_file_says_all(self, net: dict[str, network.Machine], place: Server, tmp_path: Path) -> None:
        service = tmp_path / "services"
        lines = ["[evo]", f"host={net['db'].address}", "user=evo", "dbname=studies", f"password={hosts.PASSWORD}"]
        service.write_text("\n".join([*lines, "sslmode=verify-full", f"sslrootcert={place.certificate}"]) + "\n")
        ran = self.studies(net, "postgresql+psycopg:///?service=evo", PGSERVICEFILE=str(service))

        assert (0, "") == (ran.returncode, ran.stderr)

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ("sslmode=verify-full", "sslmode=disable"),
            ("root.crt", "server.key"),
            ("evo@", "nobody@"),
        ],
    )
    def test_what_does_not_fit_is_refused_in_one_line_without_the_password(
        self, net: dict[str, network.Machine], place: Server, change: str, reason: str
    ) -> None:
        url = place.url.replace(change, reason)
        ran = self.studies(net, url, PGPASSWORD=hosts.PASSWORD)

        assert 2 == ran.returncode
        assert 1 == len(ran.stderr.splitlines()), ran.stderr
        assert ran.stderr.startswith(f"evoengine: database postgresql+psycopg://{url.split('://')[1].split('@')[0]}@")
        assert hosts.PASSWORD not in ran.stderr

    def test_a_wrong_password_is_not_tried_again(self, net: dict[str, network.Machine], place: Server) -> None:
        ran = self.studies(net, place.url, PGPASSWORD="wrong-one")

        assert 2 == ran.returncode
        assert "password authentication failed" in ran.stderr
        assert "wrong-one" not in ran.stderr
