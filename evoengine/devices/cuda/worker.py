"""The worker process: `python -m evoengine.devices.cuda.worker CARD FD`; CARD is a CUDA ordinal or a UUID."""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection

from evoengine.devices.cuda.serve import Bench, Tell, serve


def main(card: str, descriptor: int) -> None:
    def make_bench(tell: Tell) -> Bench:
        from evoengine.devices.cuda.bench import GpuBench  # imports torch and the driver, which may fail
        from evoengine.devices.cuda.card import ordinal_of

        return GpuBench(ordinal_of(card), tell)

    serve(Connection(descriptor), make_bench)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
