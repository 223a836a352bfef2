"""What else the machine does while it measures."""

import os
import time
from pathlib import Path
from types import TracebackType

_STAT = Path("/proc/stat")


class LoadMeter:
    """Counts the cores that others keep busy while a block runs.

    Attributes:
        others: cores, mean over the block; None where the system does not tell, or before the end.
    """

    def __init__(self) -> None:
        self.others: float | None = None

    def __enter__(self) -> "LoadMeter":
        self._start = time.monotonic()
        self._before, self._own = _ticks(), _own_seconds()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        after = _ticks()
        seconds = time.monotonic() - self._start
        if self._before is None or after is None or seconds <= 0 or after == self._before:
            return
        idle, total = (b - a for a, b in zip(self._before, after, strict=True))
        busy = (1 - idle / total) * (os.cpu_count() or 1)
        own = (_own_seconds() - self._own) / seconds
        self.others = round(max(0.0, busy - own), 2)


def busy_cores(seconds: float = 0.5) -> float | None:
    """Return how many cores other work keeps busy while this process sleeps; None if unknown."""
    with LoadMeter() as meter:
        time.sleep(seconds)
    return meter.others


def _own_seconds() -> float:
    """Processor time of this process and of children that ended."""
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system


def _ticks() -> tuple[int, int] | None:
    """Return the processors' idle time and all time since the start, in ticks."""
    if not _STAT.is_file():
        return None
    # cpu user nice system idle iowait irq softirq steal, see proc_stat(5)
    values = [int(v) for v in _STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
    return values[3] + values[4], sum(values)
