"""nmsfree: run detectors that need no non-maximum suppression: FCOS, YOLO, DETR. No torch inside.

>>> from nmsfree import Detector
>>> detections = Detector("model.onnx")("street.jpg")
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from nmsfree.errors import (
    CheckpointError,
    DataError,
    EngineError,
    GateError,
    InputError,
    MissingExtraError,
    ModelError,
    NmsfreeError,
)

# Read when ONNX Runtime is imported, which would report to its maker. The user's own value stands.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "CallableBackend",
    "Canary",
    "CheckpointError",
    "DataError",
    "Detection",
    "Detections",
    "Detector",
    "EngineError",
    "Frame",
    "GateError",
    "InputError",
    "MissingExtraError",
    "ModelError",
    "ModelSpec",
    "NmsSpec",
    "NmsfreeError",
    "RawDetections",
    "Resize",
    "SelfCheck",
    "Thresholds",
    "Tolerance",
    "draw",
    "read_image",
    "stream",
]

if TYPE_CHECKING:
    from nmsfree.backends import Backend, CallableBackend, RawDetections
    from nmsfree.canary import SelfCheck
    from nmsfree.detections import Detection, Detections
    from nmsfree.detector import Detector
    from nmsfree.drawing import draw
    from nmsfree.images import read_image
    from nmsfree.spec import Canary, ModelSpec, NmsSpec, Resize, Thresholds, Tolerance
    from nmsfree.streams.pipeline import stream
    from nmsfree.streams.sources import Frame
else:
    # Imported when they are asked for: NumPy and OpenCV take a while that `--help` need not wait.
    _HOMES = {
        "backends": ("Backend", "CallableBackend", "RawDetections"),
        "canary": ("SelfCheck",),
        "detections": ("Detection", "Detections"),
        "detector": ("Detector",),
        "images": ("read_image",),
        "drawing": ("draw",),
        "spec": ("Canary", "ModelSpec", "NmsSpec", "Resize", "Thresholds", "Tolerance"),
        "streams.pipeline": ("stream",),
        "streams.sources": ("Frame",),
    }

    def __getattr__(name: str) -> Any:
        for home, names in _HOMES.items():
            if name in (home, *names):
                module = import_module(f"nmsfree.{home}")
                return module if name == home else getattr(module, name)
        raise AttributeError(f"module 'nmsfree' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
