"""A Detector that marks a stopwatch around each of its stages."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsfree.backends import Backend
from nmsfree.detector import Detector
from nmsfree.images import Color
from nmsfree.preprocess import Geometry
from nmsfree_benchmarks.machine.measure import Call, Image, Stopwatch
from nmsfree_benchmarks.table.onnx_engine import TimedBackend

PARTS = ("preprocess", "engine", "map_back", "python")


class _TimedGeometry(Geometry):
    """Marks before and after boxes are mapped; it is what it is made of in all else."""

    watch: Stopwatch

    @classmethod
    def around(cls, geometry: Geometry, watch: Stopwatch) -> "_TimedGeometry":
        timed = cls(geometry.height, geometry.width, geometry.scale_y, geometry.scale_x)
        object.__setattr__(timed, "watch", watch)  # frozen, as its parent is
        return timed

    def to_source(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        self.watch.mark()
        mapped = super().to_source(boxes)
        self.watch.mark()
        return mapped


class StagedDetector(Detector):
    """The runtime's own code, with marks between its stages."""

    def __init__(self, backend: Backend, watch: Stopwatch) -> None:
        super().__init__(TimedBackend(backend, watch))
        self.watch = watch

    def preprocess(
        self, images: Sequence[Any], color: Color = "bgr"
    ) -> tuple[NDArray[np.uint8], list[Geometry]]:
        self.watch.mark()
        inputs, geometries = super().preprocess(images, color)
        self.watch.mark()
        return inputs, [_TimedGeometry.around(g, self.watch) for g in geometries]


def staged_call(detector: StagedDetector) -> Call:
    """Return a call that runs a detector as its users do, at its own threshold.

    Its parts are `PARTS`, in nanoseconds: resizing and padding, the engine's call as the backend
    makes it, mapping the boxes back, and everything between. Marks cost a microsecond in all.
    """
    watch = detector.watch

    def call(image: Image) -> Sequence[int]:
        watch.start()
        detector(image)
        watch.mark()
        before, preprocess, between, engine, after, map_back, end = watch.laps()
        return preprocess, engine, map_back, before + between + after + end

    return call
