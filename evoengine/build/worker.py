"""Compiles the candidates of one ninja edge, each in a child process of its own with a deadline.

Run as a script, `worker.py CHUNK.json CHANNEL_FD SLOTS_FD`, with the batch's work folder as current folder (or with
`--identify-nvrtc`, to print what tells one NVRTC from another, and where it is). It imports nothing of evoengine or
outside the standard library, and neither pathlib nor socket, which take 9 ms; NVRTC is called through ctypes. A start
costs 40 ms of CPU that way, with cuda-bindings 125, and a compile 500. Each compile is a fork, which can crash, hang or
be killed alone.

Several batches may be compiled at once. A compile takes one of as many slots as there are jobs: a byte of the file
behind SLOTS_FD that it locks. The system frees the locks of a worker that dies.

For each candidate it leaves, in the candidate's folder, build.log, kernel.cubin and kernel.ptx (where the compile
succeeded) and last of all result.json:

    outcome     "exited" | "killed" (by a signal) | "deadline"
    code        exit code, or the number of the signal
    seconds     wall time of the compile
    peak_bytes  the most memory that the compiler, or any one process it started, had in use
    sha256      file name -> hex digest, of every other file

Then it sends "done FOLDER" through the channel, a socket that the engine holds the other end of. "os_error TEXT" (disk
full, say) and "traceback TEXT" are the other messages: not the candidate's fault, and the worker's last words. The
channel is also the lifeline: it reads as closed when the engine is gone, kill -9 included, and the worker then kills
its child and leaves.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

PR_SET_PDEATHSIG = 1  # linux/prctl.h
MESSAGE_CHARS = 2000
# Compilers leave the cores to whoever judges meanwhile: a verdict on an H200 took 40 ms on 16 idle cores, 63 beside 16
# busy processes, 45 beside 16 nice ones.
NICE = 10
SLOT_SECONDS = 0.005
"""Between two looks for a free slot: a hundredth of a compile is lost at most."""
NVRTC_SUCCESS, NVRTC_ERROR_COMPILATION = 0, 6  # nvrtc.h, nvrtcResult
NVCC_FLAG_VARIABLES = ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS")

Compile = Callable[[list[str], str], int]
"""Options and the candidate's folder to an exit code."""


def main() -> None:
    if sys.argv[1:] == ["--identify-nvrtc"]:
        identify_nvrtc()
        return
    channel = int(sys.argv[2])
    os.set_inheritable(channel, False)
    # ninja passes an interrupt on as a signal to the worker's process group; the compile is in a group of its own.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with last_words(channel):
        with open(sys.argv[1]) as file:
            chunk = json.load(file)
        serve(chunk, channel, int(sys.argv[3]))


@contextlib.contextmanager
def last_words(channel: int) -> Iterator[None]:
    """Tell the engine what went wrong in a worker or its child, and exit."""
    try:
        yield
    except OSError as error:
        os.write(channel, f"os_error {error}".encode())
        os._exit(os.EX_SOFTWARE)
    except Exception:
        import traceback  # 10 ms, which no worker pays that does well

        os.write(channel, f"traceback {traceback.format_exc()[-MESSAGE_CHARS:]}".encode())
        os._exit(os.EX_SOFTWARE)


def serve(chunk: dict[str, Any], channel: int, slots: int) -> None:
    os.nice(NICE)
    compile_one = nvrtc_compile(chunk["nvrtc"]) if chunk["compiler"] == "nvrtc" else nvcc_compile
    for folder, defines in chunk["candidates"].items():
        os.makedirs(folder, exist_ok=True)  # ninja has made it, being the folder of an output
        log = os.memfd_create("build.log")  # in memory, so that a full disk cannot swallow what the compiler says of it
        slot = take_slot(slots, chunk["jobs"], channel)
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            with last_words(channel):
                os._exit(child(compile_one, [*chunk["command"], *defines], folder, log, chunk["memory_bytes"]))
        outcome, code, peak_bytes = wait(pid, chunk["deadline_seconds"], channel)
        seconds = time.monotonic() - started
        fcntl.lockf(slots, fcntl.LOCK_UN, 1, slot)
        if (outcome, code) == ("exited", os.EX_SOFTWARE):
            sys.exit(code)  # the child has said why
        with open(log, "rb") as written:
            written.seek(0)
            write(f"{folder}/build.log", written.read())
        collect_ptx(folder)
        sha256 = {name: hashlib.sha256(read(f"{folder}/{name}")).hexdigest() for name in sorted(os.listdir(folder))}
        result = {"outcome": outcome, "code": code, "seconds": round(seconds, 3), "peak_bytes": peak_bytes}
        write(f"{folder}/result.json", json.dumps(result | {"sha256": sha256}).encode())
        os.write(channel, f"done {folder}".encode())


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def write(path: str, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


def take_slot(slots: int, jobs: int, channel: int) -> int:
    """Wait for a free slot and lock it. Leaves the worker when the engine is gone.

    One worker looks, the others sleep until it is their turn, which is the byte behind the slots: looking took 2 % of a
    busy core, and a dozen may wait.
    """
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    fcntl.lockf(slots, fcntl.LOCK_EX, 1, jobs)
    look_after_seconds = 0.0
    while not poll.poll(look_after_seconds * 1000):
        for slot in range(jobs):
            with contextlib.suppress(BlockingIOError):
                fcntl.lockf(slots, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
                fcntl.lockf(slots, fcntl.LOCK_UN, 1, jobs)
                return slot
        look_after_seconds = SLOT_SECONDS
    sys.exit("the engine is gone")


def wait(pid: int, deadline_seconds: float, channel: int) -> tuple[str, int, int]:
    """How the child ended: outcome, code, peak_bytes. Leaves the worker when the engine is gone; the child never
    outlives this call."""
    with contextlib.suppress(PermissionError, ProcessLookupError):
        os.setpgid(pid, pid)  # the child does it too: whoever is first, the group exists before it can be killed
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(channel, select.POLLIN)
    try:
        ready = {fd for fd, _ in poll.poll(deadline_seconds * 1000)}
    finally:  # also on the way out of a signal handler
        os.killpg(pid, signal.SIGKILL)  # after a normal end this reaches what the compiler driver left behind, if any
        _, status, usage = os.wait4(pid, 0)
        os.close(pidfd)
    if channel in ready:
        sys.exit("the engine is gone")
    peak_bytes = usage.ru_maxrss * 1024
    if not ready:
        return "deadline", 0, peak_bytes
    code = os.waitstatus_to_exitcode(status)
    return ("killed", -code, peak_bytes) if code < 0 else ("exited", code, peak_bytes)


def child(compile_one: Compile, arguments: list[str], folder: str, log: int, memory_bytes: int) -> int:
    """The forked half, all of whose output goes to `log`. Returns the exit code, unless it becomes nvcc or dies."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a worker that is shot takes its compile along
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(log, 1)
    os.dup2(log, 2)  # where LLVM says why it aborts
    try:
        return compile_one(arguments, folder)
    except MemoryError:
        os.write(log, b"out of memory\n")
        return 1


def identify_nvrtc() -> None:
    """Print the path of the library, and what heads every PTX: the full version and the build, where nvrtcVersion()
    stops at 13.0."""
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:  # cuda-pathfinder's DynamicLibNotFoundError is a RuntimeError
        sys.exit(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
    mapped = [line.rstrip().split(maxsplit=5) for line in read("/proc/self/maps").decode().splitlines()]
    library = next(fields[5] for fields in mapped if len(fields) == 6 and "/libnvrtc.so" in fields[5])
    found = Nvrtc(library)
    program = found.program(b'extern "C" __global__ void f() {}', b"identify.cu")
    status = found.compile(program, [])
    if status != NVRTC_SUCCESS:
        sys.exit(f"an empty kernel gives {found.name_of(status)}")
    lines = found.text(program, "PTX").decode().splitlines()
    print("\n".join([library, *(line for line in lines if line.startswith("// "))]))


class Nvrtc:
    """The functions of nvrtc.h that a compile needs."""

    def __init__(self, library: str) -> None:
        # NVRTC looks for its builtins by name alone: it finds those that are loaded.
        folder = os.path.dirname(library)
        for name in os.listdir(folder):
            if name.startswith("libnvrtc-builtins.so"):
                ctypes.CDLL(f"{folder}/{name}")
        self._library = ctypes.CDLL(library)
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def program(self, source: bytes, name: bytes) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        status = self._library.nvrtcCreateProgram(ctypes.byref(made), source, name, 0, None, None)
        if status != NVRTC_SUCCESS:
            raise MemoryError(self.name_of(status))  # nothing else can go wrong with a source of ours
        return made

    def compile(self, program: ctypes.c_void_p, options: list[bytes]) -> int:
        given: int = self._library.nvrtcCompileProgram(
            program, len(options), (ctypes.c_char_p * len(options))(*options)
        )
        return given

    def text(self, program: ctypes.c_void_p, kind: str) -> bytes:
        """One of the texts that a program holds: "ProgramLog", "CUBIN", "PTX". Terminating zeros are part of it."""
        size = ctypes.c_size_t()
        getattr(self._library, f"nvrtcGet{kind}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(self._library, f"nvrtcGet{kind}")(program, buffer)
        return buffer.raw

    def name_of(self, status: int) -> str:
        name: bytes = self._library.nvrtcGetErrorString(status)
        return name.decode()


def nvrtc_compile(library: str) -> Compile:
    """A function that compiles src/kernel.cu into a folder; the library is loaded here, once for the worker."""
    nvrtc = Nvrtc(library)
    source = read("src/kernel.cu")

    def compile_one(arguments: list[str], folder: str) -> int:
        program = nvrtc.program(source, b"kernel.cu")
        status = nvrtc.compile(program, [argument.encode() for argument in arguments])
        log = nvrtc.text(program, "ProgramLog").rstrip(b"\0")
        if status not in (NVRTC_SUCCESS, NVRTC_ERROR_COMPILATION):
            log += f"\nnvrtc returned {nvrtc.name_of(status)}\n".encode()
        with open(1, "wb", closefd=False) as output:
            output.write(log)
        if status != NVRTC_SUCCESS:
            return 1
        write(f"{folder}/kernel.cubin", nvrtc.text(program, "CUBIN"))
        write(f"{folder}/kernel.ptx", nvrtc.text(program, "PTX").rstrip(b"\0"))
        return 0

    return compile_one


def nvcc_compile(arguments: list[str], folder: str) -> NoReturn:
    """Become nvcc. --keep is how one run leaves the PTX beside the cubin, and all temporaries where we delete them."""
    keep = f"{folder}/keep"
    os.mkdir(keep)
    output = ["--keep", "--keep-dir", keep, "-o", f"{folder}/kernel.cubin", "src/kernel.cu"]
    # Options from the environment would change the cubin behind the digest's back.
    environment = {name: value for name, value in os.environ.items() if name not in NVCC_FLAG_VARIABLES}
    os.execve(arguments[0], [*arguments, *output], environment)


def collect_ptx(folder: str) -> None:
    """Of what nvcc kept, keep the PTX."""
    keep = f"{folder}/keep"
    if os.path.isdir(keep):
        if os.path.isfile(f"{keep}/kernel.ptx"):
            os.rename(f"{keep}/kernel.ptx", f"{folder}/kernel.ptx")
        import shutil  # 15 ms, which NVRTC's workers do not pay

        shutil.rmtree(keep)


if __name__ == "__main__":
    main()
