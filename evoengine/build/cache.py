"""The folder of builds: a build's digest names a folder that appears in one rename and is verified on every read."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evoengine.errors import UserError

ABANDONED_SECONDS = 24 * 3600
"""No batch lives for a day, so a work folder that old belonged to a process that was killed."""


def cache_home() -> Path:
    """$EVOENGINE_HOME, else $XDG_CACHE_HOME/evoengine, else ~/.cache/evoengine."""
    if home := os.environ.get("EVOENGINE_HOME"):
        return Path(home).expanduser().absolute()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "evoengine"
    return Path.home() / ".cache" / "evoengine"


def entry_folder(home: Path, digest: str) -> Path:
    return home / "builds" / digest[:2] / digest


@dataclass(frozen=True, slots=True)
class Result:
    """What is left of one compile: the fields of result.json (see worker.py), and "lost" where no worker wrote one."""

    outcome: Literal["exited", "killed", "deadline", "lost"]
    code: int
    seconds: float
    peak_bytes: int
    log: str
    cubin_sha256: str

    @property
    def built(self) -> bool:
        return self.outcome == "exited" and self.code == 0


def read_result(folder: Path) -> Result | None:
    """The result in `folder`, or None where there is none or any byte of it is not what the worker wrote.

    Hashing a cubin costs 0.1 ms; in return nothing has to be flushed to disk when it is published, because what a
    power cut leaves behind is noticed here.

    Raises:
        PermissionError: the entry cannot be read.
    """
    try:
        record = json.loads((folder / "result.json").read_bytes())
        contents = {name: (folder / name).read_bytes() for name in record["sha256"]}
        result = Result(
            outcome=record["outcome"],
            code=int(record["code"]),
            seconds=float(record["seconds"]),
            peak_bytes=int(record["peak_bytes"]),
            log=contents.get("build.log", b"").decode(errors="replace"),
            cubin_sha256=record["sha256"].get("kernel.cubin", ""),
        )
    except PermissionError:  # another user's cache: rebuilding would not help
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if any(hashlib.sha256(contents[name]).hexdigest() != sha256 for name, sha256 in record["sha256"].items()):
        return None
    if result.built and not {"build.log", "kernel.cubin", "kernel.ptx"} <= contents.keys():
        return None
    return result


def publish(work: Path, final: Path) -> None:
    """Make a finished build visible in one rename.

    Losing the race to a twin is success. A damaged entry in the way is moved aside first; between the two renames the
    entry is absent, which a reader takes for a build still to be done.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            work.rename(final)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if read_result(final) is not None:
            return
        with contextlib.suppress(FileNotFoundError):  # a twin has moved it aside, or is just publishing its own
            final.rename(work.with_name(f"{work.name}.damaged"))


def work_folder(home: Path) -> Path:
    """A new private folder on the cache's own file system, so that publishing from it is a rename.

    Raises:
        UserError: the cache folder cannot be made or written to.
    """
    parent = home / "work"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for left in parent.iterdir():
            with contextlib.suppress(FileNotFoundError):  # its owner has just finished
                if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                    shutil.rmtree(left, ignore_errors=True)
        return Path(tempfile.mkdtemp(dir=parent))
    except OSError as error:
        raise unusable(home, error) from error


class CacheLock:
    """Keeps `prune` away from builds that are made or used; the system ends it with its process.

    Any number of builders share it. Where the cache cannot be written to there is nothing to lock, nor to prune.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._held: weakref.finalize[[int], CacheLock] | None = None

    def share(self) -> None:
        """Wait for a `prune` under way, and keep others out until `close`."""
        if self._held is None:
            with contextlib.suppress(OSError):
                self._home.mkdir(parents=True, exist_ok=True)
                self._hold(fcntl.LOCK_SH)

    def take(self) -> None:
        """Keep every builder out until `close`.

        Raises:
            UserError: one uses the cache, or the cache cannot be written to.
        """
        try:
            self._hold(fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"the cache folder {self._home} is in use by another evoengine: wait for it or stop it, then try again"
            ) from None
        except OSError as error:
            raise unusable(self._home, error) from error

    def close(self) -> None:
        if self._held is not None:
            self._held()
            self._held = None

    def _hold(self, operation: int) -> None:
        descriptor = os.open(self._home / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        self._held = weakref.finalize(self, os.close, descriptor)  # builders are not always closed
        try:
            fcntl.flock(descriptor, operation)
        except OSError:
            self.close()
            raise


def unusable(home: Path, error: OSError) -> UserError:
    """The one line for a cache folder that is read-only, full or in the way."""
    return UserError(
        f"cannot use the cache folder {home} ({error.strerror or error}): "
        "make room there, or set EVOENGINE_HOME to a folder of your own"
    )
