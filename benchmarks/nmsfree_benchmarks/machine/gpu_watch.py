"""What a GPU does while it is timed: an idle one is cool, and no longer throttles."""

from statistics import median
from typing import Any

from nmsfree_benchmarks.machine.gpu import GpuState, gpu_state


class GpuWatch:
    """Asks a GPU between the rounds of a measurement, outside every timer.

    Args:
        on: False for a run on the processor, which then costs nothing.
        index: which GPU, as CUDA counts them.
    """

    def __init__(self, on: bool, index: int = 0) -> None:
        self._on = on
        self._index = index
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
