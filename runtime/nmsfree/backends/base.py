"""What runs a network: one small protocol."""

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from nmsfree.spec import ModelSpec


class RawDetections(NamedTuple):
    """Output of a model for a batch of N images, names and layout of NVIDIA's EfficientNMS.

    num_detections: int32 [N, 1], rows with a score above the stored floor.
    detection_boxes: float32 [N, K, 4], xyxy in input pixels.
    detection_scores: float32 [N, K], descending.
    detection_classes: int32 [N, K].
    """

    num_detections: NDArray[np.int32]
    detection_boxes: NDArray[np.float32]
    detection_scores: NDArray[np.float32]
    detection_classes: NDArray[np.int32]


class Backend(Protocol):
    """Something that runs a model. `run` must be safe to call from several threads."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def description(self) -> str:
        """Engine, version, device and threads, as shown to the user."""
        ...

    def run(self, images: NDArray[np.uint8]) -> RawDetections:
        """Run the model on uint8 [N, H, W, 3], BGR; N is `spec.batch` where that is fixed."""
        ...

    def close(self) -> None:
        """Free what the backend holds; `run` may not be called afterwards."""
        ...
