"""What the driver says of clocks, power and heat. Read only: evoengine never changes a card's settings.

nvidia-ml-py is optional; without it, or where a card does not tell a figure, that figure is absent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

SLOWED_BY = {0x4: "power cap", 0x8: "hardware slowdown", 0x20: "thermal", 0x40: "hardware thermal", 0x80: "power brake"}
"""Bits of NVML's clock event reasons that mean slower than asked for (nvml.h, nvmlClocksEventReason*)."""

CLOCKS_SET = 0x2
"""The bit for clocks that a user set, by `nvidia-smi -ac` or -lgc: NVML has no question that a locked clock answers."""


class Nvml:
    """One card by UUID."""

    def __init__(self, uuid: str) -> None:
        self._nvml: Any = None
        try:
            import pynvml

            pynvml.nvmlInit()
            self._card = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        except ImportError:
            return
        except pynvml.NVMLError:
            return
        self._nvml = pynvml

    def settings(self) -> dict[str, Any]:
        """What stays the same during a run."""
        n = self._nvml
        if n is None:
            return {"nvml": False}
        return {
            "nvml": True,
            "driver": self._ask(n.nvmlSystemGetDriverVersion),
            "sm_clock_max_mhz": self._ask(n.nvmlDeviceGetMaxClockInfo, self._card, n.NVML_CLOCK_SM),
            "memory_clock_max_mhz": self._ask(n.nvmlDeviceGetMaxClockInfo, self._card, n.NVML_CLOCK_MEM),
            "sm_clock_application_mhz": self._ask(n.nvmlDeviceGetApplicationsClock, self._card, n.NVML_CLOCK_GRAPHICS),
            "power_limit_w": _watts(self._ask(n.nvmlDeviceGetEnforcedPowerLimit, self._card)),
            "ecc": (self._ask(n.nvmlDeviceGetEccMode, self._card) or [None])[0],
            "persistence": self._ask(n.nvmlDeviceGetPersistenceMode, self._card),
        }

    def now(self) -> dict[str, Any]:
        """Clocks, power, temperature and what holds the clocks down, at this moment."""
        n = self._nvml
        if n is None:
            return {}
        reasons = self._ask(n.nvmlDeviceGetCurrentClocksThrottleReasons, self._card) or 0
        return {
            "sm_clock_mhz": self._ask(n.nvmlDeviceGetClockInfo, self._card, n.NVML_CLOCK_SM),
            "memory_clock_mhz": self._ask(n.nvmlDeviceGetClockInfo, self._card, n.NVML_CLOCK_MEM),
            "power_w": _watts(self._ask(n.nvmlDeviceGetPowerUsage, self._card)),
            "temperature_c": self._ask(n.nvmlDeviceGetTemperature, self._card, n.NVML_TEMPERATURE_GPU),
            "slowed_by": [name for bit, name in SLOWED_BY.items() if reasons & bit],
            "clocks_set_by_user": bool(reasons & CLOCKS_SET),
        }

    def processes(self) -> int:
        """How many processes compute on this card, whoever they belong to (process ids differ inside containers)."""
        if self._nvml is None:
            return 0
        return len(self._ask(self._nvml.nvmlDeviceGetComputeRunningProcesses, self._card) or [])

    def load_percent(self) -> int:
        """Share of the last sample period (1/6 to 1 s) in which any kernel ran on this card."""
        if self._nvml is None:
            return 0
        rates = self._ask(self._nvml.nvmlDeviceGetUtilizationRates, self._card)
        return 0 if rates is None else int(rates.gpu)

    def _ask(self, question: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return question(*arguments)
        except self._nvml.NVMLError:  # not supported on this card, or not permitted in this container
            return None


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000
