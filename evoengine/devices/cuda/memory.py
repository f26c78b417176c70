"""Whose fault it is that there is no device memory: the candidate's that wants too much, or another process's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from evoengine.devices.cuda.driver import CudaError
from evoengine.devices.cuda.serve import FatalCudaError
from evoengine.errors import UserError

MEMORY_ERRORS = ("CUDA_ERROR_OUT_OF_MEMORY", "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES")
"""What the driver says where a kernel's local memory cannot be had."""
REMEDY = "end it, or wait for it"


def check_not_taken(error: CudaError, card: str, free_bytes: int, room_bytes: int) -> None:
    """Let a refusal for want of memory count where most of the `room_bytes` that were free at the start still are.

    Raises:
        UserError: less than half of them are.
    """
    if error.name in MEMORY_ERRORS and free_bytes < room_bytes / 2:
        free, room = free_bytes / 2**30, room_bytes / 2**30
        left = f"of {room:.1f} GiB that were free are {free:.1f} left"
        raise UserError(f"another process has taken the memory of {card}, {left}: {REMEDY}") from error


@contextmanager
def room_for_a_context() -> Iterator[None]:
    """Torch and the driver say in many ways that not even their own memory is there, or that there is no context.

    Raises:
        UserError: in place of any of the first kind.
        FatalCudaError: in place of the others: another process may get what this one did not.
    """
    try:
        yield
    except (RuntimeError, CudaError) as error:
        if "out of memory" not in str(error).lower().replace("_", " "):
            raise FatalCudaError(f"no context on this GPU: {error}") from error
        raise UserError(f"another process has taken the memory of this GPU: {REMEDY}") from error
