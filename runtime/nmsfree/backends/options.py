"""How a model is opened, and where: `Options` and `Device`."""

import operator
import os
import re
from dataclasses import dataclass, fields
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np

from nmsfree.errors import InputError
from nmsfree.options import Option
from nmsfree.parsing import whole_number
from nmsfree.text import meant

Precision = Literal["f32", "bf16"]
MOST_THREADS = max(256, os.cpu_count() or 1)  # engines die of thousands

_ENGINE = partial(Option, panel="Engine")

# What each option is for, as an error names it.
MEANT_FOR = {
    "threads": "ONNX files and checkpoints",
    "allow_cpu": "ONNX files on cuda and tensorrt-rtx",
    "tf32": "ONNX files on cuda and tensorrt-rtx",
    "precision": "openvino",
    "rebuild": "engines",
    "trust": "engines",
    "sha256": "files",
    "max_contexts": "engines",
}
MOST_CONTEXTS = 8  # runs of an engine at once, unless asked for; more hardly help


@dataclass(frozen=True)
class Options:
    """How a model is opened; `sha256` is of the file in hexadecimal, and None takes any file.

    Raises:
        InputError: one of them is of another type, or has a value that it cannot have.
    """

    threads: Annotated[
        int | None, _ENGINE("Processor threads; the engine's choice if not given.", min=1, max=1024)
    ] = None
    allow_cpu: Annotated[
        bool, _ENGINE("Run on the processor where the GPU cannot, and warn.", ("--allow-cpu",))
    ] = False
    tf32: Annotated[
        bool, _ENGINE("Let the GPU round FP32 to TF32: faster, less exact.", ("--tf32",))
    ] = False
    precision: Annotated[
        str | None, _ENGINE("OpenVINO's arithmetic.", ("--engine-precision",), metavar="f32|bf16")
    ] = None
    rebuild: Annotated[
        bool,
        _ENGINE(
            "Build an .engine that does not fit this machine again, from the ONNX file beside it.",
            ("--rebuild/--no-rebuild",),
        ),
    ] = True
    trust: Annotated[
        bool,
        _ENGINE(
            "Run an .engine whose hash is not the recorded one: it is native code.", ("--trust",)
        ),
    ] = False
    sha256: str | None = None
    max_contexts: Annotated[
        int | None,
        _ENGINE(
            "Runs of an .engine at once, each with memory of its own; more wait in turn. If not"
            f" given, {MOST_CONTEXTS}, or fewer where half of the GPU's free memory holds fewer.",
            min=1,
            max=1024,
        ),
    ] = None

    def __post_init__(self) -> None:
        for name in ("threads", "max_contexts"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _threads(getattr(self, name), name))
        for name in ("allow_cpu", "tf32", "rebuild", "trust"):
            value = getattr(self, name)
            if not isinstance(value, bool | np.bool_):
                raise InputError(f"{name} is {value!r}, expected True or False")
        if self.precision is not None and str(self.precision) not in ("f32", "bf16"):
            raise InputError(f"precision is {self.precision!r}, expected 'f32' or 'bf16'")
        if self.sha256 is not None:
            if not re.fullmatch("[0-9a-fA-F]{64}", str(self.sha256)):
                raise InputError(f"sha256 is {self.sha256!r}, expected 64 hexadecimal digits")
            object.__setattr__(self, "sha256", self.sha256.lower())

    def check(self, what: str, *allowed: str) -> None:
        """Refuse every option that was set and is not in `allowed`; the message names `what`."""
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default and field.name not in allowed:
                raise InputError(
                    f"{field.name} is {value!r}, but does not apply to {what}: it is for"
                    f" {MEANT_FOR[field.name]}, leave it out here"
                )


def _threads(value: Any, name: str) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        threads = operator.index(value)
    except TypeError:
        raise InputError(f"{name} is {value!r}, expected a whole number") from None
    if threads < 1:
        raise InputError(f"{name} is {threads}, expected 1 or more, or None to let it choose")
    if threads > MOST_THREADS:
        raise InputError(f"{name} is {threads}, expected {MOST_THREADS} at most")
    return threads


DEFAULTS = Options()

KINDS = ("cpu", "cuda", "tensorrt-rtx", "tensorrt", "openvino")
# The command line's option that `parse_device` reads: Annotated[str | None, DEVICE] = None.
DEVICE = Option(
    "Where the model runs; cuda:1 is the second GPU, openvino:GPU an Intel GPU. If not given, the"
    " processor, and the GPU for an .engine.",
    ("--device",),
    metavar="cpu|cuda|tensorrt-rtx|openvino",
)


@dataclass(frozen=True)
class Device:
    """Where a model runs."""

    kind: str  # one of `KINDS`
    index: int = 0  # which NVIDIA GPU, as CUDA counts them
    plugin: str = ""  # OpenVINO's own name of the device ("CPU", "GPU", "GPU.1"); "" elsewhere

    def __str__(self) -> str:
        if self.plugin:
            return f"{self.kind}:{self.plugin}"
        return f"{self.kind}:{self.index}" if self.index else self.kind


PROCESSOR = Device("cpu")


def parse_device(text: str | Device) -> Device:
    """Read the name of a device; one that has been read stays. InputError: none of `KINDS`."""
    if isinstance(text, Device):
        return text
    kind, colon, rest = text.partition(":") if isinstance(text, str) else ("", "", "")
    if kind == "openvino" and (not colon or _is_plugin(rest)):
        return Device(kind, plugin=rest or "CPU")
    if kind in KINDS and not colon:
        return Device(kind)
    index = whole_number(rest)
    if kind in KINDS and kind not in ("cpu", "openvino") and index is not None:
        return Device(kind, index)
    wrong = "cuda" if kind.lower() == "gpu" else kind.lower()
    raise InputError(
        f"device is {text!r}, expected one of: {', '.join(KINDS)};"
        " cuda:1 is the second GPU, openvino:GPU an Intel GPU"
        + meant(() if kind in KINDS else KINDS, wrong)
    )


def _is_plugin(name: str) -> bool:
    family, dot, number = name.partition(".")
    return family in ("CPU", "GPU") and (not dot or whole_number(number) is not None)
