"""What a measurement ran on: processor, threads, versions. No host names, no paths."""

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from nmsfree.backends.options import parse_device
from nmsfree.machine import processor_name
from nmsfree_benchmarks.machine.gpu import gpu_state
from nmsfree_benchmarks.machine.load import busy_cores

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


def describe(threads: int, device: str = "cpu") -> dict[str, Any]:
    """Return what belongs above a table of latencies.

    Args:
        threads: processor threads that every engine was given.
        device: where the models run.
    """
    same_machine = {
        "device": device,
        "processor": processor_name(),
        "cores": available_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": gpu_state(parse_device(device).index).name,
    }
    return same_machine | {
        "fingerprint": _fingerprint(same_machine),
        "threads": threads,
        "python": platform.python_version(),
        "busy_cores_before": busy_cores(),
        "versions": _versions(),
    }


def hardware(environment: Mapping[str, Any]) -> str:
    """Name what ran the models, and the device: "AMD EPYC (cpu)", "RTX 4060 (cuda), AMD EPYC"."""
    processor, device = environment["processor"], environment["device"]
    gpu = environment.get("gpu")
    if gpu is None or device.partition(":")[0] not in ("cuda", "tensorrt-rtx"):
        return f"{processor} ({device})"
    return f"{gpu} ({device}), {processor}"


def _fingerprint(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
