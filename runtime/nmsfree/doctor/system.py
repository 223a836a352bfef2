"""What `nmsfree doctor` tells about the machine itself.

`python -m nmsfree.doctor.system` prints the NVIDIA GPUs as JSON.
"""

import ctypes
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass

import nmsfree
from nmsfree.doctor.probe import ask_child, module_command
from nmsfree.machine import Gpu, Gpus, computes_bf16, find_gpus, processor_name, processors


@dataclass(frozen=True)
class System:
    """The machine; None is what the system does not tell."""

    system: str  # and architecture
    python: str  # version
    nmsfree: str  # version
    processor: str  # model name
    cores: int  # that this process may use
    bf16: bool | None  # whether the processor has bfloat16 arithmetic
    memory: int | None  # bytes
    driver: str | None  # NVIDIA's version; None = nvidia-smi is not there or fails
    gpus: Gpus  # NVIDIA's, as the driver's library tells them


def look_at_system() -> System:
    """Describe this machine."""
    return System(
        f"{platform.system()} {platform.release()}, {platform.machine()}",
        platform.python_version(),
        nmsfree.__version__,
        processor_name(),
        processors(),
        computes_bf16(),
        _memory(),
        _driver(),
        look_at_gpus(module_command(__name__)),
    )


def look_at_gpus(command: list[str]) -> Gpus:
    """Ask the NVIDIA driver in a child process; a crash of its library becomes the problem."""
    answer, problem = ask_child(command)
    if answer is None:
        return Gpus((), None, f"the NVIDIA driver's library {problem}")
    found = (Gpu(**gpu | {"capability": tuple(gpu["capability"])}) for gpu in answer["found"])
    return Gpus(tuple(found), answer["cuda"], answer["problem"])


def _memory() -> int | None:
    if sys.platform == "win32":
        kilobytes = ctypes.c_ulonglong()
        known = ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kilobytes))
        return 1024 * kilobytes.value if known else None
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None


def _driver() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.split()
    return lines[0] if lines else None


if __name__ == "__main__":
    print(json.dumps(asdict(find_gpus())))  # noqa: T201 (for the parent process)
