"""What an NVIDIA GPU says of itself (NVML): name, clocks, temperature, throttling, energy."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pynvml

from nmsfree.machine import find_gpus

# Why the clocks are lower than they could be; idling and an application's own setting are no fault.
THROTTLES = {
    pynvml.nvmlClocksEventReasonSwPowerCap: "power cap",
    pynvml.nvmlClocksThrottleReasonHwSlowdown: "hardware slowdown",
    pynvml.nvmlClocksEventReasonSwThermalSlowdown: "temperature",
    pynvml.nvmlClocksThrottleReasonHwThermalSlowdown: "temperature, hardware",
    pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown: "power brake",
}


@dataclass(frozen=True)
class GpuState:
    """One GPU at one moment; every attribute is None where the GPU or the driver does not tell.

    Attributes:
        clock_mhz, max_clock_mhz: of the multiprocessors.
        temperature_c, power_w: degrees Celsius, watts.
        energy_j: joules since the driver was loaded.
        memory_used_mib: by all programs.
        throttled: reasons for lower clocks at this moment.
    """

    name: str | None = None
    driver: str | None = None
    clock_mhz: int | None = None
    max_clock_mhz: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    energy_j: float | None = None
    memory_used_mib: float | None = None
    throttled: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"throttled": list(self.throttled)}


def gpu_state(index: int = 0) -> GpuState:
    """Ask the GPU of this number, in CUDA's order; everything is None where there is none.

    NVML has an order of its own, and counts GPUs that are hidden from CUDA: it is asked by address.
    """
    with _driver() as ready:
        found = find_gpus().found if ready else ()
        if index >= len(found):
            return GpuState()
        try:
            handle = pynvml.nvmlDeviceGetHandleByPciBusId(found[index].bus)
        except pynvml.NVMLError:
            return GpuState()
        return _read(handle)


def _read(handle: Any) -> GpuState:
    sm = pynvml.NVML_CLOCK_SM
    reasons = _ask(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle) or 0
    power = _ask(pynvml.nvmlDeviceGetPowerUsage, handle)  # milliwatts
    energy = _ask(pynvml.nvmlDeviceGetTotalEnergyConsumption, handle)  # millijoules
    memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    return GpuState(
        name=_ask(pynvml.nvmlDeviceGetName, handle),
        driver=_ask(pynvml.nvmlSystemGetDriverVersion),
        clock_mhz=_ask(pynvml.nvmlDeviceGetClockInfo, handle, sm),
        max_clock_mhz=_ask(pynvml.nvmlDeviceGetMaxClockInfo, handle, sm),
        temperature_c=_ask(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        power_w=None if power is None else power / 1000,
        energy_j=None if energy is None else energy / 1000,
        memory_used_mib=None if memory is None else round(memory.used / 2**20, 1),
        throttled=tuple(text for flag, text in THROTTLES.items() if reasons & flag),
    )


def _ask(function: Any, *arguments: Any) -> Any:
    """None where this GPU does not support the question, as older ones that for energy."""
    try:
        return function(*arguments)
    except pynvml.NVMLError:
        return None


@contextmanager
def _driver() -> Iterator[bool]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield False
        return
    try:
        yield True
    finally:
        pynvml.nvmlShutdown()
