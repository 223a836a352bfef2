"""Dataset → batches: reads, augments, normalises and pads."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nmsfree.data.coco import DetectionDataset
from nmsfree.images import read_image
from nmsfree_training.assign import Targets, pad_targets
from nmsfree_training.augment import Example, augment
from nmsfree_training.config import Preset
from nmsfree_training.normalize import normalize


@dataclass(frozen=True)
class Batch:
    """What a training step needs.

    Attributes:
        images: float32 [N, 3, H, W], normalised RGB, zero in the padding.
        padding: bool [N, H, W], True where a pixel is padding; None if there is none.
        targets: objects in input pixels.
    """

    images: Tensor
    padding: Tensor | None
    targets: Targets

    def to(self, device: torch.device) -> "Batch":
        return Batch(
            self.images.to(device, non_blocking=True),
            None if self.padding is None else self.padding.to(device, non_blocking=True),
            self.targets.to(device),
        )


class TrainingSet(Dataset[Example]):
    """Augmented examples; what an index gives depends on (seed, epoch, index) alone."""

    def __init__(self, dataset: DetectionDataset, preset: Preset, seed: int, epoch: int) -> None:
        self.samples = dataset.samples
        self.preset = preset
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Example:
        sample = self.samples[index]
        keep = ~sample.iscrowd
        example = Example(read_image(sample.path), sample.boxes[keep], sample.labels[keep])
        rng = np.random.default_rng((self.seed, self.epoch, index))
        return augment(example, self.preset.train, self.preset.input_size, rng)


def collate(examples: list[Example]) -> Batch:
    """Normalise and pad to the largest image of the batch."""
    height = max(e.image.shape[0] for e in examples)
    width = max(e.image.shape[1] for e in examples)
    images = torch.zeros(len(examples), 3, height, width)
    padding = torch.ones(len(examples), height, width, dtype=torch.bool)
    for i, example in enumerate(examples):
        h, w = example.image.shape[:2]
        images[i, :, :h, :w] = normalize(torch.from_numpy(example.image)[None])[0]
        padding[i, :h, :w] = False
    targets = pad_targets(
        [torch.from_numpy(e.boxes) for e in examples],
        [torch.from_numpy(e.labels) for e in examples],
    )
    return Batch(images, padding if bool(padding.any()) else None, targets)


def epoch_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the shuffled order of one epoch."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def epoch_loader(
    dataset: DetectionDataset, preset: Preset, seed: int, epoch: int, workers: int
) -> DataLoader[Example]:
    """Return the batches of one epoch; a last incomplete batch is dropped if others exist."""
    order = epoch_order(len(dataset.samples), seed, epoch)
    batch_size = min(preset.train.batch_size, len(order))
    return DataLoader(
        TrainingSet(dataset, preset, seed, epoch),
        batch_size=batch_size,
        sampler=order.tolist(),
        num_workers=workers,
        collate_fn=collate,
        drop_last=True,
    )
