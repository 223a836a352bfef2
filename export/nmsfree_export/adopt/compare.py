"""Does an adopted file say what its original says? The rows of both on the same pictures.

NMS is judged by itself: what enters it must be what the original gives, and what leaves it must be
what the greedy loop leaves of that. Of two boxes with nearly one score either may win, and then
wins others or not: the rows behind NMS of two files tell nothing of it.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from nmsfree.backends import OnnxRuntimeBackend
from nmsfree.backends.base import RawDetections
from nmsfree.backends.onnxruntime.session import OUTPUTS, make_session
from nmsfree.backends.rows import Rows, match
from nmsfree.detector import Detector
from nmsfree.errors import GateError
from nmsfree.nms import suppress
from nmsfree.preprocess import Geometry
from nmsfree.spec import ModelSpec
from nmsfree_export.adopt import reference
from nmsfree_export.adopt.foreign import Foreign, candidates_of
from nmsfree_export.adopt.reference import Original
from nmsfree_export.graph.contract import CANDIDATES
from nmsfree_export.verify.parity import FAR, Pictures

TOGETHER = 4  # pictures in a run of a file of dynamic batch
SMALL = 2  # pixels: boxes of 0 … 1 that are taken for pixels
LEAST_ROWS = 100
SCORE, BOX = 1e-4, 0.05  # what may differ: scores, corners in input pixels; in half precision:
HALF_SCORE, HALF_BOX = 0.01, 0.5
TIES = 0.02  # of the rows of a file's own NMS, which is not looked into


@dataclass(frozen=True)
class Adoption:
    """How the rows of the original and of the adopted file compare.

    Attributes:
        rows: compared, of all pictures; where NMS was added, of those that enter it.
        spread: different scores among them.
        unmatched: rows of either without a partner, those at the end of the list left out.
        score_difference: largest of matched rows; below a score of 0.01 a hundredth of it counts
            as 1e-4.
        box_difference: largest of matched rows, in input pixels.
        nms_wrong: rows that NMS left or took away where the greedy loop does not; None: none was
            added.
        longer_chains: pictures in which it left too many, as chains of overlaps are longer than its
            steps.
    """

    images: int
    rows: int
    spread: int
    unmatched: int
    score_difference: float
    box_difference: float
    nms_wrong: int | None = None
    longer_chains: int = 0

    def __str__(self) -> str:
        nms = ""
        if self.nms_wrong is not None:
            nms = f"; NMS differs from the greedy loop in {self.nms_wrong} rows"
            if self.longer_chains:
                nms += f", and has too few steps for {self.longer_chains} of the pictures"
        return (
            f"{self.rows} rows of {self.images} pictures, {self.unmatched} without a partner,"
            f" scores within {self.score_difference:.1e}, boxes within"
            f" {self.box_difference:.3f} px{nms}"
        )


class Answer(NamedTuple):
    """Of an adopted file for one picture: its rows, or those that enter the NMS that was added."""

    name: str
    picture: NDArray[np.uint8]
    geometry: Geometry
    rows: reference.Rows  # in the picture's pixels
    nms_wrong: int
    longer_chain: bool


def compare(
    original: Original,
    adopted: Path,
    foreign: Foreign,
    pictures: Pictures,
    progress: Callable[[str], None] = lambda _: None,
) -> Adoption:
    """Run the original with its reference, and the adopted file through `Detector`.

    The first picture runs alone and the others together, so that both batch sizes are seen.
    """
    rows = unmatched = wrong = longer = 0
    score = box = widest = 0.0
    seen: set[float] = set()
    with closing(OnnxRuntimeBackend(adopted)) as backend:
        spec = backend.spec
        added = spec.nms is not None and not foreign.own_nms
        for answer in _answers(backend, adopted, pictures, foreign.size, added):
            name, picture, geometry, have, *nms = answer
            progress(f"comparing: {name}")
            want = original.answer(foreign, picture, None if added else spec)
            want = want.best(candidates_of(foreign, spec))
            a, b = (Rows(*side, _cut(side, spec, added)) for side in (want, have))
            ours, theirs = match(a, b, FAR, FAR * max(picture.shape[:2]))
            scale = max(geometry.scale_x, geometry.scale_y)
            sides = np.ptp(have.boxes.reshape(-1, 2, 2), axis=1) * scale
            widest = max(widest, sides.max(initial=0))
            apart = np.abs(a.boxes[ours] - b.boxes[theirs]).max(axis=1, initial=0) * scale
            if spec.nms is not None:  # another one won, or came last into the list
                near = apart <= BOX
                ours, theirs, apart = ours[near], theirs[near], apart[near]
            unmatched += a.alone(ours, b, SCORE) + b.alone(theirs, a, SCORE)
            scores = a.scores[ours]
            differ = np.abs(scores - b.scores[theirs]) / np.clip(100 * scores, 1e-6, 1)
            score, box = max(score, differ.max(initial=0)), max(box, apart.max(initial=0))
            rows, wrong, longer = rows + len(ours), wrong + nms[0], longer + nms[1]
            seen.update(np.round(scores, 6).tolist())
    if rows and widest < SMALL:
        raise GateError(
            f"adoption: no box is wider than {widest:.1f} pixels: they may be shares of the input:"
            " give --boxes xyxy-share or cxcywh-share"
        )
    found = len(pictures), rows, len(seen), unmatched, float(score), float(box)
    return Adoption(*found, wrong if added else None, longer)


def _answers(
    backend: OnnxRuntimeBackend,
    path: Path,
    pictures: Pictures,
    size: tuple[int, int],
    added: bool,
) -> Iterator[Answer]:
    """What an adopted file gives; with NMS that was `added` also what enters it."""
    detector, run = Detector(backend, size=size), None
    if added:
        run = _with_candidates(path)
    starts = [0, *range(1, len(pictures), backend.spec.batch or TOGETHER)]
    for start, end in zip(starts, [*starts[1:], len(pictures)], strict=True):
        chunk = pictures[start:end]
        inputs, geometries = detector.preprocess([picture for _, picture in chunk])
        raw, candidates = run(inputs) if run else (backend.run(inputs), None)
        for i, ((name, picture), geometry) in enumerate(zip(chunk, geometries, strict=True)):
            count = None if backend.spec.nms is None else int(raw.num_detections[i, 0])
            left = reference.Rows(
                raw.detection_boxes[i, :count],
                raw.detection_scores[i, :count],
                raw.detection_classes[i, :count].astype(np.int64),
            )
            if candidates is None:
                yield Answer(name, picture, geometry, _to_source(left, geometry, True), 0, False)
                continue
            enter = reference.Rows(*(values[i] for values in candidates))
            nms = _judge_nms(enter, left, detector.spec)
            yield Answer(name, picture, geometry, _to_source(enter, geometry, False), *nms)


Run = Callable[[NDArray[np.uint8]], tuple[RawDetections, list[NDArray[Any]] | None]]


def _with_candidates(path: Path) -> Run:
    """What runs a file and gives what enters its NMS, too."""
    model = onnx.load(path)
    for name, kind in zip(CANDIDATES, (TensorProto.FLOAT,) * 2 + (TensorProto.INT64,), strict=True):
        model.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    session = make_session(model.SerializeToString())

    def run(images: NDArray[np.uint8]) -> tuple[RawDetections, list[NDArray[Any]]]:
        found = session.run([*OUTPUTS, *CANDIDATES], {"images": images})
        return RawDetections(*found[: len(OUTPUTS)]), found[len(OUTPUTS) :]

    return run


def _to_source(rows: reference.Rows, geometry: Geometry, clipped: bool) -> reference.Rows:
    if clipped:
        boxes = geometry.to_source(rows.boxes.astype(np.float32))
    else:
        offset = np.array([geometry.left, geometry.top] * 2)
        boxes = (rows.boxes - offset) / np.array([geometry.scale_x, geometry.scale_y] * 2)
    return reference.Rows(
        boxes.astype(np.float64), rows.scores.astype(np.float64), rows.classes.astype(np.int64)
    )


def _judge_nms(enter: reference.Rows, left: reference.Rows, spec: ModelSpec) -> tuple[int, bool]:
    """Rows that NMS left wrongly or took away wrongly, and whether its steps are too few.

    Then all that the greedy loop leaves is there, and more.
    """
    assert spec.nms is not None
    boxes, scores = (values.astype(np.float32) for values in (enter.boxes, enter.scores))
    kept = suppress(boxes, scores, enter.classes, spec.nms.iou, spec.nms.class_aware)
    kept = kept[enter.scores[kept] > np.float32(spec.score_floor)][: spec.top_k]
    boxes = np.clip(boxes[kept], 0, [spec.width, spec.height] * 2)
    # Of equal scores at the end of a full list any may be there.
    last = left.scores[-1] if len(left.scores) == spec.top_k else np.float32(0)
    want = _counted(boxes, enter.scores[kept], enter.classes[kept], last)
    found = _counted(*left, last)
    missing, more = (want - found).total(), (found - want).total()
    longer = more > 0 and not missing and _steps_needed(enter, spec) > (spec.nms.steps or math.inf)
    return (0 if longer else missing + more), longer


def _steps_needed(enter: reference.Rows, spec: ModelSpec) -> int:
    """After how many steps nothing changes any more, if each asks of all boxes whether one stays.

    A box stays if none that is better and stayed so far overlaps it.
    """
    assert spec.nms is not None
    low, high = np.sort(enter.boxes.reshape(-1, 2, 2), axis=1).transpose(1, 0, 2)
    shared = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    overlap = np.maximum(shared, 0).prod(axis=2)
    area = (high - low).prod(axis=1)
    removes = np.triu(overlap > spec.nms.iou * (area[:, None] + area - overlap), 1)
    if spec.nms.class_aware:
        removes &= enter.classes[:, None] == enter.classes
    stays, steps = np.ones(len(area), bool), 0
    while True:
        after = ~removes[stays].any(axis=0)
        if (after == stays).all():
            return steps
        stays, steps = after, steps + 1


def _counted(
    boxes: NDArray[Any], scores: NDArray[Any], classes: NDArray[Any], last: Any
) -> Counter[tuple[float, ...]]:
    whole = np.column_stack([boxes, scores, classes])[scores > last].astype(np.float32)
    return Counter(map(tuple, whole.tolist()))


def _cut(rows: reference.Rows, spec: ModelSpec, added: bool) -> float:
    """The score below which rows may be missing: that of the last one where the list is full."""
    full = added or len(rows.scores) == spec.top_k
    return float(rows.scores.min(initial=1)) if full else spec.score_floor


def enforce(found: Adoption, spec: ModelSpec) -> None:
    """Raise GateError unless the files say the same."""
    score, box = (HALF_SCORE, HALF_BOX) if spec.precision == "fp16" else (SCORE, BOX)
    own_nms = spec.nms is not None and found.nms_wrong is None
    by_operator = spec.nms is not None and spec.nms.steps is None  # which divides
    if (
        found.unmatched > (TIES * found.rows if own_nms else 0)
        or found.score_difference > score
        or found.box_difference > box
        or (found.nms_wrong or 0) > (TIES * found.rows if by_operator else 0)
    ):
        raise GateError(
            f"adoption: the file does not say what the original says: {found}; expected"
            f" {score:.0e} and {box} px"
        )
    if found.rows < LEAST_ROWS or found.spread < LEAST_ROWS // 2:
        raise GateError(
            f"adoption: {found.rows} rows with {found.spread} different scores are too few to"
            f" judge, expected {LEAST_ROWS}: give pictures it was made for with --images, or more"
            " rows and classes with --top-k and --classes"
        )
