"""What an NVIDIA GPU says of itself (NVML): name, clocks, temperature, throttling, energy."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import cycle
from statistics import median
from typing import Any

import pynvml

from nmsfree.machine import find_gpus
from nmsfree_benchmarks.harness.timer import Call, Image

SECONDS = 2.0  # the energy counter moves every 20 to 100 ms: long enough for 5 % of that
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
    """One GPU at one moment; every attribute is None where the GPU or the driver does not tell."""

    name: str | None = None
    driver: str | None = None
    clock_mhz: int | None = None  # of the multiprocessors
    max_clock_mhz: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    energy_j: float | None = None  # since the driver was loaded
    memory_used_mib: float | None = None  # by all programs
    throttled: tuple[str, ...] = ()  # reasons for lower clocks at this moment

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"throttled": list(self.throttled)}


def gpu_state(index: int = 0) -> GpuState:
    """Ask the GPU of this number, in CUDA's order; everything is None where there is none.

    NVML has an order of its own, and counts GPUs that are hidden from CUDA: it is asked by address.
    """
    with _driver() as ready:
        found = find_gpus().found if ready else ()
        handle = None
        if index < len(found):
            handle = _ask(pynvml.nvmlDeviceGetHandleByPciBusId, found[index].bus)
        return GpuState() if handle is None else _read(handle)


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


class GpuWatch:
    """Asks a GPU (counted as CUDA does) between the rounds of a measurement, outside every timer.

    Where it is not on, as on the processor, it costs nothing.
    """

    def __init__(self, on: bool, index: int = 0) -> None:
        self._on, self._index = on, index
        self._states: list[GpuState] = []

    def look(self) -> None:
        """Ask once; call it after each round."""
        if self._on:
            self._states.append(gpu_state(self._index))

    def to_json(self) -> dict[str, Any]:
        """What results say in `environment`; nothing where nobody looked.

        `gpu_throttled` are all reasons that were met, `gpu_state` is the last of what was seen.
        """
        if not self._states:
            return {}
        throttled = {reason for state in self._states for reason in state.throttled}
        found = {"gpu_state": self._states[-1].to_json(), "gpu_throttled": sorted(throttled)}
        clocks = [state.clock_mhz for state in self._states if state.clock_mhz is not None]
        if clocks:
            found["gpu_clock_mhz"] = {"lowest": min(clocks), "median": median(clocks)}
        return found


def joules_per_image(
    call: Call,
    pictures: Sequence[Image],
    counter: Callable[[], float | None] = lambda: gpu_state().energy_j,
    seconds: float = SECONDS,
) -> float | None:
    """Run a call by itself for so many seconds, and divide what the counter says by the pictures.

    The whole board counts, idle power and other programs included. The call takes BGR uint8
    [h, w, 3] and returns when its result is there. None where nothing counts joules.
    """
    before = counter()
    if before is None:
        return None
    end = time.monotonic() + seconds
    done, shown = 0, cycle(pictures)
    while done == 0 or time.monotonic() < end:
        call(next(shown))
        done += 1
    after = counter()
    return None if after is None else (after - before) / done
