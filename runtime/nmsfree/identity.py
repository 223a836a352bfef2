"""What a measured figure belongs to: which file, which processor. No host names, no paths."""

import hashlib
import platform
import sys
from pathlib import Path

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


def computes_bf16() -> bool | None:
    """Whether the processor has bfloat16 arithmetic; None = the system does not tell.

    PyTorch emulates it on the others, which takes several times as long as float32.
    """
    features = _cpuinfo("flags") or _cpuinfo("Features")  # x86, ARM
    return (
        {"avx512_bf16", "amx_bf16", "bf16"} & set(features.split()) != set() if features else None
    )


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
