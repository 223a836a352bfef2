"""Which of its devices TensorRT-RTX, a plugin of ONNX Runtime, means by a GPU of CUDA's."""

import threading
from collections.abc import Sequence
from typing import Any

from nmsfree.backends.devices import Device
from nmsfree.errors import EngineError
from nmsfree.gpus import Gpu

PLUGIN_SINCE = "1.24"  # what the plugin asks for
PLUGIN_CALLS = ("add_provider_for_devices",)  # of session options, what it takes
# What ONNX Runtime tells of a GPU on Linux, and the plugin's number of it.
ADDRESS, NUMBER = "pci_bus_id", "device_id"

_registering = threading.Lock()


def plugin_device(plugin: Any, device: Device, gpus: Sequence[Gpu]) -> Any:
    """The `OrtEpDevice` of a GPU; loads the plugin once in this process, raises vendor errors.

    Raises:
        EngineError: ONNX Runtime is too old, or the plugin does not take this GPU.
    """
    import onnxruntime as ort

    if not all(hasattr(ort.SessionOptions, call) for call in PLUGIN_CALLS):
        raise EngineError(
            f"device is '{device}', but onnxruntime {ort.__version__} takes no plugins, expected"
            f' {PLUGIN_SINCE} or newer: pip install -U "onnxruntime>={PLUGIN_SINCE}"'
        )
    name: str = plugin.get_ep_name()
    with _registering:
        if name not in {d.ep_name for d in ort.get_ep_devices()}:
            ort.register_execution_provider_library(name, plugin.get_library_path())
    return choose([d for d in ort.get_ep_devices() if d.ep_name == name], device, gpus)


def choose(found: Sequence[Any], device: Device, gpus: Sequence[Gpu]) -> Any:
    """The plugin's device that runs on a GPU; the plugin's list is in an order of its own.

    The plugin numbers the GPUs that it takes, and runs on the GPU that has this number with CUDA.
    So of several, only one will do whose address and number are both those of the GPU meant. Where
    addresses are not told (on Windows), numbers mean something if no GPU is left out.

    Raises:
        EngineError: there is none.
    """
    gpu = gpus[device.index]
    if len(gpus) == 1:
        fitting = list(found[:1])
    elif len(found) == len(gpus) or all(_at(d, gpu) is not None for d in found):
        fitting = [d for i, d in enumerate(found) if _is_meant(d, i, device.index, gpu)]
    else:
        fitting = []
    if fitting:
        return fitting[0]
    if all(_at(d, gpu) is False for d in found):
        raise EngineError(
            f"device is '{device}', but ONNX Runtime's TensorRT-RTX plugin takes {len(found)} of"
            f" the GPUs here: it needs an RTX 30 or newer, found {gpu}"
        )
    raise EngineError(
        f"device is '{device}', but ONNX Runtime's TensorRT-RTX plugin counts the {len(gpus)} GPUs"
        f" here in another way and may take another: set CUDA_VISIBLE_DEVICES={device.index} and"
        f" use {device.kind}, or make an engine with `nmsfree build`"
    )


def _is_meant(found: Any, position: int, index: int, gpu: Gpu) -> bool:
    at, number = _at(found, gpu), found.ep_options.get(NUMBER)
    if at is not None:
        return at and number in (None, str(index))
    return int(number or position) == index


def _at(found: Any, gpu: Gpu) -> bool | None:
    """Whether a device has the address of a GPU; None: one of the two is not told."""
    told = found.device.metadata.get(ADDRESS)
    return _numbers(told) == _numbers(gpu.bus) if told and gpu.bus else None


def _numbers(bus: str) -> list[int]:
    """ "0000:65:00.0" → [0, 0x65, 0, 0]: libraries differ in leading zeros."""
    return [int(part, 16) for part in bus.replace(".", ":").split(":")]
