"""What a measurement ran on: processor, threads, versions. No host names, no paths."""

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

from nmsfree.identity import processor_name

PACKAGES = (
    "nmsfree",
    "torch",
    "onnxruntime",
    "onnx",
    "opencv-python-headless",
    "numpy",
)
_CPUS = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cores() -> int:
    """Return the physical cores this process may use; at least 1.

    Hardware threads of one core count once, a container's processor quota limits the number.
    Systems that do not tell (Windows, macOS) give their logical cores.
    """
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    siblings = {_siblings(cpu) for cpu in os.sched_getaffinity(0)}
    return max(1, min(len(siblings), _quota() or len(siblings)))


def _siblings(cpu: int) -> str:
    """Name the physical core of a logical one by all its hardware threads."""
    path = _CPUS / f"cpu{cpu}/topology/thread_siblings_list"
    return path.read_text(encoding="ascii").strip() if path.is_file() else str(cpu)


def _quota() -> int | None:
    """Return the whole cores a Linux control group grants; None without a limit."""
    if not _QUOTA.is_file():
        return None
    quota, period = _QUOTA.read_text(encoding="ascii").split()
    return None if quota == "max" else max(1, int(quota) // int(period))


def describe(threads: int) -> dict[str, object]:
    """Return what belongs above a table of latencies.

    Args:
        threads: processor threads that every engine was given.
    """
    return {
        "device": "cpu",
        "processor": processor_name(),
        "cores": available_cores(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "busy_cores_before": busy_cores(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def busy_cores(seconds: float = 0.5) -> float | None:
    """Return how many cores other work keeps busy while this process sleeps; None if unknown."""
    before = _ticks()
    time.sleep(seconds)
    after = _ticks()
    if before is None or after is None or before == after:
        return None
    idle, total = (b - a for a, b in zip(before, after, strict=True))
    return round((1 - idle / total) * (os.cpu_count() or 1), 2)


def _ticks() -> tuple[int, int] | None:
    """Return the processors' idle time and all time since the start, in ticks."""
    path = Path("/proc/stat")
    if not path.is_file():
        return None
    # cpu user nice system idle iowait irq softirq steal, see proc_stat(5)
    values = [int(v) for v in path.read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
    return values[3] + values[4], sum(values)
