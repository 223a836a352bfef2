"""What stands at the start of a run: a network on its device, and data that fit together."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree.errors import DataError
from nmsfree.preprocess import fit
from nmsfree.text import shown
from nmsfree_training.config import Preset
from nmsfree_training.criterion.assignment import MIN_SIDE
from nmsfree_training.data.examples import largest_size


@dataclass(frozen=True)
class Objects:
    """What there is to train on.

    Attributes:
        images: all, also those without objects.
        count: objects, without crowd regions.
        crowd: regions of many objects: no targets.
        small: objects of which a side is under `MIN_SIDE` at the model's input: no targets there.
        never: those of them that stay as small at the largest size that the recipe resizes to.
        absent: classes without any other object.
        size: (height, width) of the model's input in pixels.
    """

    images: int
    count: int
    crowd: int
    small: int
    never: int
    absent: tuple[str, ...]
    size: tuple[int, int]

    def __str__(self) -> str:
        text = f"{self.count:,} objects"
        if self.crowd:
            text += f", and {self.crowd:,} crowd regions that are not trained on"
        if self.small:
            text += (
                f"; {self.small:,} objects ({self.small / self.count:.1%}) are under "
                f"{MIN_SIDE:.0f} px in the input of {self.size[1]} × {self.size[0]} and not "
                f"trained on at that size, {self.never:,} at no size of the recipe"
            )
        return text


def count_objects(dataset: DetectionDataset, preset: Preset) -> Objects:
    """Count what a recipe trains on, by the sizes in the annotations."""
    samples = dataset.samples
    counts = [len(sample.boxes) for sample in samples]
    sizes = np.array([(s.width, s.height) for s in samples], np.float64)  # [images, 2]
    usual = [fit(s.height, s.width, *preset.input_size) for s in samples]
    most = [largest_size(s.height, s.width, preset.train, preset.input_size) for s in samples]
    crowd = np.concatenate([sample.iscrowd for sample in samples])
    labels = np.concatenate([sample.labels for sample in samples])
    corners = np.concatenate([sample.boxes for sample in samples]).reshape(-1, 2, 2)
    inside = np.clip(corners, 0, np.repeat(sizes, counts, axis=0)[:, None])
    sides = inside[:, 1] - inside[:, 0]  # [objects, 2], pixels of the picture

    def small(resized: list[tuple[int, int]]) -> NDArray[np.bool_]:
        factors = np.array(resized, np.float64)[:, ::-1] / sizes
        least = (sides * np.repeat(factors, counts, axis=0)).min(axis=1, initial=np.inf)
        return np.asarray(~crowd & (least < MIN_SIDE), np.bool_)

    never = small(most)
    present = set(labels[~crowd & ~never].tolist())
    return Objects(
        images=len(samples),
        count=int((~crowd).sum()),
        crowd=int(crowd.sum()),
        small=int(small(usual).sum()),
        never=int(never.sum()),
        absent=tuple(n for label, n in enumerate(dataset.class_names) if label not in present),
        size=preset.input_size,
    )


def check_data(
    preset: Preset, train_set: DetectionDataset, val_set: DetectionDataset | None
) -> Objects:
    """Refuse data that cannot be trained on; returns what is there to train on.

    Raises:
        DataError: no image, no object of a size that is trained on, or other classes in `val_set`.
    """
    file = shown(train_set.annotation_file)
    if not train_set.samples:
        raise DataError(f"{file}: no images to train on")
    found = count_objects(train_set, preset)
    if found.count == found.never:
        raise DataError(
            f"{file}: no object to train on in the {found.images:,} images of split "
            f"{shown(train_set.name)!r}: found {found.count:,} boxes, {found.never:,} of them "
            f"under {MIN_SIDE:.0f} px once resized (input {found.size[1]} × {found.size[0]}), and "
            f"{found.crowd:,} crowd regions; expected larger ones: look at them with `nmsfree data "
            "check`, cut large pictures into tiles, or choose another --split"
        )
    if val_set is not None and set(val_set.class_names) != set(train_set.class_names):
        other = set(val_set.class_names) ^ set(train_set.class_names)
        raise DataError(
            f"{shown(val_set.annotation_file)}: its classes differ from those of {file} "
            f"({shown(', '.join(sorted(other)[:5]))}): use one list"
        )
    return found
