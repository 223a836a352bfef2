"""What a measurement ran on, and what else the machine did. No host names, no paths."""

import hashlib
import json
import os
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from nmsfree.backends.options import parse_device
from nmsfree.machine import processor_name
from nmsfree_benchmarks.harness.gpu import gpu_state

PACKAGES = (
    "nmsfree",
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-ep-nv-tensorrt-rtx",
    "openvino",
    "tensorrt_rtx",
    "tensorrt",
    "cuda-python",
    "pycuda",
    "onnx",
    "opencv-python-headless",
    "numpy",
)
_CPUS = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cores() -> int:
    """The physical cores this process may use; at least 1.

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
    """The whole cores a Linux control group grants; None without a limit."""
    if not _QUOTA.is_file():
        return None
    quota, period = _QUOTA.read_text(encoding="ascii").split()
    return None if quota == "max" else max(1, int(quota) // int(period))


def describe(threads: int, device: str = "cpu") -> dict[str, Any]:
    """What belongs above a table of latencies; `threads` are those that every engine was given."""
    same_machine = {
        "device": device,
        "processor": processor_name(),
        "cores": available_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": gpu_state(parse_device(device).index).name,
    }
    versions = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    fingerprint = hashlib.sha256(json.dumps(same_machine, sort_keys=True).encode()).hexdigest()
    return same_machine | {
        "fingerprint": fingerprint[:12],
        "threads": threads,
        "python": platform.python_version(),
        "busy_cores_before": busy_cores(),
        "versions": versions,
    }


def hardware(environment: Mapping[str, Any]) -> str:
    """Name what ran the models, and the device: "AMD EPYC (cpu)", "RTX 4060 (cuda), AMD EPYC"."""
    processor, device = environment["processor"], environment["device"]
    gpu = environment.get("gpu")
    if gpu is None or device.partition(":")[0] not in ("cuda", "tensorrt-rtx"):
        return f"{processor} ({device})"
    return f"{gpu} ({device}), {processor}"


class LoadMeter:
    """Counts the cores that others keep busy while a block runs.

    `others` is the mean over the block; None before the end, or where it was too short to tell.
    """

    def __init__(self) -> None:
        self.others: float | None = None

    def __enter__(self) -> "LoadMeter":
        self._start = time.monotonic()
        self._before, self._own = psutil.cpu_times(), _own_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        seconds = time.monotonic() - self._start
        spent = {
            name: after - getattr(self._before, name)
            for name, after in psutil.cpu_times()._asdict().items()
            if "guest" not in name  # is in user and nice
        }
        total = sum(spent.values())
        if total > 0:
            busy = (1 - (spent["idle"] + spent.get("iowait", 0)) / total) * (os.cpu_count() or 1)
            self.others = round(max(0.0, busy - (_own_seconds() - self._own) / seconds), 2)


def busy_cores(seconds: float = 0.5) -> float | None:
    """How many cores other work keeps busy while this process sleeps."""
    with LoadMeter() as meter:
        time.sleep(seconds)
    return meter.others


def _own_seconds() -> float:
    """Processor time of this process and of children that ended."""
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system
