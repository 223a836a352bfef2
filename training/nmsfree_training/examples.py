"""The examples of an epoch: what an index gives depends on (seed, epoch, index) alone."""

import numpy as np
from torch.utils.data import Dataset, get_worker_info

from nmsfree.data.coco import DetectionDataset
from nmsfree.errors import DataError, InputError, NmsfreeError
from nmsfree_training.augment import Example, finish, place
from nmsfree_training.batch import PackedBatch, pack
from nmsfree_training.config import Preset
from nmsfree_training.mosaic import mixup, mosaic
from nmsfree_training.reading import largest_size, read_example

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
        self.epoch = epoch
        recipe = preset.train
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
    """Packed batches by their number.

    An error is handed over instead of raised: PyTorch would bring it from another process with
    the traceback of that process as its message.
    """

    def __init__(self, examples: TrainingSet, parts: list[list[int]]) -> None:
        self.examples = examples
        self.parts = parts

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, number: int) -> "PackedBatch | NmsfreeError":
        try:
            packed = pack([self.examples[index] for index in self.parts[number]])
            if get_worker_info() is not None:
                packed.share()
        except NmsfreeError as error:
            return error
        except MemoryError:
            return LoaderError("there is no memory left to load images: give fewer --workers")
        return packed
