"""Memory that this process and its loader workers use."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import psutil
import torch


@dataclass(frozen=True)
class MemoryUse:
    """In bytes.

    Attributes:
        ram: of this process and its children. Pages that several of them share count once
            where the system tells (Linux), and in each of them elsewhere.
        gpu: reserved by this process on its present CUDA device; None without one.
        gpu_total: of that device; None without one.
    """

    ram: int
    gpu: int | None
    gpu_total: int | None


class MemoryMeter:
    """Measures at most every `every` seconds: listing a large server's processes takes long."""

    def __init__(self, every: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._every, self._clock = every, clock
        self._next = -float("inf")
        self._use = MemoryUse(0, None, None)

    def read(self) -> MemoryUse:
        """Return the last measurement, taken now if it is due."""
        now = self._clock()
        if now >= self._next:
            self._use, self._next = _measure(), now + self._every
        return self._use


def _measure() -> MemoryUse:
    process = psutil.Process()
    total = 0
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.Error):  # a worker may end meanwhile
            total += _ram(one)
    # Asking for the device would initialise CUDA in a process that trains on the CPU.
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return MemoryUse(total, None, None)
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return MemoryUse(total, torch.cuda.memory_reserved(), int(properties.total_memory))


def _ram(process: psutil.Process) -> int:
    if psutil.LINUX:
        with suppress(psutil.AccessDenied):  # some containers hide how pages are shared
            return int(process.memory_full_info().pss)
    return int(process.memory_info().rss)
