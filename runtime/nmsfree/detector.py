"""Detector: images in, detections in source pixels out."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple, TypeGuard

import numpy as np
from numpy.typing import NDArray

from nmsfree.backends import Backend, Options, open_backend
from nmsfree.backends.contract import rows_of
from nmsfree.backends.options import Precision
from nmsfree.canary import SelfCheck, check_canary
from nmsfree.detections import Detections
from nmsfree.errors import InputError
from nmsfree.images import Color, as_bgr
from nmsfree.parsing import whole_number
from nmsfree.preprocess import Geometry, resize_into
from nmsfree.spec import ModelSpec
from nmsfree.text import FilePath, as_path, meant, shown
from nmsfree.tiles import Tiling

logger = logging.getLogger(__name__)

Threshold = float | Literal["per-class", "precision"]

IMAGES_PER_RUN = 16  # where the file takes any number


class Detector:
    """Runs a model on images of any size. Safe to call from several threads.

    A pickled detector opens its file again, where it is unpickled. After a fork, the child's first
    run on ONNX Runtime's processor does so; on other engines it is an EngineError.

    Args:
        model: path of an exported `.onnx`, of an `.engine` built from one (or a checkpoint, with
            nmsfree-training installed), or a backend.
        device: where the model runs, never replaced by another one silently: "cpu", "cuda",
            "tensorrt-rtx", "openvino"; "cuda:1" is the second GPU, "openvino:GPU" an Intel GPU.
            None takes the processor, and for an engine the GPU.
        size: (height, width) of the input, for a file that takes any; None takes its usual one.
        threads: processor threads of one run; None leaves it to the engine.
        allow_cpu: run on the processor, with a warning, where the GPU that was asked for cannot.
        tf32: let a GPU round float32 factors to TF32; False computes real FP32. (An engine has
            that decided when it is built.)
        precision: arithmetic of OpenVINO, "f32" (also if None) or "bf16".
        rebuild: an engine that does not fit this machine is built again from the ONNX file beside
            it; False makes that an error.
        trust: open an engine whose hash is not the recorded one; an engine runs native code.
        sha256: of the file in hexadecimal, from where the application keeps it: another file is
            refused, and an engine that does not fit is not built again.
        max_contexts: runs of an engine at once, each with memory of its own on the GPU; further
            threads wait in the order in which they came. None takes 8, or as many as half of the
            memory holds that is free on the GPU now.

    Raises:
        InputError: an unknown device, or an option that does not apply to this model and device.
        ModelError: the file cannot be used, or has another hash.
        MissingExtraError: what runs such a file is not installed.
        EngineError: the device cannot run it on this machine.

    Examples:
        >>> with Detector("model.onnx") as detector:
        ...     for box, confidence, class_id, name in detector(image):  # BGR uint8 [h, w, 3]
        ...         print(name, confidence, box)
    """

    def __init__(
        self,
        model: FilePath | Backend,
        *,
        device: str | None = None,
        size: tuple[int, int] | None = None,
        threads: int | None = None,
        allow_cpu: bool = False,
        tf32: bool = False,
        precision: Precision | None = None,
        rebuild: bool = True,
        trust: bool = False,
        sha256: str | None = None,
        max_contexts: int | None = None,
    ) -> None:
        options = Options(threads, allow_cpu, tf32, precision, rebuild, trust, sha256, max_contexts)
        self._path: str | None = None  # None: of a backend, which is open on its own
        if not _is_backend(model):
            path = as_path(model, "model", "a path or a backend")
            self._path = str(path.absolute())
            self._options = {"device": device, "size": size} | vars(options)
            self.backend: Backend = open_backend(path, device, options)
        elif device is not None:
            raise InputError(
                f"device is {device!r}, but a backend is open on its own: leave it out"
            )
        else:
            options.check("a backend, which is open on its own")
            self.backend = model
        self.spec = self.backend.spec if size is None else _sized(self.backend.spec, size)
        self._told_whole = False  # that a picture is smaller than a tile

    def __reduce__(self) -> tuple[Callable[[str], "Detector"], tuple[str]]:
        if self._path is None:
            raise InputError(
                "a detector over a backend cannot be pickled or copied, as one cannot open it"
                " again: open it from a path, or open one in each process"
            )
        return partial(Detector, **self._options), (self._path,)

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
            image: BGR uint8 [h, w, 3]; a path, or an image file's bytes, or one open for reading;
                with color="rgb" an RGB array or a Pillow image.
            threshold: keep scores above this; None takes the model's own. "per-class" takes the
                best-F1 threshold of every class, "precision" the lowest that reached the target
                precision, both from files with thresholds that `nmsfree eval` measured. A class
                that was not measured takes the overall threshold; with "precision", one that never
                reached the target is not shown.
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
        images = _listed(images)
        wanted = self._wanted(threshold, classes, max_detections)
        step = self.spec.batch or IMAGES_PER_RUN
        results: list[Detections] = []
        for start in range(0, len(images), step):
            inputs, geometries = self.preprocess(images[start : start + step], color)
            raw = self.backend.run(inputs)
            for index, geometry in enumerate(geometries):
                boxes, scores, class_ids = rows_of(raw, index, self.spec)
                rows = wanted.rows(scores, class_ids)
                # Rows that did not fit score no more than the last one that did.
                full = len(scores) == raw.detection_scores.shape[1] and scores[-1] > wanted.lowest
                results.append(
                    Detections(
                        geometry.to_source(boxes[rows]),
                        scores[rows],
                        class_ids[rows],
                        self.names,
                        bool(full) and len(rows) != max_detections,
                    )
                )
        return results

    def tiled(
        self,
        image: Any,
        *,
        tile: int | None = None,
        overlap: int | None = None,
        threshold: Threshold | None = None,
        classes: Iterable[str | int] | None = None,
        max_detections: int | None = None,
        color: Color = "bgr",
    ) -> Detections:
        """Detect objects in one large picture by overlapping tiles, and once more as a whole.

        No object is told twice, see `nmsfree.tiles`; other arguments as for a call.

        Args:
            tile: width of a tile in pixels of the picture; None takes the model's input, which
                keeps the scale. Its height follows from the input's.
            overlap: pixels that neighbours share; None takes 7/16 of the width. Objects up to this
                size are whole in one of them.

        Raises:
            InputError: as for a call, or tile and overlap do not fit.
        """
        wanted = self._wanted(threshold, classes, max_detections)
        picture = as_bgr(image, color)
        height, width = picture.shape[:2]
        tiling = Tiling(self.spec.width if tile is None else tile, overlap)
        tiles = tiling.lay(height, width, self.spec.height / self.spec.width)
        if len(tiles.views) == 2:  # one tile, and the whole picture
            if tile is not None and tile > width and not self._told_whole:
                self._told_whole = True
                logger.warning("a picture is %d pixels wide, a tile %d: it is not cut", width, tile)
            return self(
                picture, threshold=threshold, classes=classes, max_detections=max_detections
            )
        crops = [picture[y1:y2, x1:x2] for x1, y1, x2, y2 in tiles.views.tolist()]
        parts = self.batch(crops, threshold=self.spec.score_floor)
        joined = tiles.join(parts)
        rows = wanted.rows(joined.confidence, joined.class_id)
        full = any(p.truncated and p.confidence[-1] > wanted.lowest for p in parts[:-1])
        return replace(joined[rows], truncated=full and len(rows) != max_detections)

    def preprocess(
        self, images: Sequence[Any], color: Color = "bgr"
    ) -> tuple[NDArray[np.uint8], list[Geometry]]:
        """Make the input of up to one batch, uint8 [N, H, W, 3], and the way back of each image.

        With a fixed batch size the rows without an image are left zero. A model that takes a
        picture of any size is given it as it is.

        Raises:
            InputError: an image cannot be used, or there are more than the fixed batch takes.
        """
        images = _listed(images)
        rows = self.spec.batch or len(images)
        if len(images) > rows:
            raise InputError(
                f"{len(images)} images found, but this model takes {rows} in a run: give so many,"
                " or call Detector.batch, which takes any number"
            )
        if self.spec.input == "any" and images:
            return self._as_it_is(as_bgr(images[0], color))
        shape = (rows, *self.spec.canary_size, 3)
        inputs = np.empty(shape, np.uint8) if rows == len(images) else np.zeros(shape, np.uint8)
        geometries = [
            resize_into(as_bgr(image, color), row, self.spec.resize)
            for image, row in zip(images, inputs, strict=False)
        ]
        return inputs, geometries

    def _as_it_is(self, picture: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], list[Geometry]]:
        height, width = picture.shape[:2]
        if self.spec.source not in (None, (height, width)):
            wanted = " × ".join(map(str, self.spec.source or ()))
            raise InputError(
                f"the image has {height} × {width} pixels, but this model takes {wanted} only: give"
                " such images, or export it without --source"
            )
        return picture[None], [Geometry(height, width, 1.0, 1.0)]

    def self_check(self) -> SelfCheck:
        """Run the model's canary once: does this engine still answer as the file did at export?

        It is a picture of the input's size that the file's description defines, with the rows that
        the file gave; they are compared as sets, within what this kind of engine may differ by. The
        picture fills a fixed batch, every image of which is compared; an open batch takes one.

        Raises:
            ModelError: the file has no canary (older ones have none), or a damaged one.
            EngineError: the engine failed.
        """
        return check_canary(self.backend, "the model" if self._path is None else self._path)

    def _wanted(
        self,
        threshold: Threshold | None,
        classes: Iterable[str | int] | None,
        max_detections: int | None,
    ) -> "_Wanted":
        thresholds, keep = self._thresholds(threshold), self._class_ids(classes)
        if max_detections is not None and not (_is_whole(max_detections) and max_detections > 0):
            raise InputError(
                f"max_detections is {max_detections!r}, expected a whole number, 1 or more"
            )
        lowest = float((thresholds if keep is None else thresholds[keep]).min(initial=np.inf))
        return _Wanted(thresholds, keep, max_detections, lowest)

    def _thresholds(self, threshold: Threshold | None) -> NDArray[np.float32]:
        """Return the threshold of every class, float32 [classes]."""
        if isinstance(threshold, str):
            return np.array(self._measured(threshold), np.float32)
        value = self.spec.threshold if threshold is None else threshold
        if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
            raise InputError(f"threshold is {threshold!r}, expected a number")
        if threshold is not None and not self.spec.score_floor <= value <= 1:
            raise InputError(
                f"threshold is {threshold}, expected {self.spec.score_floor} … 1: scores below "
                "the floor are not in this model's output (export with a lower --score-floor)"
            )
        return np.full(len(self.names), float(value), np.float32)

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

    def _class_ids(self, classes: Iterable[str | int] | None) -> NDArray[np.int32] | None:
        if classes is None:
            return None
        if isinstance(classes, str | int | np.integer):
            classes = [classes]
        if isinstance(classes, bytes) or not isinstance(classes, Iterable):
            raise InputError(f"classes is {classes!r}, expected names or ids")
        return np.array([self._class_id(c) for c in classes], dtype=np.int32)

    def _class_id(self, wanted: str | int) -> int:
        if isinstance(wanted, str) and wanted in self.names:
            return self.names.index(wanted)
        if _is_whole(wanted) and 0 <= int(wanted) < len(self.names):
            return int(wanted)
        shown = ", ".join(self.names[:10]) + (", …" if len(self.names) > 10 else "")
        raise InputError(
            f"class {wanted!r} is unknown; the model knows {len(self.names)}: {shown}"
            f"{meant(self.names, wanted)}"
        )

    def close(self) -> None:
        """Free the engine."""
        self.backend.close()

    def __enter__(self) -> "Detector":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Wanted(NamedTuple):
    """Which rows of an image a caller wants."""

    thresholds: NDArray[np.float32]  # of every class
    keep: NDArray[np.int32] | None  # classes; None keeps all
    most: int | None
    lowest: float  # threshold of the wanted classes

    def rows(self, scores: NDArray[np.float32], class_ids: NDArray[np.int32]) -> NDArray[np.int64]:
        """Indices of rows that come best first."""
        shown = scores > self.thresholds[class_ids]
        if self.keep is not None:
            shown &= np.isin(class_ids, self.keep)
        return np.flatnonzero(shown)[: self.most]


def _sized(spec: ModelSpec, size: tuple[int, int]) -> ModelSpec:
    """The description of a model that is fed with pictures of this size.

    InputError: it does not take that.
    """
    if tuple(size) == (spec.height, spec.width):
        return spec
    height, width = size
    if spec.size_step is None:
        raise InputError(
            f"size is {height} × {width}, but this model takes {spec.height} × {spec.width} only:"
            " leave it out"
        )
    if min(size) < 1 or height % spec.size_step or width % spec.size_step:
        raise InputError(f"size is {height} × {width}, expected multiples of {spec.size_step}")
    return replace(spec, height=height, width=width)


def _is_backend(model: object) -> TypeGuard[Backend]:
    """Whether it can be run, also where it hands on to another by `__getattr__`."""
    return not isinstance(model, type) and all(hasattr(model, n) for n in ("spec", "run", "close"))


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _listed(images: Sequence[Any]) -> Sequence[Any]:
    """Refuse what is not several images, whose order is known."""
    if isinstance(images, list | tuple):
        return images
    single = isinstance(images, np.ndarray) and images.ndim != 4
    single = single or isinstance(images, str | bytes | bytearray | memoryview | os.PathLike)
    if single or isinstance(images, Mapping | Set) or not hasattr(images, "__len__"):
        raise InputError(
            f"batch takes a list of images, found one {type(images).__name__}: "
            "call the detector itself for a single image"
        )
    return list(images)


def parse_threshold(text: str | None) -> Threshold | None:
    """Read a number, or one of the words that `Detector` takes; None stays."""
    if text is None or text in ("per-class", "precision"):
        return text  # type: ignore[return-value]
    try:
        return float(text)
    except ValueError:
        raise InputError(
            f"threshold is {shown(text)!r}, expected a number, 'per-class' or 'precision'"
        ) from None


def parse_classes(classes: str | None, names: tuple[str, ...]) -> tuple[str | int, ...] | None:
    """Split "car,dog,3"; a number is a class id unless a class has that name."""
    if classes is None:
        return None
    parts = [part.strip() for part in classes.split(",")]
    numbers = [None if part in names else whole_number(part) for part in parts]
    pairs = zip(parts, numbers, strict=True)
    return tuple(part if n is None else n for part, n in pairs if part)
