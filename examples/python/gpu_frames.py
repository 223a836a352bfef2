"""Pictures that are on the GPU already, in a TensorRT engine: python gpu_frames.py ENGINE

Needs PyTorch with CUDA. Nothing is copied to the GPU: the engine reads the tensor where it is.
"""

import sys
from typing import Any

from nmsfree.backends.tensorrt.backend import TensorRtBackend


def boxes_of(backend: TensorRtBackend, frames: Any) -> list[list[list[float]]]:
    """Boxes above the model's threshold, xyxy in pixels of the input, of every frame.

    `frames` are BGR uint8 [N, H, W, 3] on the GPU, of the model's size.
    """
    raw = backend.run(frames)
    columns = raw.detection_boxes, raw.detection_scores
    return [b[s > backend.spec.threshold].tolist() for b, s in zip(*columns, strict=True)]


def main(engine: str) -> None:
    import torch

    backend = TensorRtBackend(engine)
    size = backend.spec.height, backend.spec.width
    frames = torch.zeros(backend.spec.batch or 1, *size, 3, dtype=torch.uint8, device="cuda")
    print(boxes_of(backend, frames), backend.timings())


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
