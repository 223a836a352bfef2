"""Pictures of objects that NMS deletes: the labels, what is left after NMS, what is found without.

Both detectors show what they would show a user: detections above the score with the best F1 on the
whole split. An object counts as found if a detection of its class overlaps it by IoU 0.5 and hits
no other object.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.datasets.dataset import DetectionDataset
from nmsfree.datasets.formats.folder import load_dataset
from nmsfree.detector import Detector
from nmsfree.drawing import Mark, Tile, make_sheet
from nmsfree.errors import InputError
from nmsfree.evaluation.analysis import analyse
from nmsfree.evaluation.boxes import Boxes, best_first, objects_of, read_boxes
from nmsfree.evaluation.evaluate import predict
from nmsfree.evaluation.matching import match
from nmsfree.files import check_outputs, write_atomic
from nmsfree.images import read_image

TRUE, FOUND, MISSED, WRONG = (120, 200, 90), (90, 200, 90), (60, 60, 235), (0, 165, 255)  # BGR

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Shown:
    """What one detector shows of a split, and what it hits."""

    title: str
    threshold: float
    found: Boxes  # above the threshold, best first
    right: NDArray[np.bool_]  # [n], whether each hits an object
    hit: NDArray[np.int64]  # rows of the objects that are found

    def lost(self, truth: Boxes) -> NDArray[np.bool_]:
        """bool [objects], those that are not found; crowd regions are none."""
        flags = ~truth.crowd
        flags[self.hit] = False
        return flags


@dataclass(frozen=True)
class Outcome:
    """What was drawn, and how often it happens in the whole split."""

    objects: int
    lost_with_nms: int  # objects that it misses
    lost_without: int
    only_with_nms: int  # missed by the detector with NMS and found by the other
    only_without: int
    scenes: tuple[str, ...]  # file names in the picture


def write_scenes(
    with_nms: Path,
    without: Path,
    data: Path,
    split: str,
    out: Path,
    count: int = 3,
    progress: Progress = lambda done, total: None,
) -> Outcome:
    """Draw the scenes where NMS costs most, one row each: labels, with NMS, without.

    Args:
        with_nms, without: checkpoint or ONNX file of a detector that needs NMS, and of one that
            needs none.
        progress: told (images done, of all) of both detectors together.

    Raises:
        InputError: `with_nms` has no NMS or `without` has, or there is nothing to draw.
        NmsfreeError: a model or the dataset cannot be used.
    """
    dataset = load_dataset(data, split)
    check_outputs([out], [with_nms, without, *dataset.files()])
    total = len(dataset)
    with Detector(with_nms) as baseline, Detector(without) as free:
        _check(baseline, with_nms, "needs it")
        _check(free, without, "needs none")
        truth = objects_of(dataset, _labels(free, dataset))
        shown = (
            _show(baseline, "NMS", dataset, truth, lambda d, _: progress(d, 2 * total)),
            _show(free, "no NMS", dataset, truth, lambda d, _: progress(total + d, 2 * total)),
        )
    chosen = _choose(shown, truth, total, count)
    if not chosen:
        raise InputError(
            f"no object of {split} is found without NMS only: there is no scene to draw"
        )
    names = free.names
    tiles = [t for image in chosen for t in _row(dataset, image, truth, shown, names)]
    quality = [cv2.IMWRITE_JPEG_QUALITY, 85] if out.suffix == ".jpg" else []
    done, content = cv2.imencode(out.suffix, make_sheet(tiles, 3), quality)
    if not done:
        raise InputError(f"{out}: the picture could not be encoded")
    write_atomic(out, content.tobytes())
    a, b = (s.lost(truth) for s in shown)
    scenes = tuple(dataset.samples[image].path.name for image in chosen)
    return Outcome(
        objects=int((~truth.crowd).sum()),
        lost_with_nms=int(a.sum()),
        lost_without=int(b.sum()),
        only_with_nms=int((a & ~b).sum()),
        only_without=int((b & ~a).sum()),
        scenes=scenes,
    )


def _check(detector: Detector, path: Path, wanted: str) -> None:
    found = "needs none" if detector.spec.nms is None else "needs it"
    if found != wanted:
        raise InputError(
            f"{path}: {detector.spec.name} {'needs no' if found == 'needs none' else 'needs'} NMS, "
            f"expected one that {wanted}: give the other file"
        )


def _labels(detector: Detector, dataset: DetectionDataset) -> dict[int, int]:
    """Class id of the detector by category id of the dataset."""
    ids = dict(zip(dataset.class_names, dataset.category_ids, strict=True))
    return {ids[name]: label for label, name in enumerate(detector.names)}


def _show(
    detector: Detector, title: str, dataset: DetectionDataset, truth: Boxes, progress: Progress
) -> _Shown:
    results = predict(detector, dataset, progress)
    threshold = analyse(dataset, results, detector.spec).best.threshold
    image_ids = [sample.image_id for sample in dataset.samples]
    found = best_first(read_boxes(results, image_ids, _labels(detector, dataset)))
    found = found.select(found.score > threshold)
    matches = match(found, truth)
    return _Shown(title, threshold, found, matches.hit, matches.truth[matches.hit])


def _choose(shown: tuple[_Shown, _Shown], truth: Boxes, images: int, count: int) -> list[int]:
    """Images in which NMS costs most objects, less the other errors in the picture."""
    with_nms, without = (s.lost(truth) for s in shown)
    gain = np.bincount(truth.image[with_nms & ~without], minlength=images)
    wrong = np.bincount(truth.image[without], minlength=images)
    for one in shown:
        wrong += np.bincount(one.found.image[~one.right], minlength=images)
    best = np.argsort(wrong - gain, kind="stable")[:count]
    chosen: list[int] = best[gain[best] > 0].tolist()
    return chosen


def _row(
    dataset: DetectionDataset,
    image: int,
    truth: Boxes,
    shown: tuple[_Shown, _Shown],
    names: Sequence[str],
) -> list[Tile]:
    sample = dataset.samples[image]
    pixels = read_image(sample.path)
    own = truth.image == image
    marks = tuple(_mark(truth, i, names, TRUE) for i in np.flatnonzero(own).tolist())
    tiles = [Tile(pixels, marks, f"{len(marks)} objects", sample.path.name)]
    for one in shown:
        lost = np.flatnonzero(own & one.lost(truth)).tolist()
        rows = np.flatnonzero(one.found.image == image).tolist()
        found = [_mark(one.found, i, names, FOUND if one.right[i] else WRONG) for i in rows]
        drawn = (*(_mark(truth, i, names, MISSED, "missed: ") for i in lost), *found)
        wrong = len(rows) - int(one.right[rows].sum())
        note = f"{len(lost)} missed, {wrong} wrong; scores above {one.threshold:.2f}"
        tiles.append(Tile(pixels, drawn, f"{one.title}: {len(rows)} detections", note))
    return tiles


def _mark(
    boxes: Boxes, row: int, names: Sequence[str], color: tuple[int, int, int], before: str = ""
) -> Mark:
    x, y, w, h = boxes.xywh[row].tolist()
    score = f" {boxes.score[row]:.2f}" if color in (FOUND, WRONG) and not before else ""
    return Mark((x, y, x + w, y + h), f"{before}{names[boxes.label[row]]}{score}", color)
