"""The worker process: `python -m evoengine.devices.cuda.worker ORDINAL FD`."""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection

from evoengine.devices.cuda.serve import Bench, Tell, serve


def main(ordinal: int, descriptor: int) -> None:
    def make_bench(tell: Tell) -> Bench:
        from evoengine.devices.cuda.bench import GpuBench  # imports torch and the driver, which may fail

        return GpuBench(ordinal, tell)

    serve(Connection(descriptor), make_bench)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
