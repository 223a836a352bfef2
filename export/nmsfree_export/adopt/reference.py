"""What a file's own library would answer, in NumPy: written apart from the rewriting of graphs.

Pictures are resized, scaled and fed, and the outputs read, as the project documents it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.backends.contract import one_line
from nmsfree.backends.onnxruntime.session import make_session, vendor_errors
from nmsfree.errors import MissingExtraError, ModelError
from nmsfree.nms import suppress
from nmsfree.spec import ModelSpec, Resize
from nmsfree_export.adopt.foreign import Foreign, candidates_of

DTYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}
Run = Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]]  # inputs → outputs by name


class Rows(NamedTuple):
    """Detections of one picture: boxes xyxy in its pixels [n, 4], scores and classes [n]."""

    boxes: NDArray[np.floating[Any]]
    scores: NDArray[np.floating[Any]]
    classes: NDArray[np.int64]

    def best(self, count: int) -> "Rows":
        return self.chosen(np.argsort(-self.scores, kind="stable")[:count])

    def chosen(self, rows: NDArray[np.int64]) -> "Rows":
        return Rows(self.boxes[rows], self.scores[rows], self.classes[rows])

    def clipped(self, image: NDArray[np.uint8]) -> "Rows":
        limit = [image.shape[1], image.shape[0]] * 2
        return self._replace(boxes=np.clip(self.boxes, 0, limit))


class Original:
    """The file as it came, in ONNX Runtime.

    ModelError: ONNX Runtime does not run it.
    """

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        self._queries: int | None = None
        self._tried: dict[tuple[tuple[int, int], int], bool] = {}  # size, batch → runs
        with self._told():
            self.session = make_session(data)
            inputs = self.session.get_inputs()
            self.sizes = {value.name: value.shape for value in inputs}
            unknown = [f"'{v.name}' {v.type}" for v in inputs if v.type not in DTYPES]
            if unknown:
                raise ModelError(f"{path}: takes {', '.join(unknown)}, expected float pictures")
            self.dtypes = {value.name: DTYPES[value.type] for value in inputs}
            self.outputs = [value.name for value in self.session.get_outputs()]

    def answer(
        self,
        foreign: Foreign,
        picture: NDArray[np.uint8],
        spec: ModelSpec | None = None,
        run: Run | None = None,
    ) -> Rows:
        """See `answer`; without a description all rows that there are. `run` replaces the file."""
        batch = self.sizes[foreign.images][0]
        fixed = batch if isinstance(batch, int) else 1
        found = answer(run or self.run, foreign, picture, fixed)
        if run is None and not (np.isfinite(found.scores).all() and np.isfinite(found.boxes).all()):
            raise ModelError(f"{self.path}: answers values that are not finite: it is broken")
        if spec is None:
            return found
        found = found.best(candidates_of(foreign, spec))
        if spec.nms is not None and not foreign.own_nms:
            found = found.best(int((found.scores > spec.score_floor).sum()))
            boxes, scores = (values.astype(np.float32) for values in found[:2])
            found = found.chosen(suppress(boxes, scores, found.classes, spec.nms.iou))
        return found.best(spec.top_k).clipped(picture)

    def complete(self, foreign: Foreign) -> Foreign:
        """Say what only running tells: its queries, and whether what is said to be dynamic is."""
        black = np.zeros((64, 64, 3), np.uint8)
        batch, said = self.sizes[foreign.images][0], foreign.concluded
        if not isinstance(batch, int):
            batch = None
            if not self._runs(foreign, black, 2):
                batch, said = 1, (*said, ("batch", "1: said to be dynamic, but it refuses 2"))
        if foreign.size_step is not None:
            (height, width), step = foreign.size, foreign.size_step
            about = f"any multiple of {step}, usually {height} × {width}"
            if not self._runs(replace(foreign, size=larger(foreign)), black, batch or 1):
                foreign = replace(foreign, size_step=None)
                about = f"{height} × {width}: said to be dynamic, but it refuses others"
            said = (*said, ("size", about))
        foreign = replace(foreign, batch=batch, concluded=said)
        if foreign.output.kind != "dense" or foreign.queries is not None:
            return foreign
        count = len(foreign.columns)
        if self._queries is None:
            self._queries = len(self.answer(foreign, black).scores) // count
        rows = min(foreign.rows, self._queries * count)
        return replace(foreign, queries=self._queries, rows=rows)

    def _runs(self, foreign: Foreign, picture: NDArray[np.uint8], batch: int) -> bool:
        tried = foreign.size, batch
        if tried not in self._tried:
            try:
                answer(self.run, foreign, picture, batch)
            except ModelError:
                self._tried[tried] = False
            else:
                self._tried[tried] = True
        return self._tried[tried]

    def run(self, feed: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        feed = {name: feed[name].astype(self.dtypes[name]) for name in self.dtypes}
        with self._told():
            return dict(zip(self.outputs, self.session.run(None, feed), strict=True))

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except vendor_errors() as error:
            raise ModelError(f"{self.path}: does not run as it is ({one_line(error)})") from None


def larger(foreign: Foreign) -> tuple[int, int]:
    """Another size of a file of dynamic size, of another aspect."""
    step = foreign.size_step or 0
    return foreign.size[0] + step, foreign.size[1] + 3 * step


def answer(run: Run, foreign: Foreign, image: NDArray[np.uint8], batch: int = 1) -> Rows:
    """Return all rows of a file for one picture, boxes not clipped.

    Args:
        run: the original file; it takes of the inputs those that it has, in its own types.
        image: BGR uint8 [h, w, 3].
        batch: images that the file takes at once; all are this one.
    """
    pixels, scale, offset = _resized(foreign, image)
    values = pixels.astype(np.float64)
    if not foreign.bgr:
        values = values[..., ::-1]
    if foreign.normalize != "none":
        values = values / 255
    if foreign.normalize == "imagenet":
        values = (values - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    planes = np.stack([values.transpose(2, 0, 1)] * batch)
    height, width = foreign.size
    outputs = run(
        {
            foreign.images: planes,
            "orig_target_sizes": np.array([[width, height]] * batch),
            "im_shape": np.array([[height, width]] * batch),
            "scale_factor": np.ones((batch, 2)),
            "pixel_mask": np.ones((batch, height, width)),
        }
    )
    found = [outputs[name].astype(np.float64) for name in foreign.output.names]
    if foreign.output.kind == "paddle":
        found[0] = found[0].reshape(batch, -1, found[0].shape[-1])
    found = [value[0] for value in found]
    _check_shapes(found, foreign)
    boxes, scores, columns = _READERS[foreign.output.kind](found, foreign)
    if foreign.output.kind != "dense" and not set(columns.tolist()) <= set(range(foreign.classes)):
        raise ModelError(
            f"the file answers the classes {columns.min()} … {columns.max()}, its names are"
            f" {foreign.classes}: give them all with --names"
        )
    if "cxcywh" in foreign.output.boxes:
        centre, size = boxes[:, :2], boxes[:, 2:]
        boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    if "share" in foreign.output.boxes:
        boxes = boxes * [width, height, width, height]
    number = {column: i for i, column in enumerate(foreign.columns)}
    kept = np.array([column in number for column in columns.tolist()], bool)
    boxes, scores, columns = boxes[kept], scores[kept], columns[kept]
    source = (boxes - np.tile(offset, 2)) / np.tile(scale, 2)
    return Rows(source, scores, np.array([number[c] for c in columns.tolist()], np.int64))


def _resized(
    foreign: Foreign, image: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.float64]]:
    """The picture in the file's size, and its scale and offset, each (x, y)."""
    (height, width), (h, w) = foreign.size, image.shape[:2]
    resize, none = foreign.resize, np.zeros(2)
    if resize.kind == "stretch":
        return _shrunk(image, width, height, resize), np.array([width / w, height / h]), none
    ratio = min(height / h, width / w)
    new_w, new_h = round(w * ratio), round(h * ratio)
    small = _shrunk(image, new_w, new_h, resize)
    left = top = 0
    if resize.place == "center":
        left = round((width - new_w) / 2 - 0.1)
        top = round((height - new_h) / 2 - 0.1)
    sides = top, height - new_h - top, left, width - new_w - left
    padded = cv2.copyMakeBorder(small, *sides, cv2.BORDER_CONSTANT, value=resize.pad)
    return padded, np.array([new_w / w, new_h / h]), np.array([left, top], float)


def _shrunk(image: NDArray[np.uint8], width: int, height: int, resize: Resize) -> Any:
    if not resize.antialias:
        how = cv2.INTER_CUBIC if resize.interpolation == "cubic" else cv2.INTER_LINEAR
        return cv2.resize(image, (width, height), interpolation=how)
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("an antialiased resize", "nmsfree[pillow]") from None
    rgb = Image.fromarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
    # The rows first, as Pillow did when networks were trained.
    narrow = rgb.resize((width, rgb.height), Image.Resampling.BILINEAR)
    return np.asarray(narrow.resize((width, height), Image.Resampling.BILINEAR))[..., ::-1]


def _check_shapes(found: list[NDArray[Any]], foreign: Foreign) -> None:
    """Refuse outputs that are not what the file says of them.

    ModelError: says what came out.
    """
    kind, shapes = foreign.output.kind, [value.shape for value in found]
    count = shapes[0][:1]  # of rows, labels or boxes
    if kind in ("rows", "paddle"):
        right = shapes == [(*count, 6)]
    elif kind == "sorted":
        right = shapes == [count, (*count, 4), count]
    else:
        columns = (4 if len(shapes) == 1 else 0) + max(foreign.columns)
        wide = shapes[0][::-1] if foreign.output.columns_first else shapes[-1]
        right = len(wide) == 2 and wide[1] > columns
        right &= len(shapes) == 1 or shapes[0] == (wide[0], 4)
    if not right:
        names = ", ".join(foreign.output.names)
        raise ModelError(f"outputs {names} have the shapes {shapes}, which is no {kind} output")


Found = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]  # boxes, scores, columns


def _read_rows(found: list[NDArray[Any]], foreign: Foreign) -> Found:
    return found[0][:, :4], found[0][:, 4], found[0][:, 5].astype(np.int64)


def _read_paddle(found: list[NDArray[Any]], foreign: Foreign) -> Found:
    return found[0][:, 2:], found[0][:, 1], found[0][:, 0].astype(np.int64)


def _read_sorted(found: list[NDArray[Any]], foreign: Foreign) -> Found:
    return found[1], found[2], found[0].astype(np.int64)


def _read_dense(found: list[NDArray[Any]], foreign: Foreign) -> Found:
    if len(found) == 1:
        joined = found[0].T if foreign.output.columns_first else found[0]
        boxes, scores = joined[:, :4], joined[:, 4:]
    else:
        boxes, scores = found
    if foreign.output.logits:
        scores = 1 / (1 + np.exp(-scores))
    query, column = np.divmod(np.arange(scores.size), scores.shape[1])
    return boxes[query], scores.ravel(), column


_READERS = {
    "rows": _read_rows,
    "paddle": _read_paddle,
    "dense": _read_dense,
    "sorted": _read_sorted,
}
