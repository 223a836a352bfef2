"""Detector: images in, detections in source pixels out."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nmsfree.backends import Backend, Options, RawDetections, open_backend
from nmsfree.backends.contract import rows_of
from nmsfree.backends.options import Precision
from nmsfree.detections import Detections
from nmsfree.errors import InputError
from nmsfree.images import Color, as_bgr
from nmsfree.preprocess import Geometry, letterbox

Threshold = float | Literal["per-class", "precision"]

MAX_DYNAMIC_BATCH = 16  # images in one run where the file takes any number


class Detector:
    """Runs a model on images of any size. Safe to call from several threads.

    Args:
        model: path of an exported `.onnx`, of an `.engine` built from one (or a checkpoint, with
            nmsfree-training installed), or a backend.
        device: where the model runs, never replaced by another one silently: "cpu", "cuda",
            "tensorrt-rtx", "openvino"; "cuda:1" is the second GPU, "openvino:GPU" an Intel GPU.
            None takes the processor, and for an engine the GPU.
        threads: processor threads of one run; None leaves it to the engine.
        allow_cpu: run on the processor, with a warning, where the GPU that was asked for cannot.
        tf32: let a GPU round float32 factors to TF32; False computes real FP32. (An engine has
            that decided when it is built.)
        precision: arithmetic of OpenVINO, "f32" (also if None) or "bf16".
        rebuild: an engine that does not fit this machine is built again from the ONNX file beside
            it; False makes that an error.
        trust: open an engine whose hash is not the recorded one; an engine runs native code.

    Raises:
        InputError: an unknown device, or an option that does not apply to this model and device.
        ModelError: the file cannot be used.
        MissingExtraError: what runs such a file is not installed.
        EngineError: the device cannot run it on this machine.

    Example:
        >>> with Detector("model.onnx") as detector:
        ...     for box, confidence, class_id, name in detector(image):  # BGR uint8 [h, w, 3]
        ...         print(name, confidence, box)
    """

    def __init__(
        self,
        model: str | Path | Backend,
        *,
        device: str | None = None,
        threads: int | None = None,
        allow_cpu: bool = False,
        tf32: bool = False,
        precision: Precision | None = None,
        rebuild: bool = True,
        trust: bool = False,
    ) -> None:
        options = Options(threads, allow_cpu, tf32, precision, rebuild, trust)
        self.backend = _open(model, device, options)
        self.spec = self.backend.spec

    @property
    def names(self) -> tuple[str, ...]:
        """Class names; the index is the class id."""
        return self.spec.class_names

    def __call__(
        self,
        image: Any,
        *,
        threshold: Threshold | None = None,
        classes: Iterable[str | int] | None = None,
        max_detections: int | None = None,
        color: Color = "bgr",
    ) -> Detections:
        """Detect objects in one image.

        Args:
            image: BGR uint8 [h, w, 3]; a path; with color="rgb" an RGB array or a Pillow image.
            threshold: keep scores above this; None takes the model's own. "per-class" takes the
                best-F1 threshold of every class, "precision" the lowest that reached the target
                precision; both are in files whose thresholds were measured by `nmsfree eval`.
                A class that was not measured takes the overall threshold; with "precision", one
                that never reached the target is not shown.
            classes: names or ids to keep; None keeps all.
            max_detections: keep at most this many, the best ones.
            color: channel order of an array, "bgr" (as OpenCV reads) or "rgb".

        Raises:
            InputError: the image or an argument cannot be used.
            ModelError: the model answers what no detector does: NaN, scores above 1.
        """
        return self.batch(
            [image],
            threshold=threshold,
            classes=classes,
            max_detections=max_detections,
            color=color,
        )[0]

    def batch(
        self,
        images: Sequence[Any],
        *,
        threshold: Threshold | None = None,
        classes: Iterable[str | int] | None = None,
        max_detections: int | None = None,
        color: Color = "bgr",
    ) -> list[Detections]:
        """Detect objects in several images of any sizes; arguments as for a single one.

        Raises:
            InputError: an image or an argument cannot be used, or `images` is a single image.
        """
        single = isinstance(images, np.ndarray) and images.ndim != 4
        if single or isinstance(images, str) or not hasattr(images, "__len__"):
            raise InputError(
                f"batch takes a list of images, found one {type(images).__name__}: "
                "call the detector itself for a single image"
            )
        thresholds = self._thresholds(threshold)
        keep = self._class_ids(classes)
        if max_detections is not None and (
            not isinstance(max_detections, int | np.integer) or max_detections < 1
        ):
            raise InputError(
                f"max_detections is {max_detections!r}, expected a whole number, 1 or more"
            )
        step = self.spec.batch or MAX_DYNAMIC_BATCH
        results: list[Detections] = []
        for start in range(0, len(images), step):
            inputs, geometries = self.preprocess(images[start : start + step], color)
            raw = self.backend.run(inputs)
            results += [
                self._finish(raw, i, geometry, thresholds, keep, max_detections)
                for i, geometry in enumerate(geometries)
            ]
        return results

    def preprocess(
        self, images: Sequence[Any], color: Color = "bgr"
    ) -> tuple[NDArray[np.uint8], list[Geometry]]:
        """Letterbox up to one batch of images: uint8 [N, H, W, 3] and the way back for each.

        With a fixed batch size the rows without an image are left zero.
        """
        rows = self.spec.batch or len(images)
        shape = (rows, self.spec.height, self.spec.width, 3)
        inputs = np.empty(shape, np.uint8) if rows == len(images) else np.zeros(shape, np.uint8)
        geometries = [
            letterbox(as_bgr(image, color), row, self.spec.interpolation)
            for image, row in zip(images, inputs, strict=False)
        ]
        return inputs, geometries

    def _finish(
        self,
        raw: RawDetections,
        index: int,
        geometry: Geometry,
        thresholds: NDArray[np.float32],
        classes: NDArray[np.int32] | None,
        max_detections: int | None,
    ) -> Detections:
        boxes, scores, class_ids = rows_of(raw, index, self.spec)
        keep = scores > thresholds[class_ids]
        if classes is not None:
            keep &= np.isin(class_ids, classes)
        rows = np.flatnonzero(keep)[:max_detections]
        found = geometry.to_source(boxes[rows])
        return Detections(found, scores[rows], class_ids[rows], self.names)

    def _thresholds(self, threshold: Threshold | None) -> NDArray[np.float32]:
        """Return the threshold of every class, float32 [classes]."""
        if isinstance(threshold, str):
            return np.array(self._measured(threshold), np.float32)
        value = self.spec.threshold if threshold is None else self._check_threshold(threshold)
        return np.full(len(self.names), value, np.float32)

    def _measured(self, kind: str) -> tuple[float, ...]:
        if kind not in ("per-class", "precision"):
            raise InputError(
                f"threshold is {kind!r}, expected a number, 'per-class' or 'precision'"
            )
        measured = self.spec.thresholds
        if measured is None:
            raise InputError(
                f"threshold is {kind!r}, but this model holds no measured thresholds: export it "
                "with `--thresholds` and what `nmsfree eval --json` wrote, or give a number"
            )
        return measured.for_best_f1() if kind == "per-class" else measured.for_precision()

    def _check_threshold(self, threshold: float) -> float:
        if isinstance(threshold, bool) or not isinstance(threshold, int | float | np.number):
            raise InputError(f"threshold is {threshold!r}, expected a number")
        if not self.spec.score_floor <= threshold <= 1:
            raise InputError(
                f"threshold is {threshold}, expected {self.spec.score_floor} … 1: scores below "
                "the floor are not in this model's output (export with a lower --score-floor)"
            )
        return float(threshold)

    def _class_ids(self, classes: Iterable[str | int] | None) -> NDArray[np.int32] | None:
        if classes is None:
            return None
        if isinstance(classes, str | int):
            classes = [classes]
        return np.array([self._class_id(c) for c in classes], dtype=np.int32)

    def _class_id(self, wanted: str | int) -> int:
        if isinstance(wanted, str) and wanted in self.names:
            return self.names.index(wanted)
        whole = isinstance(wanted, int | np.integer) and not isinstance(wanted, bool)
        if whole and 0 <= int(wanted) < len(self.names):
            return int(wanted)
        shown = ", ".join(self.names[:10]) + (", …" if len(self.names) > 10 else "")
        raise InputError(f"class {wanted!r} is unknown; the model knows {len(self.names)}: {shown}")

    def close(self) -> None:
        """Free the engine."""
        self.backend.close()

    def __enter__(self) -> "Detector":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(model: str | Path | Backend, device: str | None, options: Options) -> Backend:
    if isinstance(model, str | Path):
        return open_backend(model, device, options)
    if device is not None:
        raise InputError(f"device is {device!r}, but a backend is open on its own: leave it out")
    options.check("a backend, which is open on its own")
    return model
