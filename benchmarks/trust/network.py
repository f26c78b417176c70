"""Machines in network namespaces on this one: an address, a name, a process table and a cable of their own each.

All of them hang on a bridge in a namespace of its own, so that nothing that is sent can leave them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

NET = "198.51.100"
"""Addresses for examples (RFC 5737): nobody's."""
PROGRAMS = ("ip", "unshare", "setpriv")


def why_not() -> str:
    """Why there can be no namespaces here; empty where there can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"no {' and no '.join(missing)} here: apt install iproute2 util-linux"
    if os.getuid() != 0:
        return "network namespaces need root"
    name = f"evo-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no network namespaces here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return ""


@dataclass(frozen=True, slots=True)
class Machine:
    """One namespace. `port` is its end of the cable at the bridge."""

    name: str
    namespace: str
    address: str
    port: str
    hub: str

    def command(self, words: Sequence[str]) -> list[str]:
        """What runs `words` on this machine; shot, it takes them along."""
        named = f'hostname {self.name}; exec "$@"'
        isolated = ["unshare", "--uts", "--pid", "--kill-child", "--mount-proc"]
        return ["ip", "netns", "exec", self.namespace, *isolated, "sh", "-c", named, "sh", *words]

    def start(
        self, words: Sequence[str], log: Path, environment: Mapping[str, str], folder: Path
    ) -> subprocess.Popen[bytes]:
        """Both outputs go to `log`."""
        with log.open("ab") as output:
            return subprocess.Popen(
                self.command(words), stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, cwd=folder
            )

    def cut(self) -> None:
        """Pull the cable. Nobody is told: what is sent is lost."""
        _ip("-n", self.hub, "link", "set", self.port, "down")

    def restore(self) -> None:
        _ip("-n", self.hub, "link", "set", self.port, "up")


@contextmanager
def machines(names: Sequence[str]) -> Iterator[dict[str, Machine]]:
    """Machines by name, all on one bridge.

    Raises:
        RuntimeError: this machine cannot have them.
    """
    if reason := why_not():
        raise RuntimeError(reason)
    mark = f"evo{os.getpid()}"
    hub = f"{mark}-hub"
    with ExitStack() as stack:
        _namespace(hub, stack)
        _ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        _ip("-n", hub, "link", "set", "bridge", "up")
        found = {}
        for number, name in enumerate(names, start=1):
            machine = Machine(name, f"{mark}-{name}", f"{NET}.{number}", f"port{number}", hub)
            _namespace(machine.namespace, stack)
            peer = ("peer", "name", "cable", "netns", machine.namespace)
            _ip("-n", hub, "link", "add", machine.port, "type", "veth", *peer)
            _ip("-n", hub, "link", "set", machine.port, "master", "bridge", "up")
            _ip("-n", machine.namespace, "address", "add", f"{machine.address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                _ip("-n", machine.namespace, "link", "set", device, "up")
            found[name] = machine
        yield found


def _namespace(name: str, stack: ExitStack) -> None:
    _ip("netns", "add", name)
    stack.callback(_ip, "netns", "del", name)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
