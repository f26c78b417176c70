"""The GPU as a judge: one killable worker process per card proves candidates correct and then times them.

Importing this package costs no torch and no CUDA; both live in the worker alone.
"""

from evoengine.devices.cuda.device import CudaDevice
from evoengine.devices.cuda.probe import Gpu, find_gpu, find_gpus
from evoengine.devices.cuda.results import BaselineTiming, Final, Finals, Setup

__all__ = ["BaselineTiming", "CudaDevice", "Final", "Finals", "Gpu", "Setup", "find_gpu", "find_gpus"]
