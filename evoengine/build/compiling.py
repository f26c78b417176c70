"""One batch under way: ninja over what the cache lacks, once more for what a dying worker took along."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evoengine.build.cache import Result, entry_folder, publish, read_result, unusable, work_folder
from evoengine.build.graph import NinjaRun, chunks
from evoengine.build.log import failure, out_of_memory
from evoengine.build.shared import Store, pack
from evoengine.build.toolchain import Toolchain
from evoengine.errors import EvoengineError


@dataclass(frozen=True, slots=True)
class Limits:
    """What one compile may take, how many run at a time, and the file whose locks count them over several batches."""

    deadline_seconds: float
    memory_bytes: int
    jobs: int
    slots: int


class Compiling:
    """Compiles that have begun: iterate over digests and their results, once.

    `sources` are the template's CUDA files by name, `options` maps a digest to the `-D` options of its compile, and
    `elsewhere` compiles of other batches wait for the same jobs. What will not change is published in the cache, and
    in `store` for other machines.

    Raises:
        UserError: the cache folder cannot be written to.
    """

    def __init__(
        self,
        home: Path,
        sources: Mapping[str, bytes],
        toolchain: Toolchain,
        command: Sequence[str],
        arch: str,
        limits: Limits,
        options: Mapping[str, Sequence[str]],
        elsewhere: int,
        store: Store | None,
    ) -> None:
        self._home = home
        self._toolchain = toolchain
        self._command = command
        self._arch = arch
        self._limits = limits
        self._waiting = dict(options)
        self._store = store
        self._interrupted = False
        self._run: NinjaRun | None = None
        self._work = work_folder(home)
        try:
            self._write(sources)
            self._start(chunks(list(self._waiting), limits.jobs, elsewhere))
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[tuple[str, Result]]:
        """
        Raises:
            TemplateError, UserError: as `Builder.stream`.
            EvoengineError: it was interrupted.
        """
        try:
            yield from self._finish()
            if self._waiting:
                # A worker that dies takes the rest of its chunk along. Alone on its edge, each one answers for itself.
                self._start([[digest] for digest in self._waiting])
                yield from self._finish()
            for digest in self._waiting:
                yield digest, Result("lost", 0, 0.0, 0, "", "")
        finally:
            self.close()

    @property
    def unfinished(self) -> int:
        """Compiles that have not ended yet, whether the results of the others were asked for or not."""
        if self._run is None:
            return 0
        return sum(not (self._work / digest / "result.json").exists() for digest in self._waiting)

    def interrupt(self) -> None:
        """Kill what runs. Safe to call from another thread, in which the iteration then raises EvoengineError."""
        self._interrupted = True
        if self._run is not None:
            self._run.interrupt()

    def close(self) -> None:
        """Kill what runs and sweep up."""
        if self._run is not None:
            self._run.close()
            self._run = None
        shutil.rmtree(self._work, ignore_errors=True)

    def _write(self, sources: Mapping[str, bytes]) -> None:
        """Into a folder of their own: what the digest does not cover cannot be included."""
        folder = self._work / "src"
        try:
            folder.mkdir()
            for name, content in sources.items():
                (folder / name).write_bytes(content)
        except OSError as error:
            raise unusable(self._home, error) from error

    def _start(self, chunked: Sequence[Sequence[str]]) -> None:
        """One pass over what waits."""
        for digest in self._waiting:
            shutil.rmtree(self._work / digest, ignore_errors=True)
        limits = self._limits
        try:
            self._run = NinjaRun(
                self._work,
                self._toolchain,
                self._command,
                self._waiting,
                chunked,
                limits.deadline_seconds,
                limits.memory_bytes,
                limits.jobs,
                limits.slots,
            )
        except OSError as error:
            raise unusable(self._home, error) from error

    def _finish(self) -> Iterator[tuple[str, Result]]:
        """To the end of the pass; what got a result waits no longer."""
        run = self._run
        if self._interrupted or run is None:
            raise EvoengineError("the builder is closed")
        for kind, text in run:
            if kind == "os_error":
                raise unusable(self._home, OSError(text))
            if kind == "traceback":
                raise RuntimeError(f"the compile worker failed:\n{text}")
            result = read_result(self._work / text)
            if result is not None:
                del self._waiting[text]
                self._keep(self._work / text, text, result)
                yield text, result
        run.close()
        if self._interrupted:
            raise EvoengineError("the builder was closed during a build")

    def _keep(self, folder: Path, digest: str, result: Result) -> None:
        """Publish a result that would be the same tomorrow, here and for other machines."""
        if not lasts(result, self._toolchain.version, self._arch):
            return
        final = entry_folder(self._home, digest)
        try:
            publish(folder, final)
            packed = b"" if self._store is None else pack(final)
        except OSError as error:
            raise unusable(self._home, error) from error
        if self._store is not None:
            self._store.keep(digest, packed)


def lasts(result: Result, version: str, arch: str) -> bool:
    """Whether it would be the same tomorrow, from this version of the compiler."""
    answered = result.outcome == "exited" and not out_of_memory(result.log)
    return result.built or (answered and failure(result.log, version, arch)[1])
