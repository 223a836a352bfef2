"""What objects are taken for."""

import numpy as np
from numpy.typing import NDArray

from nmsfree.evaluation.boxes import Boxes
from nmsfree.evaluation.matching import match


def confusion_matrix(found: Boxes, truth: Boxes, classes: int) -> NDArray[np.int64]:
    """Count what is taken for what, boxes matched at IoU 0.5 whatever their classes.

    Args:
        found: what is shown, from `best_first`.
        truth: the objects; crowd regions and what lies in them do not count.
        classes: number of classes.

    Returns:
        int64 [classes + 1, classes + 1]: rows are the truth, columns the prediction; the last
        row holds detections without an object, the last column objects without a detection.
    """
    matches = match(found, truth, by_class=False)
    missed = ~truth.crowd
    missed[matches.truth[matches.hit]] = False
    alone = ~matches.hit & ~matches.ignored
    pairs = [
        (truth.label[matches.truth[matches.hit]], found.label[matches.hit]),
        (truth.label[missed], np.full(int(missed.sum()), classes)),
        (np.full(int(alone.sum()), classes), found.label[alone]),
    ]
    rows, columns = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    side = classes + 1
    return np.bincount(rows * side + columns, minlength=side * side).reshape(side, side)
