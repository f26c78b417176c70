"""The worker's end of the connection: one request at a time, and an end with the parent's."""

from __future__ import annotations

import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Protocol

from evoengine.devices.cuda.messages import (
    Dropped,
    Hello,
    Judge,
    Judged,
    Open,
    Opened,
    Raced,
    Ready,
    Reply,
    Request,
    RunFinals,
    SetUp,
    Trouble,
    Working,
    decode_request,
    encode,
)
from evoengine.errors import TemplateError, UserError

Tell = Callable[[Working], None]


class FatalCudaError(Exception):
    """An error after which the context is unusable; `text` names it."""


class Tainted(Exception):
    """The control no longer gives its proven output here: an earlier candidate damaged this process."""


class Bench(Protocol):
    """What answers requests: the GPU bench, or a stand-in where a test needs faults on demand."""

    def hello(self) -> Hello: ...

    def open(self, request: Open) -> Opened: ...

    def set_up(self, request: SetUp) -> Ready: ...

    def judge(self, request: Judge) -> Judged: ...

    def run_finals(self, request: RunFinals) -> Raced | Dropped: ...


def serve(connection: Connection, make_bench: Callable[[Tell], Bench]) -> None:
    """Answer requests until the parent is gone, and no earlier: a signal that stops a whole service is the parent's to
    heed, which then finishes the verdict in flight.

    A thread waits on the connection, so that the process ends with its parent even while the main thread sits in a
    driver call that never returns; it makes no CUDA call itself.
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def listen() -> None:
        while True:
            try:
                inbox.put(connection.recv_bytes())
            except (EOFError, OSError):
                os._exit(0)  # sys.exit would wait for the main thread

    def send(reply: Reply) -> None:
        connection.send_bytes(encode(reply))

    threading.Thread(target=listen, daemon=True).start()
    try:
        bench = make_bench(send)
        send(bench.hello())
    except Exception as error:
        send(_trouble(error))
        return
    while True:
        request = decode_request(inbox.get())
        try:
            send(_answer(bench, request))
        except Exception as error:
            send(_trouble(error))
            if isinstance(error, FatalCudaError):
                os._exit(1)  # a dead context can hang the interpreter's orderly exit


def _answer(bench: Bench, request: Request) -> Reply:
    match request:
        case Open():
            return bench.open(request)
        case SetUp():
            return bench.set_up(request)
        case Judge():
            return bench.judge(request)
        case RunFinals():
            return bench.run_finals(request)


def _trouble(error: Exception) -> Trouble:
    detail = "".join(traceback.format_exception(error))
    match error:
        case FatalCudaError():
            return Trouble("cuda", str(error), detail)
        case Tainted():
            return Trouble("tainted", str(error))
        case TemplateError():
            return Trouble("template", str(error), detail)
        case UserError():
            return Trouble("user", str(error))
    return Trouble("bug", f"{type(error).__name__}: {error}", detail)
