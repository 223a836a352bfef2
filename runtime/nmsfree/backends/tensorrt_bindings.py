"""Inputs and outputs of an engine, and what its description promises."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from nmsfree.engines.sidecar import Sidecar

INPUT = "images"


@dataclass(frozen=True)
class Binding:
    """An input or output of the engine; `shape` is of the largest batch."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def nbytes(self, images: int) -> int:
        """Bytes of this many images."""
        return int(np.prod(self.shape[1:])) * self.dtype.itemsize * images


def expected_bindings(
    sidecar: Sidecar, batch: int, found: dict[str, Binding]
) -> dict[str, Binding]:
    """What the description of an engine promises, by name."""
    spec, k = sidecar.spec, sidecar.spec.top_k
    float32, int32 = np.dtype(np.float32), np.dtype(np.int32)
    bindings = [Binding(INPUT, np.dtype(np.uint8), (batch, spec.height, spec.width, 3))]
    if sidecar.nms_on_host:
        scores = found.get("candidate_scores")
        t = scores.shape[-1] if scores else k  # how many is the engine's own affair
        bindings += [
            Binding("candidate_boxes", float32, (batch, t, 4)),
            Binding("candidate_scores", float32, (batch, t)),
            Binding("candidate_classes", int32, (batch, t)),
        ]
    else:
        bindings += [
            Binding("num_detections", int32, (batch, 1)),
            Binding("detection_boxes", float32, (batch, k, 4)),
            Binding("detection_scores", float32, (batch, k)),
            Binding("detection_classes", int32, (batch, k)),
        ]
    return {binding.name: binding for binding in bindings}


def shown(bindings: dict[str, Binding]) -> str:
    return ", ".join(f"{b.name} {b.dtype} {list(b.shape)}" for b in bindings.values())
