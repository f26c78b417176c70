"""Candidates to artifacts: what the engine sees of compiling."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import weakref
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from itertools import chain
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
from evoengine.build.compiling import Compiling, Limits, lasts
from evoengine.build.log import LOG_TAIL_CHARS, failure, out_of_memory, resource_usage
from evoengine.build.requests import BuildRequest, gathered
from evoengine.build.shared import Store, unpack
from evoengine.build.toolchain import Compiler, find_toolchain
from evoengine.errors import EvoengineError
from evoengine.template import Template
from evoengine.verdict import Artifact, Gate, Rejection


class Building(Iterator[tuple[int, Artifact | Rejection]]):
    """Builds that have begun: an index and its result at a time."""

    def __init__(self, results: Iterator[tuple[int, Artifact | Rejection]], compiling: Compiling | None) -> None:
        self._results = results
        self._compiling = compiling

    def __next__(self) -> tuple[int, Artifact | Rejection]:
        return next(self._results)

    def close(self) -> None:
        """Kill what still runs."""
        if self._compiling is not None:
            self._compiling.close()


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
        self._slots = os.memfd_create("slots")
        weakref.finalize(self, os.close, self._slots)  # builders are not always closed
        self._compiling: weakref.WeakSet[Compiling] = weakref.WeakSet()
        self.store: Store | None = None
        self._lock = CacheLock(self.home)
        self._closed = False

    @property
    def unfinished(self) -> int:
        """Compiles that were begun and have not ended, of all streams; `jobs` of them run, the others wait."""
        return sum(compiling.unfinished for compiling in self._compiling)

    def check_cache(self) -> None:
        """Whether anything can be built, before something is begun for it.

        Raises:
            UserError: the cache folder cannot be made or written to.
        """
        work_folder(self.home).rmdir()

    def build(self, requests: Sequence[BuildRequest]) -> list[Artifact | Rejection]:
        """Build all requests; results in the order of the requests. Raises what `stream` raises."""
        with closing(self.stream(requests)) as building:
            results = dict(building)
        return [results[index] for index in range(len(requests))]

    def stream(self, requests: Sequence[BuildRequest]) -> Building:
        """Begin to build all requests; the index of each with its result as soon as that is known, cached ones first.

        The compilers go on while the caller is busy with something else. Of several streams at once `jobs` compiles run
        at a time. Closing the iterator kills what still runs of it.

        Raises:
            TemplateError: kernel.cu lacks a macro or its entry function: no config of this template can be built.
            UserError: the compiler cannot work here (architecture, host compiler), or the cache folder cannot be
                written to.
        """
        self._lock.share()  # until `close`: what was built is read again to be timed and exported
        parts = [one for request in requests for one in request.parts]
        cached: list[tuple[int, Artifact | Rejection]] = []
        to_build: dict[str, list[int]] = {}
        for index, request in enumerate(parts):
            digest = self._digest(request)
            try:
                result = read_result(entry_folder(self.home, digest))
            except PermissionError as error:
                raise unusable(self.home, error) from error
            if result is None:
                to_build.setdefault(digest, []).append(index)
            else:
                cached.append((index, self._judge(digest, result, request.smem_bytes, cached=True)))
        for digest, result in self._fetched(to_build):
            for index in to_build.pop(digest):
                cached.append((index, self._judge(digest, result, parts[index].smem_bytes, cached=True)))
        if not to_build:
            return Building(gathered(requests, cached), None)
        if self._closed:
            raise EvoengineError("the builder is closed")
        options = {
            digest: [f"-D{name}={value}" for name, value in parts[indices[0]].defines.items()]
            for digest, indices in to_build.items()
        }
        elsewhere = self.unfinished
        limits = Limits(self.deadline_seconds, self.memory_bytes, self.jobs, self._slots)
        compiling = Compiling(
            self.home,
            self.template.device_sources,
            self.toolchain,
            self._command,
            self.arch,
            limits,
            options,
            elsewhere,
            self.store,
        )
        self._compiling.add(compiling)

        def compiled() -> Iterator[tuple[int, Artifact | Rejection]]:
            for digest, result in compiling:
                for index in to_build[digest]:
                    yield index, self._judge(digest, result, parts[index].smem_bytes, cached=False)

        return Building(gathered(requests, chain(cached, compiled())), compiling)

    def close(self) -> None:
        """Kill whatever runs. A `build` in another thread then raises EvoengineError."""
        self._closed = True
        for compiling in list(self._compiling):
            compiling.interrupt()
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

    def _fetched(self, digests: Collection[str]) -> list[tuple[str, Result]]:
        """What other machines have built; what is not whole is built again."""
        if self.store is None or not digests:
            return []
        packed, found = self.store.fetch(digests), []
        work = work_folder(self.home)
        try:
            for digest, content in packed.items():
                result = unpack(content, work / digest)
                if result is not None and lasts(result, self.toolchain.version, self.arch):
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
