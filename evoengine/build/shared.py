"""Builds on their way between machines: packed with a hash, kept where all of them look, believed only if it fits."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import tarfile
import tempfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from evoengine.build.cache import Result, read_result
from evoengine.errors import UserError

LIMIT_BYTES = 1 << 30
"""Of all packed builds of a store; the oldest go first. A build of the attention template is 272 KB and packed 47 KB
(the median of 16 random configs), so these are 20,000 of them."""
FILES = ("result.json", "build.log", "kernel.cubin", "kernel.ptx")
UNPACKED_BYTES = 256 << 20
"""Of one build: a thousand times what one of the attention template has; more was not packed here."""
KEPT_BETWEEN_SWEEPS = 64
"""Of a store: its size is known only by asking for that of every build, which a network file system is slow at."""


class Store(Protocol):
    """Where packed builds are, by the digest of what they were made from."""

    def fetch(self, digests: Collection[str]) -> Mapping[str, bytes]:
        """Those that are there."""

    def keep(self, digest: str, packed: bytes) -> None:
        """Make one known to all; what is known already may stay."""


def pack(folder: Path) -> bytes:
    """A build as one compressed tar file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=6) as tar:
        for name in FILES:
            if (folder / name).is_file():
                entry = tarfile.TarInfo(name)
                content = (folder / name).read_bytes()
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def unpack(packed: bytes, folder: Path) -> Result | None:
    """Write a build into a new folder; None where any of it is not what a compile has left.

    Names and sizes are checked before anything is written, the SHA-256 of every file after.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as tar:
            entries = []
            while (entry := tar.next()) is not None:
                entries.append(entry)
                if not entry.isreg() or entry.name not in FILES or sum(one.size for one in entries) > UNPACKED_BYTES:
                    return None
            folder.mkdir()
            for entry in entries:
                content = tar.extractfile(entry)
                (folder / entry.name).write_bytes(b"" if content is None else content.read())
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError):
        return None
    return read_result(folder)


def checksum(digest: str, packed: bytes) -> str:
    """SHA-256 of a packed build and of the name it goes by, so that neither can be another's."""
    return hashlib.sha256(digest.encode() + b"\n" + packed).hexdigest()


@dataclass
class FolderStore:
    """A folder that every machine mounts. A file is a line with its checksum, then the packed build.

    Raises:
        UserError: the folder cannot be used.
    """

    folder: Path
    limit_bytes: int = LIMIT_BYTES
    _kept: int = 0

    def __post_init__(self) -> None:
        with self._usable():
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass

    def fetch(self, digests: Collection[str]) -> Mapping[str, bytes]:
        found = {}
        for digest in digests:
            with self._usable(), contextlib.suppress(FileNotFoundError):
                said, _, packed = self._path(digest).read_bytes().partition(b"\n")
                if said.decode(errors="replace") == checksum(digest, packed):
                    found[digest] = packed
        return found

    def keep(self, digest: str, packed: bytes) -> None:
        path = self._path(digest)
        with self._usable():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".draft-")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(checksum(digest, packed).encode() + b"\n" + packed)
                os.chmod(draft, 0o644)  # mkstemp's own mode would hide it from other users
                os.replace(draft, path)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(draft)
                raise
            if self._kept % KEPT_BETWEEN_SWEEPS == 0:
                self._sweep()
            self._kept += 1

    def _path(self, digest: str) -> Path:
        return self.folder / digest[:2] / digest

    def _sweep(self) -> None:
        """Remove the oldest until the rest is within the limit. Another machine may be at the same."""
        files = []
        for path in self.folder.glob("??/*"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        total = 0
        for _, size, path in sorted(files, reverse=True):
            total += size
            if total > self.limit_bytes:
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot use the shared cache {self.folder} ({error.strerror or error}): make room there, or give "
                "another with --cache"
            ) from error
