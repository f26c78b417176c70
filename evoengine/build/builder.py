"""Candidates to artifacts: what the engine sees of compiling."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Self

from evoengine.build.cache import (
    CacheLock,
    Result,
    cache_home,
    entry_folder,
    publish,
    read_result,
    unusable,
    work_folder,
)
from evoengine.build.graph import NinjaRun, chunks
from evoengine.build.log import LOG_TAIL_CHARS, failure, out_of_memory, resource_usage
from evoengine.build.requests import BuildRequest, gathered
from evoengine.build.shared import Store, pack, unpack
from evoengine.build.toolchain import Compiler, find_toolchain
from evoengine.errors import EvoengineError, UserError
from evoengine.template import Template
from evoengine.verdict import Artifact, Gate, Rejection


class Builder:
    """Compiles configs of one template for one architecture, on all cores, each at most once.

    A build is named by everything its cubin depends on: CUDA sources, macros, architecture, compiler and options.
    Cubins and compile errors are kept under that name; deadlines and crashes are not, because another day they may
    end differently.

    Args:
        jobs: compiles at a time; the cores this process may use by default.
        deadline_seconds: wall time of one compile before it is killed. The slowest attention tile takes
            0.8 s on a quiet core.
        memory_bytes: address space of one compile (of each of nvcc's processes), so that a runaway fails alone instead
            of driving the machine out of memory. The largest attention tile, 3.6 s of head_dim 256, maps 0.27 GiB in
            NVRTC, and 0.16 GiB in nvcc's cicc.
        home: the cache folder, `cache_home()` by default.

    `store`, where it is set, is where other machines look for builds, and this one for theirs.

    Raises:
        UserError: the compiler is not installed.
    """

    def __init__(
        self,
        template: Template,
        arch: str,
        *,
        compiler: Compiler = "nvrtc",
        jobs: int | None = None,
        deadline_seconds: float = 60.0,
        memory_bytes: int = 4 << 30,
        home: Path | None = None,
    ) -> None:
        self.template = template
        self.arch = arch
        self.toolchain = find_toolchain(compiler)
        self.jobs = jobs or len(os.sched_getaffinity(0))
        self.deadline_seconds = deadline_seconds
        self.memory_bytes = memory_bytes
        self.home = home or cache_home()
        self._command = self.toolchain.command(arch)
        self.store: Store | None = None
        self._run: NinjaRun | None = None
        self._lock = CacheLock(self.home)
        self._closed = False

    def build(self, requests: Sequence[BuildRequest]) -> list[Artifact | Rejection]:
        """Build all requests; results in the order of the requests. Raises what `stream` raises."""
        results = dict(self.stream(requests))
        return [results[index] for index in range(len(requests))]

    def stream(self, requests: Sequence[BuildRequest]) -> Generator[tuple[int, Artifact | Rejection], None, None]:
        """Build all requests; the index of each with its result as soon as that is known, cached ones first.

        The compilers go on while the caller is busy with a result. Closing the iterator kills what still runs.

        Raises:
            TemplateError: kernel.cu lacks a macro or its entry function: no config of this template can be built.
            UserError: the compiler cannot work here (architecture, host compiler), the cache folder cannot be written
                to, or the template's sources changed while it was in use.
        """
        self._lock.share()  # until `close`: what was built is read again to be timed and exported
        with closing(self._stream([one for request in requests for one in request.parts])) as results:
            yield from gathered(requests, results)

    def _stream(self, requests: Sequence[BuildRequest]) -> Generator[tuple[int, Artifact | Rejection], None, None]:
        to_build: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            digest = self._digest(request)
            try:
                result = read_result(entry_folder(self.home, digest))
            except PermissionError as error:
                raise unusable(self.home, error) from error
            if result is None:
                to_build.setdefault(digest, []).append(index)
            else:
                yield index, self._judge(digest, result, request.smem_bytes, cached=True)
        for digest, result in self._fetched(to_build):
            for index in to_build.pop(digest):
                yield index, self._judge(digest, result, requests[index].smem_bytes, cached=True)
        if not to_build:
            return
        defines = {digest: requests[indices[0]].defines for digest, indices in to_build.items()}
        with closing(self._compile(defines)) as compiled:
            for digest, result in compiled:
                for index in to_build[digest]:
                    yield index, self._judge(digest, result, requests[index].smem_bytes, cached=False)

    def close(self) -> None:
        """Kill whatever runs. A `build` in another thread then raises EvoengineError."""
        self._closed = True
        if self._run is not None:
            self._run.interrupt()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _digest(self, request: BuildRequest) -> str:
        """32 hex digits. The path of nvcc is not part of it: the toolchain's digest is."""
        options = self._command[1:] if self.toolchain.executable else self._command
        defines = sorted(request.defines.items())
        inputs = [self.template.device_digest, defines, self.arch, self.toolchain.digest, options]
        return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:32]

    def _compile(self, defines: Mapping[str, Mapping[str, int]]) -> Generator[tuple[str, Result], None, None]:
        """Compile what the cache lacks, publish what will not change, and hand out every digest once."""
        work = work_folder(self.home)
        try:
            self._snapshot(work / "src")
            waiting = {
                digest: [f"-D{name}={value}" for name, value in macros.items()] for digest, macros in defines.items()
            }
            yield from self._run_ninja(work, waiting, chunks(list(waiting), self.jobs))
            if waiting:
                # A worker that dies takes the rest of its chunk along. Alone on its edge, each one answers for itself.
                yield from self._run_ninja(work, waiting, [[digest] for digest in waiting])
            for digest in waiting:
                yield digest, Result("lost", 0, 0.0, 0, "", "")
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _snapshot(self, folder: Path) -> None:
        """Copy the CUDA sources: what the digest does not cover cannot be included, and an edit cannot slip in."""
        try:
            folder.mkdir()
            for path in self.template.sources:
                if path.suffix != ".py":
                    shutil.copyfile(path, folder / path.name)
        except OSError as error:
            raise unusable(self.home, error) from error
        if Template(folder, self.template.module).device_digest != self.template.device_digest:
            raise UserError(f"the sources in {self.template.folder} changed during the run: start the command again")

    def _run_ninja(
        self, work: Path, waiting: dict[str, list[str]], chunked: Sequence[Sequence[str]]
    ) -> Generator[tuple[str, Result], None, None]:
        """One pass over `waiting` (digest to `-D` options), which loses every digest that got a result."""
        for digest in waiting:
            shutil.rmtree(work / digest, ignore_errors=True)
        toolchain = self.toolchain.compiler
        try:
            limits = (self.deadline_seconds, self.memory_bytes, self.jobs)
            run = NinjaRun(work, toolchain, self._command, waiting, chunked, *limits)
        except OSError as error:
            raise unusable(self.home, error) from error
        with closing(run):
            self._run = run
            if self._closed:
                raise EvoengineError("the builder is closed")
            for kind, text in run:
                if kind == "os_error":
                    raise unusable(self.home, OSError(text))
                if kind == "traceback":
                    raise RuntimeError(f"the compile worker failed:\n{text}")
                result = read_result(work / text)
                if result is not None:
                    del waiting[text]
                    self._keep(work / text, text, result)
                    yield text, result
        if self._closed:
            raise EvoengineError("the builder was closed during a build")

    def _keep(self, folder: Path, digest: str, result: Result) -> None:
        """Publish a result that would be the same tomorrow, here and for other machines."""
        if not self._lasts(result):
            return
        final = entry_folder(self.home, digest)
        try:
            publish(folder, final)
            packed = b"" if self.store is None else pack(final)
        except OSError as error:
            raise unusable(self.home, error) from error
        if self.store is not None:
            self.store.keep(digest, packed)

    def _lasts(self, result: Result) -> bool:
        answered = result.outcome == "exited" and not out_of_memory(result.log)
        return result.built or (answered and failure(result.log, self.toolchain.version, self.arch)[1])

    def _fetched(self, digests: Collection[str]) -> list[tuple[str, Result]]:
        """What other machines have built; what is not whole is built again."""
        if self.store is None or not digests:
            return []
        packed, found = self.store.fetch(digests), []
        work = work_folder(self.home)
        try:
            for digest, content in packed.items():
                result = unpack(content, work / digest)
                if result is not None and self._lasts(result):
                    publish(work / digest, entry_folder(self.home, digest))
                    found.append((digest, result))
        except OSError as error:
            raise unusable(self.home, error) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return found

    def _judge(self, digest: str, result: Result, smem_bytes: int, cached: bool) -> Artifact | Rejection:
        if result.built:
            return Artifact(
                digest=digest,
                folder=entry_folder(self.home, digest),
                cubin_sha256=result.cubin_sha256,
                resources=resource_usage(result.log, self.template.module.ENTRY, smem_bytes),
                build_seconds=result.seconds,
                compiler=self.toolchain.version,
                arch=self.arch,
                cached=cached,
            )
        starved = out_of_memory(result.log)
        if result.outcome == "exited" and not starved:
            return failure(result.log, self.toolchain.version, self.arch)[0]
        evidence = {
            "compiler": self.toolchain.version,
            "arch": self.arch,
            "build_seconds": result.seconds,
            "peak_bytes": result.peak_bytes,
            "memory_bytes": self.memory_bytes,
            "log_tail": result.log[-LOG_TAIL_CHARS:],
        }
        if result.outcome == "deadline":
            reason = f"compile exceeded its deadline of {self.deadline_seconds:g} s"
            return Rejection(Gate.TIMEOUT, reason, evidence | {"deadline_seconds": self.deadline_seconds})
        if starved:
            used, limit = result.peak_bytes / 2**30, self.memory_bytes / 2**30
            reason = f"compiler out of memory: {used:.2f} GiB in use, it may map {limit:.3g} GiB"
            return Rejection(Gate.COMPILE, reason, evidence)
        if result.outcome == "killed":
            return Rejection(Gate.COMPILE, f"compiler killed by signal {result.code}", evidence)
        return Rejection(Gate.COMPILE, "compile worker died twice without a result", evidence)
