"""A contact sheet of digits scenes with their boxes, to look at."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.data.digits import CLASS_NAMES, SPLITS, Scene, make_scene
from nmsfree.errors import InputError
from nmsfree.files import write_picture

COLUMNS = 4
ZOOM = 2
FONT = cv2.FONT_HERSHEY_SIMPLEX
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def contact_sheet(seed: int = 0) -> NDArray[np.uint8]:
    """Return the first four scenes of every split, a row each, BGR uint8 [1536, 2048, 3]."""
    rows = [
        np.hstack([draw_boxes(make_scene(split, index, seed)) for index in range(COLUMNS)])
        for split in SPLITS
    ]
    return np.vstack(rows)


def draw_boxes(scene: Scene) -> NDArray[np.uint8]:
    """Return a scene enlarged, with white boxes and class names, BGR uint8 [512, 512, 3]."""
    picture = cv2.resize(scene.image, None, fx=ZOOM, fy=ZOOM, interpolation=cv2.INTER_CUBIC)
    for box, label in zip((scene.boxes * ZOOM).astype(int).tolist(), scene.labels, strict=True):
        x1, y1, x2, y2 = box
        cv2.rectangle(picture, (x1 - 1, y1 - 1), (x2, y2), WHITE, 1)
        place = (x1, y1 - 4 if y1 > 16 else y2 + 13)
        for colour, thickness in ((BLACK, 3), (WHITE, 1)):  # readable on any texture
            cv2.putText(
                picture, CLASS_NAMES[label], place, FONT, 0.45, colour, thickness, cv2.LINE_AA
            )
    return np.asarray(picture, dtype=np.uint8)


def write_preview(path: Path, seed: int = 0) -> None:
    """Write the contact sheet; the suffix of the path chooses the format.

    Raises:
        InputError: the suffix is no picture format.
    """
    if not path.suffix or not cv2.haveImageWriter(path.name):
        raise InputError(f"{path}: not a picture format that can be written, expected .png or .jpg")
    write_picture(path, contact_sheet(seed))
