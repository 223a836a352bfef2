"""The training pictures that show how large every activation gets."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nmsfree.data.dataset import DetectionDataset, Sample
from nmsfree.data.load import load_dataset
from nmsfree.errors import InputError
from nmsfree.evaluation.analysis import folder_name
from nmsfree.images import read_image
from nmsfree.preprocess import letterbox
from nmsfree.spec import ModelSpec

# val, val2017, valid, test-dev, minival …; trainval is for training.
_MEASURES = re.compile(r"(mini)?(val|test|dev|eval)", re.IGNORECASE)


@dataclass(frozen=True)
class Calibration:
    """What an INT8 file is calibrated with.

    Attributes:
        samples: pictures, evenly spread over the split.
        spec: says how they are placed in the model's input.
        description: "digits train, 128 images".
    """

    samples: tuple[Sample, ...]
    spec: ModelSpec
    description: str

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return one picture as the deployed model sees it, uint8 [1, H, W, 3], BGR.

        Raises:
            InputError: it cannot be read.
        """
        pixels = np.empty((1, self.spec.height, self.spec.width, 3), np.uint8)
        letterbox(read_image(self.samples[index].path), pixels[0], self.spec.interpolation)
        return pixels


def load_calibration(
    data: Path, split: str, images: int, spec: ModelSpec, measured: DetectionDataset | None = None
) -> Calibration:
    """Choose training pictures; annotations are not used.

    Args:
        data: folder of a dataset.
        images: how many at most.
        spec: of the model that is quantised.
        measured: the split that the result will be measured on; none of it may be used here.

    Raises:
        InputError: the split is not for training, shares pictures with `measured`, or is empty.
        DataError: there is no such dataset or split.
    """
    if _MEASURES.match(split):
        raise InputError(
            f"calibration split is {split!r}: pictures that a model is measured on would make its"
            " figures look better than they are: use a training split, --calibrate-split train"
        )
    if images < 1:
        raise InputError(f"calibration images are {images}, expected 1 or more")
    dataset = load_dataset(data, split)
    if not dataset.samples:
        raise InputError(f"{data}: split {split!r} has no images to calibrate with")
    if measured is not None:
        _check_apart(dataset, measured)
    count = min(images, len(dataset))
    chosen = [dataset.samples[i * len(dataset) // count] for i in range(count)]
    description = f"{folder_name(dataset)} {split}, {count} images"
    return Calibration(tuple(chosen), spec, description)


def _check_apart(dataset: DetectionDataset, measured: DetectionDataset) -> None:
    own = {sample.path.resolve() for sample in dataset.samples}
    shared = [s.path.resolve() for s in measured.samples if s.path.resolve() in own]
    if shared:
        raise InputError(
            f"{len(shared)} images of the calibration split {dataset.name!r} are also in the split"
            f" {measured.name!r} that the file is measured on, first {shared[0].name}: the figures"
            " would look better than they are; use another split for one of them"
        )
