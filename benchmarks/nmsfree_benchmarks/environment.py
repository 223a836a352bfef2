"""What a measurement ran on: processor, threads, versions. No host names, no paths."""

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

PACKAGES = (
    "nmsfree",
    "nmsfree-training",
    "nmsfree-export",
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
        "processor": _processor(),
        "cores": available_cores(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_before": busy_cores(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def busy_cores() -> float | None:
    """Return how many cores other work kept busy in the last minute; None where unknown."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
