"""A SIMT interpreter for the PTX that NVRTC and nvcc emit: the correctness gate where there is no GPU.

It runs the candidate's own PTX, inline assembly included, in numpy. Not modelled: bank conflicts, memory orders weaker
than the schedules tried, errors of ptxas, and the exact rounding inside mma.sync.
"""

from evoengine.devices.interpreter.session import InterpreterDevice

__all__ = ["InterpreterDevice"]
