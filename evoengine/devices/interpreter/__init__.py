"""A SIMT interpreter for the PTX that NVRTC and nvcc emit: the correctness gate where there is no GPU.

It runs the candidate's own PTX, inline assembly included, in numpy. Not modelled: bank conflicts, memory orders weaker
than the schedules tried, errors of ptxas, and the exact rounding inside mma.sync and wgmma.
"""

from evoengine.devices.interpreter.faults import Fault, Hang, Unsupported
from evoengine.devices.interpreter.machine import Execution, execute
from evoengine.devices.interpreter.modes import MODES, Mode
from evoengine.devices.interpreter.program import Program
from evoengine.devices.interpreter.session import InterpreterDevice

__all__ = ["MODES", "Execution", "Fault", "Hang", "InterpreterDevice", "Mode", "Program", "Unsupported", "execute"]
