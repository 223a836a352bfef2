"""Names of devices: "cpu", "cuda", "cuda:1", "tensorrt-rtx", "openvino", "openvino:GPU"."""

from dataclasses import dataclass

from nmsfree.decode import whole_number
from nmsfree.errors import InputError

KINDS = ("cpu", "cuda", "tensorrt-rtx", "tensorrt", "openvino")


@dataclass(frozen=True)
class Device:
    """Where a model runs.

    Attributes:
        kind: one of `KINDS`.
        index: which NVIDIA GPU, as CUDA counts them; 0 elsewhere.
        plugin: OpenVINO's own name of the device ("CPU", "GPU", "GPU.1"); "" elsewhere.
    """

    kind: str
    index: int = 0
    plugin: str = ""

    def __str__(self) -> str:
        if self.plugin:
            return f"{self.kind}:{self.plugin}"
        return f"{self.kind}:{self.index}" if self.index else self.kind


def parse_device(text: str) -> Device:
    """Read the name of a device.

    Raises:
        InputError: it is none of those above.
    """
    kind, colon, rest = text.partition(":") if isinstance(text, str) else ("", "", "")
    if kind == "openvino" and (not colon or _is_plugin(rest)):
        return Device(kind, plugin=rest or "CPU")
    if kind in KINDS and not colon:
        return Device(kind)
    index = whole_number(rest)
    if kind in KINDS and kind not in ("cpu", "openvino") and index is not None:
        return Device(kind, index)
    raise InputError(
        f"device is {text!r}, expected one of: {', '.join(KINDS)};"
        " cuda:1 is the second GPU, openvino:GPU an Intel GPU"
    )


def _is_plugin(name: str) -> bool:
    family, dot, number = name.partition(".")
    return family in ("CPU", "GPU") and (not dot or whole_number(number) is not None)
