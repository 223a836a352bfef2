"""The examples of an epoch: what an index gives depends on (seed, epoch, index) alone."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Dataset, get_worker_info

from nmsfree.datasets.formats.coco import DetectionDataset, Sample
from nmsfree.errors import DataError, InputError, NmsfreeError
from nmsfree.images import REDUCTIONS, Reduction, read_reduced
from nmsfree.preprocess import fit
from nmsfree_training.config import Preset, TrainConfig
from nmsfree_training.data.augment import Example, finish, mixup, mosaic, place, short_side_size
from nmsfree_training.data.batch import PackedBatch, pack

# A reduced JPEG must still be this many times larger than what is needed of it. Measured against
# decoding it whole, both resized by area: 41 … 52 dB and 3 % of sharpness; without this margin
# 35 … 45 dB and 20 %. Resizing by linear interpolation instead: 28 … 43 dB.
MARGIN = 2


def read_example(sample: Sample, needed: tuple[int, int]) -> Example:
    """Read one image and the objects to train on: clipped to the image, and no crowds.

    JPEGs much larger than `needed`, the largest (height, width) that the recipe resizes to, are
    decoded at a fraction of their size, which saves half to two thirds of the time; boxes are in
    pixels of what is returned.

    Raises:
        InputError: the file cannot be read, or its size differs from the annotation.
    """
    spare = min(sample.height / needed[0], sample.width / needed[1]) / MARGIN
    wanted: Reduction = next((r for r in REDUCTIONS if r <= spare), 1)
    image, (height, width) = read_reduced(sample.path, wanted)
    if (height, width) != (sample.height, sample.width):
        raise InputError(
            f"{sample.path}: is {width} × {height} pixels, annotated as "
            f"{sample.width} × {sample.height}"
        )
    keep = ~sample.iscrowd
    # What reaches out of the picture cannot be seen, whether a recipe crops or not.
    boxes = np.clip(sample.boxes[keep], 0, np.array([width, height] * 2, np.float32))
    # By the long side: in a thin picture the last pixel is a large part of the short one.
    reduction = round(max(height, width) / max(image.shape[:2]))
    if reduction > 1:  # a last pixel that is not whole widens the picture, not what is in it
        boxes = boxes / np.float32(reduction)
    return Example(image, boxes, sample.labels[keep], (str(sample.path),))


def largest_size(
    height: int, width: int, config: TrainConfig, input_size: tuple[int, int]
) -> tuple[int, int]:
    """Return the largest (height, width) to which a recipe resizes an image of that size."""
    sizes = [fit(height, width, *input_size)]  # also what a mosaic makes of it at most
    if config.short_sides:
        sizes.append(short_side_size(height, width, max(config.short_sides), config.long_side))
    factor = max(1.0, *config.scale)
    return round(max(s[0] for s in sizes) * factor), round(max(s[1] for s in sizes) * factor)


TRIES = 8  # images that may be unusable one after the other; then the dataset is to blame


class TrainingSet(Dataset[Example]):
    """Augmented examples.

    Partners of a mosaic or blend, and what replaces an unusable image, are drawn from the same
    generator as everything else about an example.
    """

    def __init__(self, dataset: DetectionDataset, preset: Preset, seed: int, epoch: int) -> None:
        self.samples = dataset.samples
        self.preset = preset
        self.seed = seed
        self.go_to(epoch)

    def go_to(self, epoch: int) -> None:
        """Give the examples of this epoch from now on."""
        self.epoch = epoch
        recipe = self.preset.train
        mixes = epoch < recipe.epochs - recipe.plain_epochs
        self.mosaic_share = recipe.mosaic if mixes else 0.0
        self.mixup_share = recipe.mixup if mixes else 0.0

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Example:
        """Make one example.

        Raises:
            DataError: one image after the other cannot be used.
        """
        rng = np.random.default_rng((self.seed, self.epoch, index))
        if self.mosaic_share > 0 and rng.random() < self.mosaic_share:
            example = self.place(self.mosaic(index, rng), rng)
        else:
            example = self.place(self.load(index, rng), rng)
        if self.mixup_share > 0 and rng.random() < self.mixup_share:
            second = self.place(self.load(self._any(rng), rng), rng)
            example = self.mixup(example, second, rng)
        return self.finish(example, rng)

    def load(self, index: int, rng: np.random.Generator) -> Example:
        """Read an image, or another one if it cannot be used."""
        failed: list[tuple[str, str]] = []
        for _ in range(TRIES):
            sample = self.samples[index]
            size = largest_size(
                sample.height, sample.width, self.preset.train, self.preset.input_size
            )
            try:
                return read_example(sample, size)._replace(failed=tuple(failed))
            except InputError as error:
                reason = str(error).removeprefix(f"{sample.path}: ")
                failed.append((str(sample.path), reason))
            index = self._any(rng)
        path, reason = failed[-1]
        raise DataError(
            f"{path}: {reason}, as {TRIES - 1} other images drawn before it: repair the dataset "
            "(`nmsfree data check` lists what is wrong)"
        )

    def mosaic(self, index: int, rng: np.random.Generator) -> Example:
        """Four images, this one in the upper left, on a canvas of the model's input size."""
        indices = [index, *(self._any(rng) for _ in range(3))]
        tiles = [self.load(i, rng) for i in indices]
        return mosaic(tiles, self.preset.input_size, rng)

    def place(self, example: Example, rng: np.random.Generator) -> Example:
        return place(example, self.preset.train, self.preset.input_size, rng)

    def mixup(self, first: Example, second: Example, rng: np.random.Generator) -> Example:
        return mixup(first, second, rng)

    def finish(self, example: Example, rng: np.random.Generator) -> Example:
        return finish(example, self.preset.train, rng)

    def _any(self, rng: np.random.Generator) -> int:
        return int(rng.integers(len(self.samples)))


class LoaderError(NmsfreeError):
    """Loading images failed for want of memory, or a process that loads them was ended."""

    exit_status = 1


class MicroBatches(Dataset["PackedBatch | NmsfreeError"]):
    """Packed batches by (epoch, indices of the images), so that a process can serve all epochs.

    An error is handed over instead of raised: PyTorch would bring it from another process with
    the traceback of that process as its message.
    """

    def __init__(self, examples: TrainingSet, parts: list[list[int]]) -> None:
        self.examples = examples
        self.parts = parts  # of the epoch that `examples` is at

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        """What to ask for, in order."""
        return ((self.examples.epoch, part) for part in self.parts)

    def __getitem__(self, item: tuple[int, list[int]]) -> "PackedBatch | NmsfreeError":
        epoch, indices = item
        try:
            self.examples.go_to(epoch)
            packed = pack([self.examples[index] for index in indices])
            if get_worker_info() is not None:
                packed.share()
        except NmsfreeError as error:
            return error
        except MemoryError:
            return LoaderError("there is no memory left to load images: give fewer --workers")
        return packed
