"""One evoengine per GPU: two processes that time on one card measure each other."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

from evoengine.errors import UserError


class GpuLock:
    """An exclusive lock on one card, held until `release` or the end of the process, kill -9 included.

    A flock on a file in the machine's temporary folder, not in a user's own: the card is shared by every user.

    Raises:
        UserError: another evoengine holds the card; the message names its process id.
    """

    def __init__(self, uuid: str) -> None:
        self.path = Path(tempfile.gettempdir()) / f"evoengine-{uuid}.lock"
        self._fd = _open(self.path)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise UserError(
                f"GPU {uuid} is in use by another evoengine, process {holder}: wait for it, stop it, or choose another "
                "card with CUDA_VISIBLE_DEVICES"
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        os.close(self._fd)


class SharedLock:
    """The lock of one card for all sessions of a process that are told to share it: taken by the first of them."""

    def __init__(self) -> None:
        self._lock: GpuLock | None = None

    def take(self, uuid: str) -> None:
        """Hold the card from now on.

        Raises:
            UserError: another evoengine holds it.
        """
        self._lock = self._lock or GpuLock(uuid)

    def release(self) -> None:
        """Free the card, if it is held."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _open(path: Path) -> int:
    """Writable for every user: whoever holds the lock writes its process id."""
    try:
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        os.fchmod(fd, 0o666)  # os.open's mode is cut by the umask
        return fd
