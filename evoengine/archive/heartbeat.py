"""The lease of a session is renewed while its process is busy with one long step."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from evoengine.archive.study import Study
from evoengine.errors import UserError

BEAT_SECONDS = 5.0
"""Between two looks at whether it is time to renew."""


@contextmanager
def kept(study: Study) -> Iterator[None]:
    """Keep the study meanwhile, from a thread: a float64 reference may take half an hour, a final run of many shapes
    minutes. What goes wrong there is found by the next write of the process itself."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_SECONDS):
            with suppress(UserError):
                study.keep()

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
