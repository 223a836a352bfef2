"""nmsfree: run FCOS detectors that need no non-maximum suppression. No torch inside.

>>> from nmsfree import Detector
>>> detections = Detector("model.onnx")("street.jpg")
"""

import os

# Read when ONNX Runtime is imported, which would report to its maker. The user's own value stands.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from nmsfree.backends import Backend, CallableBackend, RawDetections
from nmsfree.detections import Detection, Detections
from nmsfree.detector import Detector
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
from nmsfree.images import read_image
from nmsfree.spec import ModelSpec, NmsSpec, Thresholds

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "CallableBackend",
    "CheckpointError",
    "DataError",
    "Detection",
    "Detections",
    "Detector",
    "EngineError",
    "GateError",
    "InputError",
    "MissingExtraError",
    "ModelError",
    "ModelSpec",
    "NmsSpec",
    "NmsfreeError",
    "RawDetections",
    "Thresholds",
    "read_image",
]
