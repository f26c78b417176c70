"""A PostgreSQL server on a machine of its own, which talks TLS and wants a password; it can be stopped and started."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.trust.network import Machine

USER, NAME = "evo", "studies"


class Server:
    """`url` is for clients on other machines and holds no password; `socket` is for this one, whoever asks."""

    def __init__(self, machine: Machine, binaries: Path, folder: Path, password: str) -> None:
        self._machine = machine
        self._folder = folder
        account = next(a for name in ("postgres", "nobody") for a in pwd.getpwall() if a.pw_name == name)
        os.chown(folder, account.pw_uid, account.pw_gid)
        self._user: dict[str, Any] = {"cwd": folder, "user": account.pw_uid, "group": account.pw_gid}
        self._user |= {"extra_groups": [], "check": True, "stdout": subprocess.DEVNULL}
        ids = [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
        in_namespace = ["ip", "netns", "exec", machine.namespace, "setpriv", *ids]
        self._control = [*in_namespace, str(binaries / "pg_ctl"), "-D", str(folder / "db")]
        self.certificate = folder / "root.crt"
        self.url = (
            f"postgresql+psycopg://{USER}@{machine.address}/{NAME}?sslmode=verify-full&sslrootcert={self.certificate}"
        )
        self.socket = f"postgresql+psycopg://{USER}@/{NAME}?host={folder}"
        self._make(binaries, password)

    def _make(self, binaries: Path, password: str) -> None:
        secret = self._folder / "password"
        secret.write_text(password)
        secret.chmod(0o644)
        words = ["-D", "db", "-A", "trust", "-U", USER, f"--pwfile={secret}", "--no-sync", "-E", "UTF8"]
        subprocess.run([str(binaries / "initdb"), *words], **self._user)
        secret.unlink()
        subject = ["-subj", "/CN=evoengine test", "-addext", f"subjectAltName=IP:{self._machine.address}"]
        made = ["-newkey", "rsa:2048", "-nodes", "-keyout", "server.key", "-out", "root.crt", "-days", "2"]
        subprocess.run(["openssl", "req", "-x509", *made, *subject], stderr=subprocess.DEVNULL, **self._user)
        subprocess.run(["chmod", "600", "server.key"], **self._user)
        # The password over TLS for other machines, nothing over plain TCP; the socket is the test's own.
        (self._folder / "db" / "pg_hba.conf").write_text(
            "local all all trust\nhostssl all all 0.0.0.0/0 scram-sha-256\n"
        )

    def start(self) -> None:
        settings = {
            "listen_addresses": self._machine.address,
            "unix_socket_directories": self._folder,
            "ssl": "on",
            "ssl_cert_file": self.certificate,
            "ssl_key_file": self._folder / "server.key",
            "fsync": "off",
        }
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        log = str(self._folder / "log")
        words = [*self._control, "-w", "-l", log, "-o", options, "start"]
        subprocess.run(words, check=True, cwd=self._folder, stdout=subprocess.DEVNULL)

    def stop(self) -> None:
        """As a crash of its machine would."""
        words = [*self._control, "-m", "immediate", "stop"]
        subprocess.run(words, check=True, cwd=self._folder, stdout=subprocess.DEVNULL)


@contextmanager
def server(machine: Machine, binaries: Path, password: str) -> Iterator[Server]:
    """A running server with an empty database. `binaries` is the folder of PostgreSQL's own programs."""
    # A socket's path must be short, and the folder open to the server's user: pytest's tmp_path is neither.
    folder = Path(tempfile.mkdtemp(prefix="evo-pg-"))
    folder.chmod(0o755)
    try:
        made = Server(machine, binaries, folder, password)
        made.start()
        try:
            words = [str(binaries / "createdb"), "-h", str(folder), "-U", USER, NAME]
            subprocess.run(words, check=True)
            yield made
        finally:
            made.stop()
    finally:
        shutil.rmtree(folder)
