"""The result type: what was found in one image."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Detection(NamedTuple):
    """One detected object; `box` is (x1, y1, x2, y2) in source pixels."""

    box: tuple[float, float, float, float]
    confidence: float
    class_id: int
    class_name: str


@dataclass(frozen=True, eq=False)
class Detections:
    """Objects found in one image, best first.

    Field names are those of the supervision library, so
    `supervision.Detections(xyxy=d.xyxy, confidence=d.confidence, class_id=d.class_id)` works.

    A model has a fixed number of rows. `truncated` says that all of them scored above the threshold
    of the call (the lowest one of the wanted classes), so that the image may hold more objects that
    do. It is False where the last row scores lower, since what is missing then does, too, and
    where the call's own `max_detections` was reached.
    """

    xyxy: NDArray[np.float32]  # [n, 4], corners in pixels of the source image
    confidence: NDArray[np.float32]  # [n], 0 … 1, descending
    class_id: NDArray[np.int32]  # [n], 0 … number of classes − 1
    names: tuple[str, ...]  # class names of the model, indexed by `class_id`
    truncated: bool = False  # objects may be missing: the model's rows were full

    def __len__(self) -> int:
        return len(self.confidence)

    def __iter__(self) -> Iterator[Detection]:
        rows = zip(
            self.xyxy.tolist(), self.confidence.tolist(), self.class_id.tolist(), strict=True
        )
        for (x1, y1, x2, y2), confidence, class_id in rows:
            yield Detection((x1, y1, x2, y2), confidence, class_id, self.names[class_id])

    @property
    def class_name(self) -> tuple[str, ...]:
        """Class name of every detection."""
        return tuple(self.names[i] for i in self.class_id.tolist())

    def select(self, keep: NDArray[Any]) -> "Detections":
        """Return the detections chosen by a boolean mask [n] or an index array.

        `truncated` stays what it was: a mask does not say why it leaves out a row. To know it for a
        higher threshold, or for some classes, call the detector with those.
        """
        xyxy, confidence, class_id = self.xyxy[keep], self.confidence[keep], self.class_id[keep]
        return Detections(xyxy, confidence, class_id, self.names, self.truncated)
