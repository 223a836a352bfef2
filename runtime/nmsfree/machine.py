"""What a measured figure belongs to: which file, which processor. No host names, no paths."""

import ctypes
import hashlib
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmsfree.errors import ModelError


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def other_file(path: Path, found: str, expected: str) -> ModelError:
    """The error for a file that has another SHA-256 than the application asked for."""
    return ModelError(
        f"{path}: its sha256 is {found}, expected {expected}: this is another file than was meant"
    )


def processor_name() -> str:
    """Return the processor's model name, as far as the system tells it.

    Virtual machines hide the number ("AMD EPYC"); family and model then tell the generation.
    """
    name = _cpuinfo("model name") or platform.processor() or platform.machine()
    family, model = _cpuinfo("cpu family"), _cpuinfo("model")
    if family and model and not any(c.isdigit() for c in name):
        name += f" (family {family}, model {model})"
    return name


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def computes_bf16() -> bool | None:
    """Whether the processor has bfloat16 arithmetic; None = the system does not tell.

    PyTorch emulates it on the others, which takes several times as long as float32.
    """
    features = (_cpuinfo("flags") or _cpuinfo("Features")).split()  # x86, ARM
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(features) if features else None


def _cpuinfo(entry: str) -> str:
    """The first entry of this name in Linux's description of the processors; "" for none."""
    path = Path("/proc/cpuinfo")
    if sys.platform != "linux" or not path.is_file():
        return ""
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == entry:
            return value.strip()
    return ""


LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

# From cuda.h: attributes of a device, and the buffers for its name and its place on the bus.
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76
NAME_BYTES, BUS_BYTES = 128, 32


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU."""

    name: str
    capability: tuple[int, int]  # compute capability, (major, minor)
    memory: int  # bytes
    # PCI address, "00000000:01:00.0", by which other libraries find the same GPU: they count in
    # another order; "" where the driver does not tell.
    bus: str = ""

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability[0]}.{self.capability[1]})"


@dataclass(frozen=True)
class Gpus:
    """The NVIDIA GPUs of this machine."""

    found: tuple[Gpu, ...]  # in CUDA's order
    cuda: str | None  # newest CUDA that the driver runs, "13.1"; None without a driver
    problem: str  # why there is none, in words


def find_gpus() -> Gpus:
    """Ask the driver."""
    try:
        driver = ctypes.CDLL(LIBRARY)
    except OSError:
        return Gpus((), None, f"no NVIDIA driver was found ({LIBRARY})")
    return ask(driver)


def ask(driver: Any) -> Gpus:
    """Ask a loaded driver library for its GPUs."""
    status, version, count = driver.cuInit(0), ctypes.c_int(), ctypes.c_int()
    failed = driver.cuDriverGetVersion(ctypes.byref(version))
    newest = f"{version.value // 1000}.{version.value % 1000 // 10}"  # 13010 is 13.1
    cuda = None if failed else newest
    if status:
        name = ctypes.c_char_p()
        driver.cuGetErrorName(status, ctypes.byref(name))
        why = name.value.decode() if name.value else f"error {status}"
        return Gpus((), cuda, f"the NVIDIA driver does not start ({why})")
    driver.cuDeviceGetCount(ctypes.byref(count))
    if not count.value:
        return Gpus((), cuda, "the NVIDIA driver sees no GPU")
    return Gpus(tuple(_describe(driver, index) for index in range(count.value)), cuda, "")


def _describe(driver: Any, index: int) -> Gpu:
    device, memory, value = ctypes.c_int(), ctypes.c_size_t(), ctypes.c_int()
    name = ctypes.create_string_buffer(NAME_BYTES)
    bus = ctypes.create_string_buffer(BUS_BYTES)
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, NAME_BYTES, device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    driver.cuDeviceGetPCIBusId(bus, BUS_BYTES, device)
    numbers = []
    for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR):
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        numbers.append(value.value)
    major, minor = numbers
    return Gpu(name.value.decode(), (major, minor), memory.value, bus.value.decode())
