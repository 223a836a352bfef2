"""Which detections hit which objects, as COCO decides it, for whole datasets at once.

Overlapping pairs are found with arrays; only those above the wanted IoU, a few for each object,
are then walked one by one in the order of the scores.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nmsfree.evaluation.boxes import Boxes, Indices, iou_of, pairs_between, pairs_within

HIT_IOU = 0.5  # overlap from which a detection counts as right
DUPLICATE_IOU = 0.7  # overlap above which two detections of a class show the same object
NESTED_SHARE = 0.8  # of the smaller box, from which it is nested in the other, below `HIT_IOU`
NMS_IOU = 0.6  # of the published evaluation


@dataclass(frozen=True, eq=False)
class Matches:
    """What became of every detection."""

    truth: Indices  # [n], row of the object that was hit, −1 for none
    ignored: NDArray[np.bool_]  # [n], neither right nor wrong: it lies in a crowd region

    @property
    def hit(self) -> NDArray[np.bool_]:
        """[n], whether an object was hit."""
        return self.truth >= 0


def match(found: Boxes, truth: Boxes, *, iou: float = HIT_IOU, by_class: bool = True) -> Matches:
    """Match detections to objects by COCO's rule.

    In the order of the scores a detection takes the object of its image (and class) that it
    overlaps most, if that IoU is at least `iou` and no better detection has it. One that gets
    none, but lies in a crowd region (intersection / area of the detection at least `iou`), is
    ignored; such a region takes any number.

    `found` comes from `best_first`; without `by_class` the class does not matter.
    """
    i, j = pairs_between(found, truth, iou, by_class)
    crowd = truth.crowd[j]
    taken, free = [-1] * len(found), [True] * len(truth)
    for detection, thing in zip(i[~crowd].tolist(), j[~crowd].tolist(), strict=True):
        if free[thing] and taken[detection] < 0:  # the first of its objects that is still free
            taken[detection] = thing
            free[thing] = False
    hit = np.array(taken, np.int64)
    ignored = np.zeros(len(found), np.bool_)
    ignored[i[crowd]] = True
    return Matches(hit, ignored & (hit < 0))


def duplicates(found: Boxes, iou: float = DUPLICATE_IOU) -> NDArray[np.bool_]:
    """Return bool [n]: overlaps a better detection of its image and class by more than `iou`.

    A threshold keeps the better one of such a pair whenever it keeps the other, so the duplicates
    that remain above a threshold are the flagged ones above it. `found` is from `best_first`.
    """
    flags = np.zeros(len(found), np.bool_)
    flags[pairs_within(found, iou)[1]] = True
    return flags


def nested(found: Boxes) -> int:
    """Count the pairs of an image and class in which a box lies in another that is much larger.

    NMS takes them for two objects: intersection over the smaller area above `NESTED_SHARE`, IoU
    below `HIT_IOU`. `found` is from `best_first`.
    """
    i, j = pairs_within(found, 0.0)
    iou = iou_of(found.xywh[i], found.xywh[j], found.crowd[j])
    area = found.xywh[:, 2:].prod(axis=1)
    shared = iou / (1 + iou) * (area[i] + area[j])
    return int(((iou < HIT_IOU) & (shared > NESTED_SHARE * np.minimum(area[i], area[j]))).sum())


def survivors(found: Boxes, iou: float = NMS_IOU) -> NDArray[np.bool_]:
    """Return bool [n]: what greedy, class-aware NMS leaves of what `best_first` gives.

    As `nmsfree.nms.suppress` does, but all images at once, which is fifteen times as fast.
    """
    alive = [True] * len(found)
    for better, worse in zip(*(p.tolist() for p in pairs_within(found, iou)), strict=True):
        if alive[better]:
            alive[worse] = False
    return np.array(alive, np.bool_)
