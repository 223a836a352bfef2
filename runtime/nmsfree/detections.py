"""The result type: what was found in one image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from nmsfree.errors import import_extra


class Detection(NamedTuple):
    """One detected object; `box` is (x1, y1, x2, y2) in source pixels."""

    box: tuple[float, float, float, float]
    confidence: float
    class_id: int
    class_name: str


@dataclass(frozen=True, eq=False)
class Detections:
    """Objects found in one image, best first: a sequence of `Detection`, indexed like an array.

    Field names are those of the supervision library.

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

    @overload
    def __getitem__(self, keep: int) -> Detection: ...

    @overload
    def __getitem__(self, keep: "slice | Sequence[int] | NDArray[Any]") -> "Detections": ...

    def __getitem__(
        self, keep: "int | slice | Sequence[int] | NDArray[Any]"
    ) -> "Detection | Detections":
        """Return one detection, or those of a slice, a boolean mask [n] or indices.

        `truncated` stays what it was: a mask does not say why it leaves out a row. To know it for a
        higher threshold, or for some classes, call the detector with those.
        """
        if isinstance(keep, int | np.integer):
            return next(iter(self[[keep]]))
        xyxy, confidence, class_id = self.xyxy[keep], self.confidence[keep], self.class_id[keep]
        return Detections(xyxy, confidence, class_id, self.names, self.truncated)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold, names as in the lines of `nmsfree detect`.

        `{"detections": [{"box": [x1, y1, x2, y2], "class", "class_id", "score"}, …], "truncated"}`;
        pixels have three digits behind the point, scores six.
        """
        rows = [
            {
                "box": [round(v, 3) for v in found.box],
                "class": found.class_name,
                "class_id": found.class_id,
                "score": round(found.confidence, 6),
            }
            for found in self
        ]
        return {"detections": rows, "truncated": self.truncated}

    def to_coco(
        self, image_id: int, category_ids: Sequence[int] | None = None
    ) -> list[dict[str, Any]]:
        """Return rows of a COCO result file: image_id, category_id, bbox (x, y, w, h), score.

        Args:
            category_ids: of every class, as `ModelSpec.category_ids`; None takes the class ids.
        """
        ids = range(len(self.names)) if category_ids is None else category_ids
        return [
            {
                "image_id": image_id,
                "category_id": int(ids[class_id]),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": confidence,
            }
            for (x1, y1, x2, y2), confidence, class_id, _ in self
        ]

    def to_supervision(self) -> Any:
        """Return a `supervision.Detections` with the class names in its data.

        MissingExtraError: the package is not installed.
        """
        supervision = import_extra("supervision", "to_supervision", "nmsfree[track]")
        data = {"class_name": np.array(self.class_name, dtype=str)}
        return supervision.Detections(
            xyxy=self.xyxy,
            confidence=self.confidence,
            class_id=self.class_id.astype(int),
            data=data,
        )
